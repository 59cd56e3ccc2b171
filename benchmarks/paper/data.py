"""Images of the paper's experiments, as uint8 arrays that are mapped, not read."""

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adap.core import published
from adap.core.training.splitting import hold_out
from benchmarks.paper.runs import DataSpec

VALIDATION_SHARE = 0.2

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]
"""(N, C, H, W) images, (N,) labels and the names of the classes."""
Examples = tuple[Tensor, Tensor]
"""(N, C, H, W) uint8 and (N,) int64 in {0, 1}."""


@dataclass(frozen=True)
class Split:
    """The examples of one task."""

    train: Examples
    validation: Examples
    test: Examples


def load(spec: DataSpec, root: Path, cache: Path) -> Split:
    """The examples that a spec names, of the data set below `root`; decoded once into `cache`.

    A source is a key of `SOURCES`, or a published data set, read from its own folder below `root`,
    with the labelling that is wanted of it: `cifar10`, `cifar100:superclass`, `celeba:Mustache`.

    80 % of each class are for training and 20 % for validation, by the seed, unless the publisher
    has declared a validation split. Smaller sets are the fronts of the larger ones, class by class,
    so every set has the prevalence of the whole.
    """
    if spec.source not in SOURCES:
        return _published(spec, root, cache)
    images, labels, classes = _cached(spec.source, "train", root, cache)
    test_images, test_labels, _ = _cached(spec.source, "test", root, cache)
    positive = [classes.index(name) for name in spec.positive]
    rng = np.random.default_rng(spec.seed)
    train, validation = [], []
    for label in range(len(classes)):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held_out = round(VALIDATION_SHARE * len(rows))
        validation.append(rows[:held_out])
        train.append(rows[held_out:])
    test = [np.flatnonzero(test_labels == label) for label in range(len(classes))]

    def examples(
        pixels: NDArray[np.uint8], marks: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> Examples:
        return (
            torch.from_numpy(np.ascontiguousarray(pixels[rows])),
            torch.from_numpy(np.isin(marks[rows], positive).astype(np.int64)),
        )

    return Split(
        examples(images, labels, _front(train, spec.train)),
        examples(images, labels, _front(validation, spec.validation)),
        examples(test_images, test_labels, _front(test, spec.test)),
    )


def is_there(source: str, root: Path) -> bool:
    """Whether a source has files below `root`."""
    if source in SOURCES:
        return (root / f"{source.removesuffix('-jpeg')}-train.zip").exists()
    return (root / source.partition(":")[0]).is_dir()


def _published(spec: DataSpec, root: Path, cache: Path) -> Split:
    name, _, labels = spec.source.partition(":")
    image_set = published.load(name, root / name, labels=labels or None, cache=cache / name)
    if not image_set.has_split("validation"):
        image_set = hold_out(image_set, fraction=VALIDATION_SHARE, seed=spec.seed)
    rng = np.random.default_rng(spec.seed)
    positive = image_set.label_matrix(spec.positive).max(axis=1).astype(np.int64)

    def examples(split: str, count: int | None) -> Examples:
        rows = image_set.in_split(split)
        labels = image_set.labels[rows]
        parts = [rng.permutation(rows[labels == label]) for label in np.unique(labels)]
        front = _front(parts, count)
        return (
            torch.from_numpy(np.ascontiguousarray(image_set.images[front])),
            torch.from_numpy(positive[front]),
        )

    return Split(
        examples("train", spec.train),
        examples("validation", spec.validation),
        examples("test", spec.test),
    )


def _front(parts: list[NDArray[np.int64]], count: int | None) -> NDArray[np.int64]:
    """About `count` rows in all, the same share of every part."""
    total = sum(len(part) for part in parts)
    share = 1.0 if count is None else min(count / total, 1.0)
    return np.sort(np.concatenate([part[: round(share * len(part))] for part in parts]))


def _cached(source: str, part: str, root: Path, cache: Path) -> Arrays:
    folder = cache / source
    images, labels, classes = (folder / f"{part}-{n}.npy" for n in ("images", "labels", "classes"))
    if not classes.exists():  # written last
        folder.mkdir(parents=True, exist_ok=True)
        for path, array in zip((images, labels, classes), SOURCES[source](root, part), strict=True):
            written = path.with_suffix(f".{os.getpid()}")
            with written.open("wb") as file:
                np.save(file, np.asarray(array))
            written.rename(path)
    return np.load(images, mmap_mode="r"), np.load(labels), np.load(classes).tolist()


def _cifar10_jpeg(root: Path, part: str) -> Arrays:
    """CIFAR-10 as a zip of class folders with JPEGs: cifar10-train.zip and cifar10-test.zip."""
    with zipfile.ZipFile(root / f"cifar10-{part}.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[0] for name in names})
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    labels = np.array([classes.index(name.split("/")[0]) for name in names])
    return np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)), labels, classes


SOURCES: Mapping[str, Callable[[Path, str], Arrays]] = {"cifar10-jpeg": _cifar10_jpeg}
