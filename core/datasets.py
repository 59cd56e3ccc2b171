"""A set of labelled images as the rest of the house sees it: uint8 arrays and names.

The stored form is one safetensors file, read without copying; it holds numbers and text only.
Opening what users upload is not done here but in `adap.worker.intake`, inside a sandbox.
"""

import json
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from adap.core.config.base import SPLITS
from adap.core.config.data import Task
from adap.core.errors import ConfigError, DataError

_ROWS = 4096  # images that are looked at together
_HEADER_BYTES = 1024  # of the stored form: seven arrays at most, 120 bytes at most for each


@dataclass(frozen=True)
class ImageSet:
    """Images with one label each, or with any number of labels each.

    images: (N, C, H, W) uint8.
    labels: (N,) int64, indices into `classes`; or (N, K) uint8, 1 where an image has the class.
    splits: (N,) int8, indices into `adap.core.config.SPLITS`, or None where nothing was declared.
    example_ids: N names, unique, in the order of the images.
    groups: N names in the same order, or None where nothing was declared.
    clusters: the same, of what images that are no independent draws have in common: a patient, a
    drive, a scene.
    """

    images: NDArray[np.uint8]
    labels: NDArray[Any]
    classes: Sequence[str]
    example_ids: Sequence[str]
    splits: NDArray[np.int8] | None = None
    groups: Sequence[str] | None = None
    clusters: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several of the classes, or none."""
        return self.labels.ndim == 2

    def label_matrix(self, classes: Sequence[str] | None = None) -> NDArray[np.uint8]:
        """(N, K) uint8: 1 where an image has the class, for these classes or all of them.

        Raises ConfigError for a class that the data set does not have.
        """
        wanted = self._positions(self.classes if classes is None else classes)
        if self.multilabel:
            matrix: NDArray[np.uint8] = self.labels[:, wanted]
            return matrix
        matrix = np.zeros((len(self), len(wanted)), np.uint8)
        for column, k in enumerate(wanted):
            matrix[:, column] = self.labels == k
        return matrix

    def class_counts(self, index: NDArray[Any] | None = None) -> dict[str, int]:
        """Examples of each class, of all examples or those given by index or mask."""
        labels: NDArray[Any] = self.labels if index is None else self.labels[index]
        if self.multilabel:
            counts = labels.sum(axis=0, dtype=np.int64)
        else:
            counts = np.bincount(labels, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def labels_of(self, i: int) -> list[str]:
        """The classes of one example by name: one, or any number where there may be several."""
        if self.multilabel:
            return [self.classes[k] for k in np.flatnonzero(self.labels[i]).tolist()]
        return [self.classes[int(self.labels[i])]]

    def label_of(self, i: int) -> str:
        """The class of one example by name; of several labels all, joined by |."""
        return "|".join(self.labels_of(i))

    def targets(self, task: Task, index: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """1 for the positive classes of the task, 0 for the rest; of all examples or those given.

        An image with several labels is positive if any of them is.

        Raises ConfigError for a class that the data set does not have, DataError where there are
        no positives or no negatives among these examples.
        """
        wanted = self._positions(task.positive)
        labels: NDArray[Any] = self.labels if index is None else self.labels[index]
        targets = np.zeros(len(labels), np.int64)
        for k in wanted:
            targets |= labels[:, k] if self.multilabel else labels == k
        positives = int(targets.sum())
        if positives == 0 or positives == len(targets):
            raise DataError(
                f"expected positives and negatives, got {positives} positives "
                f"({', '.join(task.positive)}) among {len(targets)} examples"
            )
        return targets

    def _positions(self, names: Sequence[str]) -> list[int]:
        unknown = [name for name in names if name not in self.classes]
        if unknown:
            raise ConfigError(
                f"expected positive classes among {list(self.classes)[:20]}, got {unknown}"
            )
        return [self.classes.index(name) for name in names]

    def has_split(self, split: str) -> bool:
        """Whether any example is declared to belong to this split."""
        return self.splits is not None and bool((self.splits == SPLITS.index(split)).any())

    def in_split(self, split: str | None) -> NDArray[np.int64]:
        """Indices of the examples of one split; of all examples for None."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        if not self.has_split(split):
            raise ConfigError(
                f"expected a data set with a {split} split; this one declares "
                + (self._declared_splits() or "no splits")
            )
        assert self.splits is not None
        return np.flatnonzero(self.splits == SPLITS.index(split)).astype(np.int64)

    def group_names(self, index: NDArray[np.int64]) -> list[str] | None:
        """The group of each example at these indices, or None where no groups were declared."""
        return None if self.groups is None else [self.groups[i] for i in index]

    def cluster_names(self, index: NDArray[np.int64]) -> list[str] | None:
        """The cluster of each example at these indices, or None where none were declared."""
        return None if self.clusters is None else [self.clusters[i] for i in index]

    def subset(self, index: NDArray[np.int64]) -> "ImageSet":
        """The examples at these indices, in this order."""
        return ImageSet(
            images=self.images[index],
            labels=self.labels[index],
            classes=self.classes,
            example_ids=[self.example_ids[i] for i in index],
            splits=None if self.splits is None else self.splits[index],
            groups=self.group_names(index),
            clusters=self.cluster_names(index),
        )

    def _declared_splits(self) -> str:
        return ", ".join(split for split in SPLITS if self.has_split(split))

    def save(self, path: Path) -> None:
        """Write the stored form."""
        arrays = self._arrays()
        with path.open("wb") as file:
            file.write(_header(arrays))
            for array in arrays.values():
                array.tofile(file)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """What is stored, in its order in the file: 64-bit ones first, so that all lie aligned."""
        arrays: dict[str, NDArray[Any]] = {
            "labels": np.ascontiguousarray(self.labels),
            "images": np.ascontiguousarray(self.images),
            "classes": _pack(self.classes),
            "example_ids": _pack(self.example_ids),
        }
        if self.splits is not None:
            arrays["splits"] = np.ascontiguousarray(self.splits)
        if self.groups is not None:
            arrays["groups"] = _pack(self.groups)
        if self.clusters is not None:
            arrays["clusters"] = _pack(self.clusters)
        return arrays

    @classmethod
    def load(cls, path: Path) -> "ImageSet":
        """Read the stored form; the images stay on disk until they are looked at."""
        with safe_open(path, framework="np") as file:
            names = file.keys()
            return cls(
                images=stored_images(path),
                labels=file.get_tensor("labels"),
                classes=_unpack(file.get_tensor("classes")),
                example_ids=_unpack(file.get_tensor("example_ids")),
                splits=file.get_tensor("splits") if "splits" in names else None,
                groups=_unpack(file.get_tensor("groups")) if "groups" in names else None,
                clusters=_unpack(file.get_tensor("clusters")) if "clusters" in names else None,
            )


class Picked:
    """Some of many images, in an order of their own: read when looked at, never as a whole.

    So those of a mapped file take no memory but for what is looked at together.
    """

    def __init__(self, images: NDArray[Any], index: NDArray[np.int64]) -> None:
        """images: (N, C, H, W).  index: (n,) places among them."""
        self._images, self._index = images, index
        self.shape: tuple[int, ...] = (len(index), *images.shape[1:])
        self.ndim, self.dtype = images.ndim, images.dtype

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        """(b, C, H, W), a copy."""
        return self._images[self._index[rows]]


class Draft:
    """The stored form of a data set too large for memory: images are set where they will lie.

    draft = Draft(path)
    images = draft.room(labels, shape)      # zeros, mapped from the file; set them in place
    draft.finish(ImageSet(images, labels, ...))
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._images: NDArray[np.uint8] | None = None

    def room(self, labels: NDArray[Any], shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """(N, C, H, W) uint8 in the file, behind room for the labels.

        When asked again, what was given before stays usable, but is no longer part of the file.
        Raises OSError where the disk does not hold it.
        """
        self.discard()
        offset = _HEADER_BYTES + labels.nbytes
        size = int(np.prod(shape, dtype=np.int64))
        with self._path.open("w+b") as file:
            # a full disk is an error here, and would be the end of the process in a mapped page
            os.posix_fallocate(file.fileno(), 0, offset + size)
            pages = mmap.mmap(file.fileno(), offset + size)
        # not np.memmap, whose every item is made in Python
        self._images = np.ndarray(shape, np.uint8, buffer=pages, offset=offset)
        return self._images

    def finish(self, image_set: ImageSet) -> None:
        """Write what goes around the images: they must be the ones of `room`, for these labels."""
        assert image_set.images is self._images
        arrays = image_set._arrays()
        with self._path.open("r+b") as file:
            file.write(_header(arrays))
            arrays.pop("labels").tofile(file)
            file.seek(arrays.pop("images").nbytes, os.SEEK_CUR)
            for array in arrays.values():
                array.tofile(file)

    def discard(self) -> None:
        """Leave nothing of it behind."""
        self._path.unlink(missing_ok=True)


def release(images: NDArray[np.uint8]) -> None:
    """Let go of the memory of mapped images, whose bytes stay in the file; of others, nothing."""
    base: object = images.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def _header(arrays: dict[str, NDArray[Any]]) -> bytes:
    """What stands before the arrays in a safetensors file.

    The library is not used for writing: it would hold a second copy of all arrays.
    """
    names = {"uint8": "U8", "int8": "I8", "int64": "I64"}
    header, offset = {}, 0
    for name, array in arrays.items():
        end = offset + array.nbytes
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    # always as long, so that images can be written first; spaces are what the format fills it with
    text = text.ljust(_HEADER_BYTES - 8)
    assert len(text) == _HEADER_BYTES - 8
    return len(text).to_bytes(8, "little") + text


def stored_images(path: Path) -> NDArray[np.uint8]:
    """(N, C, H, W), the images of a stored form alone, mapped into memory page by page."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(header_bytes))["images"]
    offset = 8 + header_bytes + entry["data_offsets"][0]
    return np.memmap(path, np.uint8, mode="r", offset=offset, shape=tuple(entry["shape"]))


def _pack(names: Sequence[str]) -> NDArray[np.uint8]:
    """Names as bytes, each closed by NUL: a name never holds one."""
    return np.frombuffer(b"".join(name.encode() + b"\0" for name in names), np.uint8)


def _unpack(packed: NDArray[np.uint8]) -> list[str]:
    return packed.tobytes().decode().split("\0")[:-1]


def channel_statistics(
    images: NDArray[np.uint8] | Picked,
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, pixels in [0, 1], from the counts of values."""
    counts = np.zeros((images.shape[1], 256), np.int64)
    for start in range(0, len(images), _ROWS):
        part = images[start : start + _ROWS]
        for channel, own in enumerate(counts):
            own += np.bincount(part[:, channel].ravel(), minlength=256)
    means, stds = [], []
    values = np.arange(256) / 255
    for own in counts:
        share = own / own.sum()
        mean = float(share @ values)
        means.append(round(mean, 6))
        std = float(np.sqrt(share @ (values - mean) ** 2))
        stds.append(round(max(std, 1 / 255), 6))  # a constant channel is left as it is
    return means, stds
