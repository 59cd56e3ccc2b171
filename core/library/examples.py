"""People's images and labels as an audit reads them: checked once, exact, and out of memory.

Arrays and tensors stay where they are; a `Dataset` or `DataLoader` is read once, batch by batch,
into a temporary file. Pixels that are multiples of 1/255 become the bytes that they came from, so
that figures equal those of stored images; any others stay float32, exactly as they came.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from adap.core.audit.sampling import sample_doubt, sampled_rows
from adap.core.datasets import Picked
from adap.core.errors import ConfigError, DataError

Layout = Literal["NCHW", "NHWC"]
CHANNELS = (1, 3)  # by which the axis of the channels is told
ROWS = 256  # images that are looked at together
IMAGE_KEYS = ("image", "images", "img", "pixel_values")  # of a batch that is a mapping
LABEL_KEYS = ("label", "labels")
ROUNDING = 1e-5  # of pixels that were normalised and back, or resized, in float32
OVERSHOT = 0.25  # bicubic weights go no further beyond the range of what they mix
BYTE_ERROR = 1e-6  # of a float32 multiple of 1/255, however it was computed


@dataclass(frozen=True)
class Examples:
    """Images and what is ranked: (N, C, H, W) uint8 or float32, (N,) targets in {0, 1}.

    decided: sentences about what was found, for the reader of the report.
    several: whether labels came as rows of which some name several classes, or none.
    ends: the lowest and the highest label, where labels are whole numbers.
    """

    images: NDArray[Any]
    targets: NDArray[np.int64]
    ids: Sequence[str]
    groups: Sequence[str] | None
    clusters: Sequence[str] | None = None
    decided: list[str] = field(default_factory=list)
    several: bool = False
    ends: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def sha256(self) -> str:
        """Of the images, their targets, ids, groups and clusters."""
        digest = hashlib.sha256(f"{self.images.shape} {self.images.dtype}".encode())
        for start in range(0, len(self), ROWS):
            digest.update(np.ascontiguousarray(self.images[start : start + ROWS]).data)
        digest.update(self.targets.tobytes())
        names = [list(self.ids), self.groups, *([] if self.clusters is None else [self.clusters])]
        digest.update(json.dumps(names).encode())
        return digest.hexdigest()

    def at(self, rows: NDArray[np.int64]) -> "Examples":
        """Those at these places, in this order."""
        return replace(
            self,
            images=self.images[rows],
            targets=self.targets[rows],
            ids=[self.ids[i] for i in rows],
            groups=None if self.groups is None else [self.groups[i] for i in rows],
            clusters=None if self.clusters is None else [self.clusters[i] for i in rows],
        )

    def part(self, rows: NDArray[np.int64] | None = None) -> "Part":
        """Those at these places, in this order, or all of them."""
        rows = np.arange(len(self)) if rows is None else rows
        return Part(Picked(self.images, rows), self.targets[rows], self.decided)

    def sampled(
        self, count: int | np.integer[Any], *, named: Sequence[str], seed: int
    ) -> "Examples":
        """So many of them at random, rising, each side in its share, which is said.

        named: the positive labels.
        Raises ConfigError for what is no number, DataError for too few of a side.
        """
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 4:
            raise ConfigError(f"expected sample as a whole number of at least 4, got {count!r}")
        if count >= len(self):
            return self
        rows = sampled_rows(self.targets, int(count), named=", ".join(named), seed=seed)
        sample = self.at(rows)
        said = sample_doubt(len(rows), len(self), clusters=sample.clusters, seed=seed)
        return replace(sample, decided=[*self.decided, *([] if said is None else [said])])


@dataclass(frozen=True)
class Part:
    """Some of the examples, to train on or to choose the epoch by; images stay where they are."""

    images: Picked
    targets: NDArray[np.int64]
    decided: list[str]

    def __len__(self) -> int:
        return len(self.targets)


@contextmanager
def examples_of(
    images: Any,
    labels: Any = None,
    *,
    positive: Any = None,
    groups: Any = None,
    clusters: Any = None,
    ids: Sequence[str] | None = None,
    layout: Layout | None = None,
    classes: Sequence[Any] | None = None,
) -> Iterator[Examples]:
    """The examples, for as long as the block lasts.

    images: NumPy array or tensor, (N, C, H, W), (N, H, W, C) or grey (N, H, W), with `labels`; or a
    Dataset or DataLoader of (image, label), or of mappings that have both.
    labels: (N,) of numbers or names; in {0, 1} unless `positive` names those to rank first; or
    (N, K) rows in {0, 1}, of which `positive` names columns.
    classes: the labels that there are, of which whole numbers are the places where they are names.

    Raises DataError and ConfigError: what was expected and what came.
    """
    with tempfile.TemporaryDirectory(prefix="adap-") as folder:
        decided: list[str] = []
        if isinstance(images, Dataset | DataLoader):
            if labels is not None:
                raise ConfigError(
                    f"expected no labels beside a {type(images).__name__}, which yields them with "
                    "its images"
                )
            pixels, labels = _spooled(
                _loader_of(
                    images,
                    decided,
                    named=any(names is not None for names in (groups, clusters, ids)),
                ),
                Path(folder),
                layout,
                decided,
            )
        else:
            pixels = _array("images", images)
            if labels is None:
                raise DataError("expected labels beside the images, one an image, got none")
            pixels = _in_range(_channels_first(pixels, layout))
        pixels = _bytes_of(pixels, Path(folder), decided)
        if _dark(pixels):
            decided.append(
                "No pixel is above 1/255: the images are black to the eye. Bytes of 0 and 1 are to "
                "be floats, or 0 and 255; floats that were divided by 255 twice, once."
            )
        marks = _array("labels", labels)
        if classes is not None and positive is not None:
            positive = _among(classes, marks, positive)
        targets = targets_of(marks, len(pixels), positive)
        rows = marks.ndim == 2 and marks.shape[1] > 1
        yield Examples(
            images=pixels,
            targets=targets,
            ids=_names("ids", ids, len(pixels)) or [str(i) for i in range(len(pixels))],
            groups=_names("groups", groups, len(pixels)),
            clusters=_names("clusters", clusters, len(pixels)),
            decided=decided,
            several=rows and bool((marks.sum(axis=1) != 1).any()),
            ends=(int(marks.min()), int(marks.max()))
            if marks.dtype.kind in "iu" and not rows
            else None,
        )


def pixels_of(images: Any, layout: Layout | None = None) -> NDArray[Any]:
    """(N, C, H, W) uint8 or floats in [0, 1], of an array or a tensor. Raises DataError."""
    return _in_range(_channels_first(_array("images", images), layout))


def as_float(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """The same pixels as float32 in [0, 1]."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    return pixels.astype(np.float32, copy=False)


def targets_of(
    labels: Any, count: int, positive: Any = None, *, both_sides: bool = True
) -> NDArray[np.int64]:
    """(N,) 1 for the labels that `positive` names, 0 for the rest.

    Without it labels must be in {0, 1}. Of (N, K) rows in {0, 1} it names columns. Raises
    DataError, also for a positive that no label has and for labels all of one side, unless
    `both_sides` is false; ConfigError for a positive that names nothing.
    """
    marks = _array("labels", labels)
    wanted = [] if positive is None else listed(positive)
    if marks.ndim == 2 and marks.shape[1] == 1:
        marks = marks[:, 0]
    elif marks.ndim == 2 and len(marks) == count:
        marks, positive = _of_columns(marks, positive, wanted), None
    if marks.shape != (count,):
        raise DataError(f"expected {count} labels, one an image, got {marks.shape}")
    if marks.dtype.kind == "f" and not np.isfinite(marks).all():
        raise DataError(f"expected labels, got {int((~np.isfinite(marks)).sum())} NaN or infinite")
    if positive is None:
        found = _distinct(marks)
        if marks.dtype.kind not in "biuf" or not np.isin(found, (0, 1)).all():
            raise DataError(
                f"expected labels in {{0, 1}}, got {found[:5].tolist()}"
                f"{' and more' if len(found) > 5 else ''}: positive= names those to rank first"
            )
        targets = marks.astype(np.int64)
    else:
        known = _distinct(marks)
        missing = [value for value in wanted if value not in known.tolist()]
        if missing and both_sides:
            raise DataError(f"expected positive labels among {known[:10].tolist()}, got {missing}")
        targets = np.isin(marks, wanted).astype(np.int64)
    positives = int(targets.sum())
    if both_sides and positives in (0, count):
        raise DataError(
            f"expected positives and negatives, got {positives} positives among {count} labels"
        )
    return targets


def listed(positive: Any) -> list[Any]:
    """The labels of the positive side, of one label or of anything that holds several.

    Raises ConfigError for none, and for a mapping.
    """
    if isinstance(positive, Mapping):
        raise ConfigError(
            "expected the label, or labels, to rank first, one task a call, got "
            f"{dict(positive)!r:.80}: for each class on its own, call once a class"
        )
    if isinstance(positive, Tensor | np.ndarray | np.generic):
        positive = positive.tolist()
    held = isinstance(positive, list | tuple | set | frozenset | range)
    values = list(positive) if held else [positive]
    if not values:
        raise ConfigError("expected at least one label to rank first in positive=, got none")
    return [value.item() if isinstance(value, Tensor | np.generic) else value for value in values]


def _among(classes: Sequence[Any], marks: NDArray[Any], positive: Any) -> Any:
    """The positive labels as labels write them: by their places in classes, or by name.

    Raises DataError for labels that are neither.
    """
    if marks.ndim != 1:
        return positive
    known = _distinct(marks).tolist()
    if marks.dtype.kind in "iu" and all(isinstance(name, str) for name in classes):
        if known and not 0 <= known[0] <= known[-1] < len(classes):
            raise DataError(
                f"expected labels from 0 to {len(classes) - 1}, places among the {len(classes)} "
                f"classes, got {known[0]} to {known[-1]}"
            )
        return [classes.index(name) if name in classes else name for name in listed(positive)]
    unknown = [label for label in known if label not in classes]
    if unknown:
        raise DataError(f"expected labels among classes {list(classes)[:20]}, got {unknown[:5]}")
    return positive


def columns_in(values: Sequence[Any]) -> list[int] | None:
    """The columns that labels number, or None where one of them is no whole number."""
    whole = all(
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        for value in values
    )
    return [int(value) for value in values] if whole else None


def _of_columns(rows: NDArray[Any], positive: Any, wanted: Sequence[Any]) -> NDArray[np.int64]:
    """(N,) whether a row of (N, K) labels has a 1 in one of the positive columns."""
    if rows.dtype.kind not in "biuf" or not np.isin(rows, (0, 1)).all():
        raise DataError(
            f"expected labels, one an image, or rows of 0 and 1, got {rows.shape} of {rows.dtype}"
        )
    columns = columns_in(wanted)
    among = range(rows.shape[1])
    if positive is None or columns is None or not all(column in among for column in columns):
        raise DataError(
            f"expected positive=, the column or columns to rank first, 0 to {rows.shape[1] - 1}, "
            f"as labels are rows {rows.shape}, got {'none' if positive is None else list(wanted)}"
        )
    return np.where(rows[:, columns].max(axis=1) == 1, np.int64(1), np.int64(0))


def _distinct(marks: NDArray[Any]) -> NDArray[Any]:
    try:
        return np.unique(marks)
    except TypeError as error:
        kinds = sorted({type(value).__name__ for value in marks.tolist()})
        raise DataError(
            f"expected labels that are all numbers or all names, got {', '.join(kinds)}"
        ) from error


def _array(what: str, values: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        try:
            values = values.detach().cpu()
            values = values.float() if values.dtype == torch.bfloat16 else values
            array: NDArray[Any] = values.numpy()
        except (TypeError, RuntimeError) as error:  # sparse, quantised, on the device meta
            raise DataError(
                f"expected {what} as a dense tensor of numbers, got one of {values.dtype}, "
                f"{values.layout}, on {values.device}"
            ) from error
        return array
    if isinstance(values, list | tuple):
        values = [_array(what, value) if isinstance(value, Tensor) else value for value in values]
    if isinstance(values, np.ndarray | list) or hasattr(values, "__array__"):
        try:
            return np.asarray(values)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"expected {what} of one shape, got several: resize or crop them first ({error})"
            ) from error
    raise DataError(
        f"expected {what} as a NumPy array, a tensor, or a Dataset or DataLoader of (image, label) "
        f"in place of both, got {type(values).__name__}"
    )


def _channels_first(images: NDArray[Any], layout: Layout | None) -> NDArray[Any]:
    if layout not in (None, "NCHW", "NHWC"):
        raise ConfigError(f"expected layout 'NCHW' or 'NHWC', got {layout!r}")
    if images.ndim == 3:  # grey, as in an uploaded .npz
        images, layout = images[:, None], "NCHW"
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(
            "expected images (N, C, H, W) or (N, H, W, C), or grey ones (N, H, W), got "
            f"{tuple(images.shape)}"
        )
    if layout is None:
        first, last = images.shape[1] in CHANNELS, images.shape[3] in CHANNELS
        if first == last:
            raise DataError(
                f"expected images whose channels (1 or 3) are the second or the last axis, got "
                f"{tuple(images.shape)}: layout='NCHW' or layout='NHWC' says which"
            )
        layout = "NCHW" if first else "NHWC"
    return images if layout == "NCHW" else images.transpose(0, 3, 1, 2)


def _in_range(images: NDArray[Any]) -> NDArray[Any]:
    """The same images; floats outside [0, 1] by no more than rounding are put on its edge.

    Raises DataError for another dtype than uint8 or floats, and for floats further outside.
    """
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise DataError(f"expected images of uint8, or floats in [0, 1], got {images.dtype}")
    rounded = False
    for start in range(0, len(images), ROWS):
        part = images[start : start + ROWS]
        broken = int((~np.isfinite(part)).reshape(len(part), -1).any(axis=1).sum())
        if broken:
            raise DataError(f"expected pixels in [0, 1], got NaN or infinity in {broken} images")
        low, high = float(part.min()), float(part.max())
        if low >= -ROUNDING and high <= 1 + ROUNDING:
            rounded = rounded or low < 0 or high > 1
            continue
        if low >= -OVERSHOT and high <= 1 + OVERSHOT:
            hint = "where resizing went beyond, images.clamp(0, 1) ends it"
        elif low < 0:
            hint = "normalised images are given before it, with mean= and std= of the model"
        else:
            hint = "pixels from 0 to 255 are given as uint8, or divided by 255"
        raise DataError(f"expected pixels in [0, 1], got {low:.7g} to {high:.7g}; {hint}")
    return images.clip(0, 1) if rounded else images


def _bytes_of(images: NDArray[Any], folder: Path, decided: list[str]) -> NDArray[Any]:
    """The same as uint8 where nothing is lost by it, else as float32."""
    if images.dtype == np.uint8:
        return images
    for start in range(0, len(images), ROWS):
        part = 255 * np.asarray(images[start : start + ROWS], np.float64)
        if np.abs(part - np.rint(part)).max() > 255 * BYTE_ERROR:
            decided.append(
                "Pixels are not all multiples of 1/255: the images are audited as the floats that "
                "they are, and files of 8 bits a pixel would give slightly other figures."
            )
            return images if images.dtype == np.float32 else images.astype(np.float32)
    found = np.memmap(folder / "bytes", np.uint8, mode="w+", shape=images.shape)
    for start in range(0, len(images), ROWS):
        part = np.asarray(images[start : start + ROWS], np.float64)
        found[start : start + ROWS] = np.rint(255 * part)
    return found


def _dark(images: NDArray[Any]) -> bool:
    """Whether no pixel is above 1 of 255; looks no further than the first that is."""
    limit = 1 if images.dtype == np.uint8 else 1 / 255
    starts = range(0, len(images), ROWS)
    return all(images[start : start + ROWS].max() <= limit for start in starts)


def _loader_of(
    images: "Dataset[Any] | DataLoader[Any]", decided: list[str], *, named: bool
) -> "DataLoader[Any]":
    """A loader whose order is known where names come beside it; of another order it is told.

    Raises ConfigError for names beside a loader that shuffles, which would go to other images.
    """
    if not isinstance(images, DataLoader):
        return DataLoader(images, ROWS)
    batches = images.batch_sampler
    in_order = isinstance(images.dataset, IterableDataset) or (
        isinstance(images.sampler, SequentialSampler)
        and (batches is None or type(batches) is BatchSampler)
    )
    if not in_order:
        if named:
            raise ConfigError(
                "expected a DataLoader in the order of its data set beside groups=, clusters= or "
                "ids=, which are told apart by their places, got one that shuffles or samples: "
                "shuffle=False"
            )
        decided.append(
            "The DataLoader shuffles or samples: examples are numbered in the order in which they "
            "came, and in another order nothing that is kept in a folder is found again."
        )
    return images


def _batches(loader: "DataLoader[Any]") -> Iterator[tuple[Any, Any]]:
    """Images and labels of each batch.

    Raises DataError for what a loader could not put together, and for what is no pair.
    """
    try:
        for item in loader:
            if isinstance(item, Mapping):
                yield _entry(item, IMAGE_KEYS), _entry(item, LABEL_KEYS)
            elif isinstance(item, tuple | list) and len(item) == 2:
                yield item[0], item[1]
            elif isinstance(item, tuple | list) and len(item) == 3 and _numbers(item[2]):
                yield item[0], item[1]  # with the index that losses want of their loader
            else:
                raise DataError(
                    "expected (images, labels) or (images, labels, index) from the loader, "
                    f"got {type(item).__name__}"
                    f"{f' of {len(item)}' if isinstance(item, tuple | list) else ''}"
                )
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        raise DataError(
            "expected a loader of (image, label), images as tensors or arrays of one shape and "
            f"labels as numbers, got {type(error).__name__}: {str(error)[:300]}"
        ) from error


def _numbers(values: Any) -> bool:
    """Whether these are whole numbers, one an example, none of them twice."""
    numbers = np.asarray(values)
    return (
        numbers.ndim == 1 and numbers.dtype.kind in "iu" and len(np.unique(numbers)) == len(numbers)
    )


def _entry(item: Mapping[Any, Any], keys: Sequence[str]) -> Any:
    found = [key for key in keys if key in item]
    if len(found) != 1:
        raise DataError(
            f"expected exactly one of {', '.join(keys)} in a batch that is a mapping, got "
            f"{', '.join(map(str, item))}: a DataLoader with collate_fn= can yield "
            "(images, labels)"
        )
    return item[found[0]]


def _spooled(
    loader: "DataLoader[Any]", folder: Path, layout: Layout | None, decided: list[str]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """All that a loader yields: the images in a file, the labels in memory."""
    labels: list[NDArray[Any]] = []
    shape: tuple[int, ...] = ()
    dtype: Any = None
    with (folder / "images").open("wb") as file:
        for given, marks in _batches(loader):
            part = _in_range(_channels_first(_array("images", given), layout))
            part = part if part.dtype == np.uint8 else part.astype(np.float32)
            if dtype is not None and (part.shape[1:] != shape or part.dtype != dtype):
                raise DataError(
                    f"expected images {shape} of {dtype} throughout, got {part.shape[1:]} of "
                    f"{part.dtype}"
                )
            shape, dtype = part.shape[1:], part.dtype
            _append(file, part)
            labels.append(np.atleast_1d(_array("labels", marks)))
    if not labels:
        raise DataError("expected at least one example from the loader, got none")
    count = sum(len(part) for part in labels)
    of_set = len(loader.dataset) if isinstance(loader.dataset, Sized) else None
    if of_set not in (None, count):
        decided.append(
            f"The DataLoader yielded {count} examples of a data set of {of_set}: "
            + ("some are audited several times." if count > of_set else "the rest is not audited.")
        )
    images = np.memmap(folder / "images", dtype, mode="r", shape=(count, *shape))
    return images, np.concatenate(labels)


def _append(file: IO[bytes], part: NDArray[Any]) -> None:
    np.ascontiguousarray(part).tofile(file)


def _names(what: str, values: Any, count: int) -> list[str] | None:
    if values is None:
        return None
    names = [str(value) for value in _array(what, values).tolist()]
    if len(names) != count:
        raise DataError(f"expected {count} {what}, one an image, got {len(names)}")
    if what == "ids" and len(set(names)) < count:
        raise DataError("expected ids that differ, got some twice")
    return names
