"""NPZ data sets: `images`, `labels`, and optionally `classes`, `split`, `groups`, `clusters`.

images: (N, H, W, C), (N, C, H, W) or (N, H, W), C of 1 or 3; uint8, or float in [0, 1], which is
rounded to 256 levels.  labels: (N,) whole numbers or text; or (N, K) of 0 and 1, a column for each
of K classes, where an image may have several.  classes: names of the classes; labels are then
indices into them, or some of them, or columns in their order.  split: (N,) text.
groups, clusters: (N,) whole numbers or text.

Each array's header is read first and checked against the size of its member, so that memory is
taken only for numbers that are there. Arrays of objects are pickles: refused, never opened.
"""

import math
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from adap.core.config import SPLITS, Resize
from adap.core.datasets import ImageSet, release
from adap.models.header import shown
from adap.worker.intake.archive import Archive, Member
from adap.worker.intake.asked import Asked
from adap.worker.intake.counts import MAX_LABELS, check_counts
from adap.worker.intake.images import resized
from adap.worker.intake.limits import IntakeLimits, Reasons, Rejected
from adap.worker.intake.names import (
    MAX_NAME_CHARACTERS,
    cluster_problem,
    group_problem,
    label_problem,
)
from adap.worker.intake.splits import split_problem, splits_of

_BLOCK_BYTES = 8 * 1024**2  # images are converted this much at a time
_CHANNELS = (1, 3)
_ARRAYS = ("images", "labels", "classes", "split", "groups", "clusters")
_SLACK = 1e-4  # float images that were resized overshoot [0, 1] by rounding; a level is 4e-3


def is_arrays(archive: Archive) -> bool:
    """Whether a zip is an NPZ: arrays at its top, whatever else it holds."""
    return any(name.endswith(".npy") and "/" not in name for name in archive.names)


def read_arrays(archive: Archive, asked: Asked) -> ImageSet:
    """The data set in an NPZ; raises Rejected for all that is not as described above."""
    limits = asked.limits
    _check_names(archive)
    raw = _read_values(archive, "labels", kinds="biuU", limits=limits, most_dimensions=2)
    names = _read_texts(archive, "classes", limits=limits)
    classes, labels = _name_columns(raw, names) if raw.ndim == 2 else _name_classes(raw, names)
    count = len(labels)
    splits = _splits(_read_texts(archive, "split", limits=limits), count=count)
    groups = _names(archive, "groups", group_problem, count=count, limits=limits)
    clusters = _names(archive, "clusters", cluster_problem, count=count, limits=limits)
    check_counts(classes, labels, splits=splits, groups=groups)
    digits = len(str(count - 1))
    return ImageSet(
        images=_read_images(archive, labels, asked),
        labels=labels,
        classes=classes,
        example_ids=[f"{i:0{digits}d}" for i in range(count)],
        splits=splits,
        groups=groups,
        clusters=clusters,
    )


def read_pixels(
    archive: Archive, *, channels: int, height: int, width: int, limits: IntakeLimits
) -> NDArray[Any]:
    """(N, C, H, W) of an NPZ that holds `images` and nothing else, of exactly this size.

    uint8 as it is; floats in [0, 1] as float32 and not rounded to levels, since one image may
    differ from another by less. Grey images are repeated for each channel. Raises Rejected.
    """
    if archive.names != ("images.npy",):
        raise Rejected(
            f"expected one array 'images' in the NPZ, got {', '.join(map(shown, archive.names))}"
        )
    with archive.open("images.npy") as member:
        shape, dtype = _read_header(member, "images")
        if dtype != np.uint8 and dtype.kind != "f":
            raise Rejected(f"images: expected uint8, or float in [0, 1], got {dtype}")
        if not shape or not 0 < shape[0] <= limits.entries:
            raise Rejected(f"images: expected 1 to {limits.entries} images, got {shape}")
        layouts: dict[tuple[int, ...], tuple[int, ...]] = {
            (height, width, channels): (0, 3, 1, 2),
            (channels, height, width): (0, 1, 2, 3),  # last, so that it wins where both are one
        }
        if shape[1:] not in {*layouts, (height, width)}:
            raise Rejected(
                f"images: expected (N, {channels}, {height}, {width}), "
                f"(N, {height}, {width}, {channels}) or (N, {height}, {width}), got {shape}"
            )
        pixels = np.frombuffer(member.read(), dtype).reshape(shape)
    if dtype.kind == "f":
        pixels = _in_range(pixels)
    if len(shape) == 3:
        return np.repeat(pixels[:, None], channels, axis=1)
    return np.ascontiguousarray(pixels.transpose(layouts[shape[1:]]))


def _check_names(archive: Archive) -> None:
    reasons = Reasons()
    for name in ("images", "labels"):
        if f"{name}.npy" not in archive.names:
            reasons.add(f"expected an array {name!r} in the NPZ, got none of that name")
    known = {f"{name}.npy" for name in _ARRAYS}
    for name in archive.names:
        if name not in known:
            reasons.add(f"expected only the arrays {', '.join(_ARRAYS)}, got {shown(name)}")
    reasons.settle()


def _read_images(archive: Archive, labels: NDArray[Any], asked: Asked) -> NDArray[np.uint8]:
    """(N, C, H, W) uint8, allocated once and filled block by block."""
    limits, resize, count = asked.limits, asked.options.resize, len(labels)
    with archive.open("images.npy") as member:
        shape, dtype = _read_header(member, "images")
        if dtype != np.uint8 and dtype.kind != "f":
            raise Rejected(f"images: expected uint8, or float in [0, 1], got {dtype}")
        shape, channels_last = _layout(shape)
        channels, height, width = (shape[3], *shape[1:3]) if channels_last else shape[1:]
        if shape[0] != count:
            raise Rejected(f"images: expected one for each of {count} labels, got {shape[0]}")
        if height * width > limits.pixels:
            raise Rejected(
                f"images: expected at most {limits.pixels} pixels each (ADAP_MAX_IMAGE_PIXELS), "
                f"got {width}x{height}"
            )
        asked.notes.sizes[height, width] += count
        rule = (
            None if resize is None or (resize.height, resize.width) == (height, width) else resize
        )
        if rule is not None:
            height, width = rule.height, rule.width
        decoded = count * channels * height * width
        if decoded > limits.decoded_bytes:
            raise Rejected(
                f"images: expected at most {limits.decoded_bytes} bytes as uint8, got {decoded}"
            )
        images = asked.room(labels, (count, channels, height, width))
        example_bytes = math.prod(shape[1:]) * dtype.itemsize
        step = max(1, _BLOCK_BYTES // example_bytes)
        for start in range(0, count, step):
            stop = min(start + step, count)
            block = np.frombuffer(member.read((stop - start) * example_bytes), dtype)
            pixels = _as_uint8(block.reshape(stop - start, *shape[1:]))
            pixels = pixels if channels_last else pixels.transpose(0, 2, 3, 1)
            if rule is not None:
                pixels = _resized(pixels, rule)
            images[start:stop] = pixels.transpose(0, 3, 1, 2)
            release(images)
            asked.on_progress(stop, count)
    return images


def _resized(pixels: NDArray[np.uint8], rule: Resize) -> NDArray[np.uint8]:
    """(N, H, W, C), image by image made the declared size."""
    grey = pixels.shape[3] == 1
    made = [resized(image[..., 0] if grey else image, rule) for image in pixels]
    stacked = np.stack(made)
    return stacked[..., None] if grey else stacked


def _layout(shape: tuple[int, ...]) -> tuple[tuple[int, ...], bool]:
    """The shape in four dimensions, and whether the channels come last."""
    expected = "images: expected (N, H, W, C) or (N, C, H, W) with C of 1 or 3, or (N, H, W)"
    if len(shape) not in (3, 4) or 0 in shape:
        raise Rejected(f"{expected}, none of them 0, got {shape}")
    if len(shape) == 3:
        return (shape[0], 1, *shape[1:]), False
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first and last:
        raise Rejected(f"{expected}; {shape} could be either: send larger images, or (N, H, W)")
    if not (first or last):
        raise Rejected(f"{expected}, got {shape}")
    return shape, last


def _as_uint8(block: NDArray[Any]) -> NDArray[np.uint8]:
    if block.dtype == np.uint8:
        return block
    levels: NDArray[np.uint8] = np.rint(_in_range(block) * 255).astype(np.uint8)
    return levels


def _in_range(block: NDArray[Any]) -> NDArray[np.float32]:
    """Floats in [0, 1], but for rounding; raises Rejected for others."""
    low, high = block.min(), block.max()
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # NaN fails both
        raise Rejected(
            f"images: expected floats in [0, 1], got values from {low:g} to {high:g}; "
            "undo the normalisation, or send uint8"
        )
    return block.astype(np.float32).clip(0, 1)


def _read_texts(archive: Archive, name: str, *, limits: IntakeLimits) -> list[str] | None:
    """An array of text, None where the NPZ has none of that name."""
    if f"{name}.npy" not in archive.names:
        return None
    return _texts(name, _read_values(archive, name, kinds="U", limits=limits))


def _read_values(
    archive: Archive, name: str, *, kinds: str, limits: IntakeLimits, most_dimensions: int = 1
) -> NDArray[Any]:
    """An array of one dimension or, where that may be, two; of these kinds of dtype."""
    with archive.open(f"{name}.npy") as member:
        shape, dtype = _read_header(member, name)
        if dtype.kind not in kinds:
            wanted = "text" if kinds == "U" else "whole numbers or text"
            raise Rejected(f"{name}: expected {wanted}, got {dtype}")
        if len(shape) == most_dimensions == 2:
            return _read_matrix(member, name, shape, dtype, limits=limits)
        if len(shape) != 1 or not 0 < shape[0] <= limits.entries:
            raise Rejected(f"{name}: expected one dimension of 1 to {limits.entries}, got {shape}")
        if dtype.kind == "U" and dtype.itemsize > 4 * MAX_NAME_CHARACTERS:
            raise Rejected(
                f"{name}: expected at most {MAX_NAME_CHARACTERS} characters, got {dtype}"
            )
        return np.frombuffer(member.read(), dtype)


def _read_matrix(
    member: Member, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, limits: IntakeLimits
) -> NDArray[np.uint8]:
    """(N, K) uint8 of 0 and 1, from whole numbers."""
    count, classes = shape
    if not (0 < count <= limits.entries and 0 < classes <= MAX_LABELS):
        raise Rejected(
            f"{name}: expected (N, K) of 1 to {limits.entries} images and 1 to {MAX_LABELS} "
            f"classes, got {shape}"
        )
    if dtype.kind not in "biu":
        raise Rejected(f"{name}: expected 0 and 1 in {shape}, got {dtype}")
    matrix = np.frombuffer(member.read(), dtype).reshape(shape)
    low, high = matrix.min(), matrix.max()
    if low < 0 or high > 1:
        raise Rejected(f"{name}: expected 0 and 1 in {shape}, got values from {low} to {high}")
    return matrix.astype(np.uint8)


def _read_header(member: Member, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an .npy, known to fit the bytes that follow."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            version = npy.read_magic(member)
            if version != (1, 0):  # 2.0 allows headers of 4 GB, and only structured types need it
                raise Rejected(f"{name}: expected the .npy format 1.0, got {version}")
            shape, fortran_order, dtype = npy.read_array_header_1_0(member)
    except (ValueError, TypeError, SyntaxError, RecursionError, Warning) as error:
        raise Rejected(f"{name}: expected a NumPy array, got {str(error)[:200]!r}") from error
    if dtype.hasobject:
        raise Rejected(
            f"{name}: expected numbers or text, got Python objects, which are a pickle and are "
            "never opened here"
        )
    if dtype.itemsize == 0:
        raise Rejected(
            f"{name}: expected values of some width, got {dtype}, which holds nothing: "
            "save the texts or numbers themselves"
        )
    if fortran_order:
        raise Rejected(f"{name}: expected rows first; save np.ascontiguousarray({name})")
    if len(shape) > 4 or any(type(n) is not int or n < 0 for n in shape):
        raise Rejected(f"{name}: expected at most 4 dimensions, got {str(shape)[:100]}")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted != member.left:
        raise Rejected(f"{name}: expected {wanted} bytes for {shape} {dtype}, got {member.left}")
    return shape, dtype


def _texts(name: str, array: NDArray[Any]) -> list[str]:
    try:
        return [unicodedata.normalize("NFC", text) for text in array.tolist()]
    except ValueError as error:  # four bytes a character can hold what is no character
        raise Rejected(f"{name}: expected text, got {error}") from error


def _name_columns(
    matrix: NDArray[np.uint8], names: Sequence[str] | None
) -> tuple[list[str], NDArray[np.uint8]]:
    """Names of the classes, one for each column."""
    if names is None or len(names) != matrix.shape[1]:
        got = "none" if names is None else str(len(names))
        raise Rejected(
            f"classes: expected a name for each of the {matrix.shape[1]} columns of labels, "
            f"got {got}"
        )
    _check_names_of_classes(names)
    return list(names), matrix


def _name_classes(
    raw: NDArray[Any], names: Sequence[str] | None
) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the classes, and each example's index into them."""
    if raw.dtype.kind == "U":
        classes, labels = _index_texts(_texts("labels", raw), names)
    elif names is None:
        numbers, labels = np.unique(
            raw.astype(int) if raw.dtype == bool else raw, return_inverse=True
        )
        classes = [str(number) for number in numbers.tolist()]
    else:
        classes, labels = list(names), raw
        low, high = int(raw.min()), int(raw.max())
        if low < 0 or high >= len(classes):
            raise Rejected(
                f"labels: expected indices from 0 to {len(classes) - 1} into classes, "
                f"got {low} to {high}"
            )
    _check_names_of_classes(classes)
    return classes, labels.astype(np.int64)


def _check_names_of_classes(classes: Sequence[str]) -> None:
    reasons = Reasons()
    if len(set(classes)) < len(classes):
        reasons.add("classes: expected each name once, got some again")
    for name in classes:
        problem = label_problem(name)
        if problem:
            reasons.add(f"classes: {problem}")
    reasons.settle()


def _index_texts(
    texts: Sequence[str], names: Sequence[str] | None
) -> tuple[list[str], NDArray[np.int64]]:
    classes = sorted(set(texts)) if names is None else list(names)
    position = {name: i for i, name in enumerate(classes)}
    reasons = Reasons()
    for text in sorted(set(texts) - set(classes)):
        reasons.add(f"labels: expected names among classes, got {shown(text)}")
    reasons.settle()
    return classes, np.array([position[text] for text in texts], np.int64)


def _splits(names: Sequence[str] | None, *, count: int) -> NDArray[np.int8] | None:
    if names is None:
        return None
    _check_each("split", names, count=count, problem_of=split_problem)
    splits = splits_of(set(names))
    return np.array([SPLITS.index(splits[name]) for name in names], np.int8)


def _names(
    archive: Archive,
    array: str,
    problem_of: Callable[[str], str | None],
    *,
    count: int,
    limits: IntakeLimits,
) -> list[str] | None:
    """A name for each example: a number is named by its digits, as a label is."""
    if f"{array}.npy" not in archive.names:
        return None
    raw = _read_values(archive, array, kinds="iuU", limits=limits)
    names = _texts(array, raw) if raw.dtype.kind == "U" else [str(n) for n in raw.tolist()]
    _check_each(array, names, count=count, problem_of=problem_of)
    return names


def _check_each(
    array: str, names: Sequence[str], *, count: int, problem_of: Callable[[str], str | None]
) -> None:
    """One name for each example, and nothing wrong with any of them."""
    if len(names) != count:
        raise Rejected(f"{array}: expected one for each of {count} labels, got {len(names)}")
    reasons = Reasons()
    for name in dict.fromkeys(names):
        problem = problem_of(name)
        if problem:
            reasons.add(f"{array}: {problem}")
    reasons.settle()
