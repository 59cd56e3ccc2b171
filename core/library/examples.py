"""People's images and labels as an audit reads them: checked once, exact, and out of memory.

Arrays and tensors stay where they are; a `Dataset` or `DataLoader` is read once, batch by batch,
into a temporary file. Pixels that are multiples of 1/255 become the bytes that they came from, so
that figures equal those of stored images; any others stay float32, exactly as they came.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adap.core.errors import ConfigError, DataError

Layout = Literal["NCHW", "NHWC"]
CHANNELS = (1, 3)  # by which the axis of the channels is told
ROWS = 256  # images that are looked at together
BYTE_ERROR = 1e-6  # of a float32 multiple of 1/255, however it was computed


@dataclass(frozen=True)
class Examples:
    """Images and what is ranked: (N, C, H, W) uint8 or float32, (N,) targets in {0, 1}.

    decided: sentences about what was found, for the reader of the report.
    """

    images: NDArray[Any]
    targets: NDArray[np.int64]
    ids: Sequence[str]
    groups: Sequence[str] | None
    decided: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.targets)

    def at(self, rows: NDArray[np.int64]) -> "Examples":
        """Those at these places, in this order."""
        return replace(
            self,
            images=self.images[rows],
            targets=self.targets[rows],
            ids=[self.ids[i] for i in rows],
            groups=None if self.groups is None else [self.groups[i] for i in rows],
        )

    def sampled(self, count: int, *, seed: int) -> "Examples":
        """So many of them at random, rising; each side in its share, or two of it, which is said.

        Raises ConfigError.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 4:
            raise ConfigError(f"expected sample as a whole number of at least 4, got {count!r}")
        if count >= len(self):
            return self
        generator = np.random.default_rng(seed)
        sides = [np.flatnonzero(self.targets == side) for side in (0, 1)]
        fair = round(count * len(sides[1]) / len(self))
        kept = min(max(fair, 2), count - 2, len(sides[1]))
        rows = np.sort(
            np.concatenate(
                [
                    generator.choice(sides[1], kept, replace=False),
                    generator.choice(sides[0], min(count - kept, len(sides[0])), replace=False),
                ]
            )
        )
        said = (
            f"A random sample of {len(rows)} of {len(self)} examples was audited (seed {seed}), "
            f"{kept} of them positive; sample=None audits all."
        )
        if kept != fair:
            here, overall = kept / len(rows), len(sides[1]) / len(self)
            said += (
                f" Positives are {here:.1%} of it and {overall:.1%} of all, as a sample holds at "
                f"least two of each side. AP rises with their share: of all {len(self)} it is "
                f"likely {'lower' if kept > fair else 'higher'}; compare with a larger sample."
            )
        return replace(self.at(rows), decided=[*self.decided, said])


@contextmanager
def examples_of(
    images: Any,
    labels: Any = None,
    *,
    positive: Any = None,
    groups: Any = None,
    ids: Sequence[str] | None = None,
    layout: Layout | None = None,
) -> Iterator[Examples]:
    """The examples, for as long as the block lasts.

    images: NumPy array or tensor, (N, C, H, W), (N, H, W, C) or grey (N, H, W), with `labels`; or a
    Dataset or DataLoader of (image, label).
    labels: (N,) of numbers or names; in {0, 1} unless `positive` names those to rank first.

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
            loader = images if isinstance(images, DataLoader) else DataLoader(images, ROWS)
            pixels, labels = _spooled(loader, Path(folder), layout)
        else:
            if labels is None:
                raise DataError("expected labels beside the images, one an image, got none")
            pixels = _channels_first(_array("images", images), layout)
            _refuse_pixels(pixels)
        pixels = _bytes_of(pixels, Path(folder), decided)
        targets = targets_of(labels, len(pixels), positive)
        yield Examples(
            images=pixels,
            targets=targets,
            ids=_names("ids", ids, len(pixels)) or [str(i) for i in range(len(pixels))],
            groups=_names("groups", groups, len(pixels)),
            decided=decided,
        )


def pixels_of(images: Any, layout: Layout | None = None) -> NDArray[Any]:
    """(N, C, H, W) uint8 or floats in [0, 1], of an array or a tensor. Raises DataError."""
    pixels = _channels_first(_array("images", images), layout)
    _refuse_pixels(pixels)
    return pixels


def as_float(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """The same pixels as float32 in [0, 1]."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    return pixels.astype(np.float32, copy=False)


def targets_of(
    labels: Any, count: int, positive: Any = None, *, both_sides: bool = True
) -> NDArray[np.int64]:
    """(N,) 1 for the labels that `positive` names, 0 for the rest.

    Without it labels must be in {0, 1}. Raises DataError, also for a positive that no label has and
    for labels all of one side, unless `both_sides` is false.
    """
    marks = _array("labels", labels)
    if marks.ndim == 2 and marks.shape[1] == 1:
        marks = marks[:, 0]
    if marks.shape != (count,):
        raise DataError(f"expected {count} labels, one an image, got {marks.shape}")
    if marks.dtype.kind == "f" and not np.isfinite(marks).all():
        raise DataError(f"expected labels, got {int((~np.isfinite(marks)).sum())} NaN or infinite")
    if positive is None:
        found = np.unique(marks)
        if marks.dtype.kind not in "biuf" or not np.isin(found, (0, 1)).all():
            raise DataError(
                f"expected labels in {{0, 1}}, got {found[:5].tolist()}"
                f"{' and more' if len(found) > 5 else ''}: positive= names those to rank first"
            )
        targets = marks.astype(np.int64)
    else:
        wanted = list(positive) if isinstance(positive, list | tuple | set) else [positive]
        known = np.unique(marks)
        missing = [value for value in wanted if not (known == value).any()]
        if (missing and both_sides) or not wanted:
            raise DataError(
                f"expected positive labels among {known[:10].tolist()}, got {missing or 'none'}"
            )
        targets = np.isin(marks, wanted).astype(np.int64)
    positives = int(targets.sum())
    if both_sides and positives in (0, count):
        raise DataError(
            f"expected positives and negatives, got {positives} positives among {count} labels"
        )
    return targets


def _array(what: str, values: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
        array: NDArray[Any] = values.numpy()
        return array
    if isinstance(values, np.ndarray | list | tuple) or hasattr(values, "__array__"):
        try:
            return np.asarray(values)
        except (TypeError, ValueError) as error:
            raise DataError(f"expected {what} of one shape: {error}") from error
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


def _refuse_pixels(images: NDArray[Any]) -> None:
    """Raise DataError for another dtype than uint8 or floats, and for floats outside [0, 1]."""
    if images.dtype == np.uint8:
        return
    if images.dtype.kind != "f":
        raise DataError(f"expected images of uint8, or floats in [0, 1], got {images.dtype}")
    for start in range(0, len(images), ROWS):
        part = images[start : start + ROWS]
        broken = int((~np.isfinite(part)).reshape(len(part), -1).any(axis=1).sum())
        if broken:
            raise DataError(f"expected pixels in [0, 1], got NaN or infinity in {broken} images")
        low, high = float(part.min()), float(part.max())
        if low < 0 or high > 1:
            hint = (
                "; normalised images are given before it, with mean= and std= of the model"
                if low < 0
                else "; pixels from 0 to 255 are given as uint8, or divided by 255"
            )
            raise DataError(f"expected pixels in [0, 1], got {low:g} to {high:g}{hint}")


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


def _spooled(
    loader: "DataLoader[Any]", folder: Path, layout: Layout | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """All that a loader yields: the images in a file, the labels in memory."""
    labels: list[NDArray[Any]] = []
    shape: tuple[int, ...] = ()
    dtype: Any = None
    with (folder / "images").open("wb") as file:
        for item in loader:
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise DataError(
                    f"expected (images, labels) from the loader, got {type(item).__name__}"
                    f"{f' of {len(item)}' if isinstance(item, tuple | list) else ''}"
                )
            part = _channels_first(_array("images", item[0]), layout)
            _refuse_pixels(part)
            part = part if part.dtype == np.uint8 else part.astype(np.float32)
            if dtype is not None and (part.shape[1:] != shape or part.dtype != dtype):
                raise DataError(
                    f"expected images {shape} of {dtype} throughout, got {part.shape[1:]} of "
                    f"{part.dtype}"
                )
            shape, dtype = part.shape[1:], part.dtype
            _append(file, part)
            labels.append(np.atleast_1d(_array("labels", item[1])))
    if not labels:
        raise DataError("expected at least one example from the loader, got none")
    count = sum(len(part) for part in labels)
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
