"""NPZ data sets: `images`, `labels`, and optionally `classes`, `split`, `groups`, `clusters`.

Or an array of each for each split, as `train_images`, `train_labels`, `test_images` (MedMNIST) or
`x_train`, `y_train` (Keras); or `X` and `y`; or whatever the options call them.

images: (N, H, W, C), (N, C, H, W) or (N, H, W), C of 1 or 3; uint8, whole numbers from 0 to 255,
bool (black and white), or float in [0, 1], which is rounded to 256 levels and may not be dark
overall; or numbers of any range, with `levels`.
labels: (N,) or (N, 1) whole numbers or text; or (N, K) of 0 and 1, a column for each of K classes,
where an image may have several. Without names for the columns they are called by their numbers,
and where each row has one 1, an image has one label.
classes: names of the classes; labels are then indices into them, or some of them, or columns in
their order.  split: (N,) text.  groups, clusters: (N,) whole numbers or text.

Each array's header is read first and checked against the size of its member, so that memory is
taken only for numbers that are there. Arrays of objects are pickles: refused, never opened.
"""

import math
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from adap.core.config.base import SPLITS, Split
from adap.core.config.data import Levels, Resize
from adap.core.datasets import ImageSet, release
from adap.models.header import shown
from adap.worker.intake.archive import Archive, Member
from adap.worker.intake.asked import Asked
from adap.worker.intake.columns import SYNONYMS, note_folds
from adap.worker.intake.counts import MAX_LABELS, check_counts
from adap.worker.intake.images import natural_levels, resized, scaled
from adap.worker.intake.limits import IntakeLimits, Reasons, Rejected
from adap.worker.intake.names import (
    MAX_NAME_CHARACTERS,
    cluster_problem,
    group_problem,
    label_problem,
)
from adap.worker.intake.notes import Notes, counted, listed
from adap.worker.intake.splits import (
    chooses_a_split,
    meant_split,
    refuse_codes,
    rest_of,
    split_problem,
    splits_of,
)

_BLOCK_BYTES = 8 * 1024**2  # images are converted this much at a time
_MATRIX_BYTES = 256 * 1024**2  # of labels in two dimensions: as many images and classes as may be
_CHANNELS = (1, 3)
_IMAGES = ("images", "image", "imgs", "img", "x", "data", "pixels")
_LABELS = ("labels", "label", "y", "targets", "target")
_OTHERS = {
    "classes": ("classes", "class_names", "label_names", "target_names", "names", "list_classes"),
    "split": ("split", *SYNONYMS["split"]),
    "groups": ("groups", "group"),
    "clusters": ("clusters", "cluster"),
}
_DARK = 0.5  # floats that stay below lose more than a bit of the eight that are kept, as 16 bits do
_SLACK = 1e-4  # float images that were resized overshoot [0, 1] by rounding; a level is 4e-3


def is_arrays(archive: Archive) -> bool:
    """Whether a zip is an NPZ: arrays at its top, whatever else it holds."""
    return any(name.endswith(".npy") and "/" not in name for name in archive.names)


@dataclass(frozen=True)
class _Part:
    """Arrays that belong together: all images, or those of one split."""

    images: str
    labels: str
    split: Split | None = None


def read_arrays(archive: Archive, asked: Asked) -> ImageSet:
    """The data set in an NPZ; raises Rejected for all that is not as described above."""
    limits, notes = asked.limits, asked.notes
    parts, others = _find_arrays(archive, asked)
    names = None
    if "classes" in others:
        names = _read_texts(archive, others["classes"], limits=limits)
    raw = [_read_labels(archive, part.labels, names, limits=limits, notes=notes) for part in parts]
    whole = _joined(raw, parts)
    if whole.ndim == 2 and names is None:
        whole, names = _without_names(whole, notes)
    classes, labels = (
        _name_columns(whole, names) if whole.ndim == 2 else _name_classes(whole, names)
    )
    count = len(labels)
    if parts[0].split is not None:
        declared = [SPLITS.index(part.split) for part in parts if part.split is not None]
        splits = np.repeat(np.array(declared, np.int8), [len(array) for array in raw])
    elif "split" in others:
        splits = _splits(_read_texts(archive, others["split"], limits=limits), count=count)
    else:
        splits = None
    groups = _names(archive, others.get("groups"), group_problem, count=count, limits=limits)
    clusters = _names(archive, others.get("clusters"), cluster_problem, count=count, limits=limits)
    check_counts(classes, labels, splits=splits, groups=groups)
    digits = len(str(count - 1))
    return ImageSet(
        images=_read_images(archive, parts, [len(array) for array in raw], labels, asked),
        labels=labels,
        classes=classes,
        example_ids=[f"{i:0{digits}d}" for i in range(count)],
        splits=splits,
        groups=groups,
        clusters=clusters,
    )


def _find_arrays(archive: Archive, asked: Asked) -> tuple[list[_Part], dict[str, str]]:
    """Which arrays are the images and labels, and which is what else, by the names they have."""
    notes, options = asked.notes, asked.options
    arrays = [name.removesuffix(".npy") for name in archive.names if name.endswith(".npy")]
    others = {}
    for meaning, names in _OTHERS.items():
        option = {"split": "split", "groups": "group", "clusters": "cluster"}.get(meaning)
        wanted = None if option is None else getattr(options, f"{option}_column")
        found = [wanted] if wanted else [name for name in names if name in arrays][:1]
        if found:
            others[meaning] = found[0]
    parts = _parts_of_splits(arrays)
    if options.image_column is not None or options.label_column is not None or not parts:
        images = options.image_column or _first(arrays, _IMAGES)
        labels = options.label_column or _first(arrays, _LABELS)
        parts = [_Part(images, labels)]
    missing = [
        name
        for part in parts
        for name in (part.images, part.labels, *others.values())
        if name not in arrays
    ]
    reasons = Reasons()
    for name in dict.fromkeys(missing):
        reasons.add(
            f"expected an array {name!r} in the NPZ, got {listed(arrays)}: name yours with "
            "`image_column` and `label_column` (--image-column, --label-column); parts such as "
            "train_images and train_labels are joined by their names"
        )
    reasons.settle()
    if parts[0].split is not None:
        notes.step("splits from arrays " + listed([part.images for part in parts]))
    elif (parts[0].images, parts[0].labels) != ("images", "labels"):
        notes.step(f"images from {shown(parts[0].images)}, labels from {shown(parts[0].labels)}")
    read = {name for part in parts for name in (part.images, part.labels)} | {*others.values()}
    unread = [name for name in archive.names if name.removesuffix(".npy") not in read]
    if "split" not in others and not _parts_of_splits(arrays):
        _refuse_choosing(unread)
    like_parts: set[str] = set()
    if parts[0].split is not None:
        like_parts = _like_parts([name.removesuffix(".npy") for name in unread])
    note_folds([name.removesuffix(".npy") for name in unread], notes)
    if unread:
        more = (
            f"; if {listed(sorted(like_parts))} should be: name the split, as train_images does"
            if like_parts
            else ""
        )
        notes.fact(
            "caution" if like_parts else "info",
            "other_arrays",
            f"{counted(len(unread), 'array')} not read: {listed(unread)}{more}",
            arrays=len(unread),
        )
    return parts, others


def _refuse_choosing(unread: Sequence[str]) -> None:
    """Raise Rejected for arrays that are not read and say by their names which split is where."""
    names = [name.removesuffix(".npy") for name in unread]
    if choosing := [name for name in names if chooses_a_split(name)]:
        raise Rejected(
            f"expected the split of each image as text in an array `split`, got {listed(choosing)}:"
            f" write it, for example split = np.where(is_train, 'train', 'test'), or leave "
            f"{'it' if len(choosing) == 1 else 'them'} out"
        )


def _like_parts(unread: Sequence[str]) -> set[str]:
    """Arrays that are not read and may be a part: images and labels of one name, or half of one.

    Raises Rejected where both halves are there, of one misspelt split: `x_trian` and `y_trian`.
    """
    halves: dict[str, dict[str, str]] = {}
    for name in unread:
        words = name.lower().split("_")
        for role, names in (("images", _IMAGES), ("labels", _LABELS)):
            if len(words) > 1 and not set(names).isdisjoint(words):
                rest = "_".join(word for word in words if word not in names)
                halves.setdefault(rest, {}).setdefault(role, name)
    misspelt = {rest for rest in halves if meant_split(rest)}
    found = {
        rest: set(roles.values())
        for rest, roles in halves.items()
        if len(roles) == 2 or rest in misspelt
    }
    parts = sorted(
        name for rest in misspelt if len(halves[rest]) == 2 for name in halves[rest].values()
    )
    if parts:
        raise Rejected(
            f"expected parts that name their split, such as train_images and train_labels, got "
            f"{listed(parts)} beside some that do, as if misspelt: rename them, leave out what "
            "shall not be read, or name the images and labels that alone shall be, with "
            "`image_column` and `label_column` (--image-column, --label-column)"
        )
    return {name for names in found.values() for name in names}


def _first(arrays: Sequence[str], names: Sequence[str]) -> str:
    """The array with the first of these names, in any case; the documented name where none has."""
    for name in names:
        for array in arrays:
            if array.lower() == name:
                return array
    return names[0]


def _parts_of_splits(arrays: Sequence[str]) -> list[_Part]:
    """The parts that names of arrays tell apart: `train_images` and `train_labels`, `x_test` …"""
    found: dict[Split, dict[str, str]] = {}
    if {"images", "labels"} <= set(arrays):  # as documented
        return []
    splits = splits_of(arrays)
    for array in arrays:
        words = array.lower().split("_")
        for candidate in (rest_of(array), words[0], words[-1]):
            role = "images" if candidate in _IMAGES else "labels" if candidate in _LABELS else None
            if role is not None and array in splits:
                found.setdefault(splits[array], {}).setdefault(role, array)
                break
    return [
        _Part(found[split]["images"], found[split]["labels"], split)
        for split in get_args(Split)
        if len(found.get(split, ())) == 2
    ]


def _joined(raw: Sequence[NDArray[Any]], parts: Sequence[_Part]) -> NDArray[Any]:
    shapes = {array.shape[1:] for array in raw}
    if len(shapes) > 1:
        raise Rejected(
            f"expected labels of one shape in all parts, got {listed([p.labels for p in parts])} "
            f"with {', '.join(str(array.shape) for array in raw)}"
        )
    return np.concatenate(raw) if len(raw) > 1 else raw[0]


def _read_labels(
    archive: Archive,
    name: str,
    names: Sequence[str] | None,
    *,
    limits: IntakeLimits,
    notes: Notes,
) -> NDArray[Any]:
    """(N,) whole numbers or text, or (N, K) uint8 of 0 and 1."""
    raw = _read_values(archive, name, kinds="biufSU", limits=limits, most_dimensions=2)
    if raw.ndim == 2 and raw.shape[1] == 1 and (names is None or len(names) != 1):
        notes.step(f"{shown(name)} of shape {raw.shape} is one label an image")
        raw = raw[:, 0]
    if raw.ndim == 2 and raw.shape[0] == 1 < raw.shape[1]:
        raise Rejected(f"{name}: expected (N,) or (N, K), got {raw.shape}: send {name}.reshape(-1)")
    if raw.dtype.kind == "f":
        if not np.isfinite(raw).all() or (raw != np.rint(raw)).any() or np.abs(raw).max() > 2**53:
            missing = bool(np.isnan(raw).any())
            raise Rejected(
                f"{name}: expected whole numbers or text, got {raw.dtype} with "
                + (
                    "NaN: leave images without a label out"
                    if missing
                    else "fractions: write the class of each image, for example labels.argmax(1)"
                )
            )
        raw = raw.astype(np.int64)
    if raw.ndim == 1:
        return raw
    low, high = raw.min(), raw.max()
    if low < 0 or high > 1:
        raise Rejected(f"{name}: expected 0 and 1 in {raw.shape}, got values from {low} to {high}")
    return np.asarray(raw.astype(np.uint8))


def _without_names(
    matrix: NDArray[np.uint8], notes: Notes
) -> tuple[NDArray[Any], list[str] | None]:
    """(N,) of a matrix of 0 and 1 that has one label a row; else the matrix, and names for it."""
    if (matrix.sum(axis=1, dtype=np.int64) == 1).all():
        notes.step(f"labels of shape {matrix.shape} have a single 1 a row: one label an image")
        return np.asarray(matrix.argmax(axis=1).astype(np.int64)), None
    notes.step(
        f"labels of shape {matrix.shape}: any number of labels for each image, of classes called "
        "by the numbers of their columns, as there is no array `classes`"
    )
    return matrix, [str(k) for k in range(matrix.shape[1])]


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
        pixels = _in_range(pixels, "images")
    if len(shape) == 3:
        return np.repeat(pixels[:, None], channels, axis=1)
    return np.ascontiguousarray(pixels.transpose(layouts[shape[1:]]))


def _read_images(
    archive: Archive,
    parts: Sequence[_Part],
    counts: Sequence[int],
    labels: NDArray[Any],
    asked: Asked,
) -> NDArray[np.uint8]:
    """(N, C, H, W) uint8, allocated once and filled block by block, part after part."""
    images: NDArray[np.uint8] | None = None
    start = 0
    for part, count in zip(parts, counts, strict=True):
        with archive.open(f"{part.images}.npy") as member:
            for block in _blocks(member, part, count, len(labels), asked):
                if images is None:
                    images = asked.room(labels, (len(labels), *block.shape[1:]))
                if block.shape[1:] != images.shape[1:]:
                    raise Rejected(
                        f"{part.images}: expected images as in {parts[0].images}, of channels, "
                        f"height and width {images.shape[1:]}, got {block.shape[1:]}"
                    )
                images[start : start + len(block)] = block
                release(images)
                start += len(block)
                asked.on_progress(start, len(labels))
    assert images is not None
    return images


def _blocks(
    member: Member, part: _Part, count: int, total: int, asked: Asked
) -> Iterator[NDArray[np.uint8]]:
    """(n, C, H, W) uint8 of one array of images, in turn."""
    limits, rule, name = asked.limits, asked.options.resize, part.images
    shape, dtype = _read_header(member, name)
    if dtype.kind not in "iufb":
        files = dtype.kind in "SUV"
        raise Rejected(
            f"{name}: expected uint8, or float in [0, 1], got {dtype}"
            + (": decode the images, or send their files as a zip or Parquet" if files else "")
        )
    shape, channels_last = _layout(shape, name)
    channels, height, width = (shape[3], *shape[1:3]) if channels_last else shape[1:]
    if shape[0] != count:
        raise Rejected(f"{name}: expected one for each of {count} labels, got {shape[0]}")
    if height * width > limits.pixels:
        raise Rejected(
            f"{name}: expected at most {limits.pixels} pixels each (ADAP_MAX_IMAGE_PIXELS), "
            f"got {width}x{height}"
        )
    asked.notes.sizes[height, width] += count
    if rule is not None and (rule.height, rule.width) != (height, width):
        height, width = rule.height, rule.width
    else:
        rule = None
    decoded = total * channels * height * width
    if decoded > limits.decoded_bytes:
        raise Rejected(
            f"{name}: expected at most {limits.decoded_bytes} bytes as uint8, got {decoded}"
        )
    if dtype.kind == "b":
        asked.notes.step(f"{shown(name)} of bool is black and white")
    example_bytes = math.prod(shape[1:]) * dtype.itemsize
    step = max(1, _BLOCK_BYTES // example_bytes)
    high = 0.0
    for start in range(0, count, step):
        stop = min(start + step, count)
        block = np.frombuffer(member.read((stop - start) * example_bytes), dtype)
        high = max(high, block.max().item())
        pixels = _as_uint8(block.reshape(stop - start, *shape[1:]), name, asked.options.levels)
        pixels = pixels if channels_last else pixels.transpose(0, 2, 3, 1)
        if rule is not None:
            pixels = _resized(pixels, rule)
        yield pixels.transpose(0, 3, 1, 2)
    if dtype.kind == "f" and asked.options.levels is None and high < _DARK:
        raise Rejected(
            f"{name}: expected floats that use [0, 1], got none above {high:.4g}: only "
            f"{round(high * 255) + 1} of 256 grey levels would be left; say which values become "
            f"black and white with `levels`, for example --levels 0:{high or 1:.4g} for the range "
            "that is used, or --levels 0:1"
        )


def _resized(pixels: NDArray[np.uint8], rule: Resize) -> NDArray[np.uint8]:
    """(N, H, W, C), image by image made the declared size."""
    grey = pixels.shape[3] == 1
    made = [resized(image[..., 0] if grey else image, rule) for image in pixels]
    stacked = np.stack(made)
    return stacked[..., None] if grey else stacked


def _layout(shape: tuple[int, ...], name: str) -> tuple[tuple[int, ...], bool]:
    """The shape in four dimensions, and whether the channels come last."""
    expected = f"{name}: expected (N, H, W, C) or (N, C, H, W) with C of 1 or 3, or (N, H, W)"
    if len(shape) not in (3, 4) or 0 in shape:
        raise Rejected(f"{expected}, none of them 0, got {shape}{_reshaped(shape, name)}")
    if len(shape) == 3:
        return (shape[0], 1, *shape[1:]), False
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first and last:
        raise Rejected(f"{expected}; {shape} could be either: send larger images, or (N, H, W)")
    if not (first or last):
        raise Rejected(f"{expected}, got {shape}{_reshaped(shape, name)}")
    return shape, last


def _reshaped(shape: tuple[int, ...], name: str) -> str:
    """What makes images of an array of another shape, where that can be told."""
    match shape:
        case (_, pixels) if (side := math.isqrt(pixels)) ** 2 == pixels > 0:
            return f": send {name}.reshape(-1, {side}, {side})"
        case (_, values) if (
            values % 3 == 0 and (side := math.isqrt(values // 3)) ** 2 * 3 == values
        ):
            return (
                f": send {name}.reshape(-1, 3, {side}, {side}), or (-1, {side}, {side}, 3), as "
                "they were made flat"
            )
        case (_, _, 1 | 3, _):
            return f": send np.ascontiguousarray({name}.transpose(3, 0, 1, 2))"
        case (_, _, _, 4):
            return f": leave the fourth channel out, {name}[..., :3]"
        case (_, 4, _, _):
            return f": leave the fourth channel out, {name}[:, :3]"
        case (_, _, _, _):
            return ": of volumes, send slices"
    return ""


def _as_uint8(block: NDArray[Any], name: str, levels: Levels | None) -> NDArray[np.uint8]:
    if levels is not None and block.dtype != np.uint8:
        if block.dtype.kind == "f" and not np.isfinite(block).all():
            raise Rejected(f"{name}: expected finite numbers, got NaN or infinity")
        return scaled(block, levels)
    if block.dtype == np.uint8:
        return block
    if block.dtype.kind == "b":
        # any byte but 0 is true, whoever wrote it
        white: NDArray[np.uint8] = np.where(block.view(np.uint8) != 0, 255, 0).astype(np.uint8)
        return white
    if block.dtype.kind == "f":
        made: NDArray[np.uint8] = np.rint(_in_range(block, name) * 255).astype(np.uint8)
        return made
    low, high = int(block.min()), int(block.max())
    if low < 0 or high > 255:
        raise Rejected(
            f"{name}: expected uint8, or whole numbers from 0 to 255, got {block.dtype} from {low} "
            f"to {high}: say which values become black and white with `levels`, for example "
            f"--levels {natural_levels(low, high)}"
        )
    return block.astype(np.uint8)


def _in_range(block: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Floats in [0, 1], but for rounding; raises Rejected for others."""
    low, high = block.min(), block.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise Rejected(
            f"{name}: expected floats in [0, 1], got NaN or infinity: leave these images out, or "
            "write what the pixels should be"
        )
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise Rejected(
            f"{name}: expected floats in [0, 1], got values from {low:g} to {high:g}; "
            "undo the normalisation, send uint8, or say which values become black and white with "
            f"`levels`, for example --levels {natural_levels(low, high)}"
        )
    return block.astype(np.float32).clip(0, 1)


def _read_texts(archive: Archive, name: str, *, limits: IntakeLimits) -> list[str]:
    """An array of text."""
    return _texts(name, _read_values(archive, name, kinds="SU", limits=limits))


def _read_values(
    archive: Archive, name: str, *, kinds: str, limits: IntakeLimits, most_dimensions: int = 1
) -> NDArray[Any]:
    """An array of one dimension or, where that may be, two; of these kinds of dtype."""
    with archive.open(f"{name}.npy") as member:
        shape, dtype = _read_header(member, name)
        if dtype.kind not in kinds:
            wanted = "text" if kinds == "SU" else "whole numbers or text"
            instead = ": write it as an array of str" if kinds == "SU" else ""
            raise Rejected(f"{name}: expected {wanted}, got {dtype}{instead}")
        if len(shape) == most_dimensions == 2:
            return _read_matrix(member, name, shape, dtype, limits=limits)
        if len(shape) != 1 or not 0 < shape[0] <= limits.entries:
            instead = (
                ": leave masks out, and write the class of each image" if len(shape) > 1 else ""
            )
            if len(shape) > 1 and math.prod(shape) == shape[0]:
                instead = f": send {name}.reshape(-1)"
            raise Rejected(
                f"{name}: expected one dimension of 1 to {limits.entries}, got {shape}{instead}"
            )
        most = 4 * MAX_NAME_CHARACTERS  # bytes: of UTF-32, and of UTF-8 at its longest
        if dtype.kind in "SU" and dtype.itemsize > most:
            raise Rejected(
                f"{name}: expected at most {MAX_NAME_CHARACTERS} characters, got {dtype}"
            )
        return np.frombuffer(member.read(), dtype)


def _read_matrix(
    member: Member, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, limits: IntakeLimits
) -> NDArray[Any]:
    """(N, K) numbers, or text where K is 1."""
    count, classes = shape
    if not (0 < count <= limits.entries and 0 < classes <= MAX_LABELS):
        raise Rejected(
            f"{name}: expected (N, K) of 1 to {limits.entries} images and 1 to {MAX_LABELS} "
            f"classes, got {shape}"
        )
    if member.left > _MATRIX_BYTES:
        raise Rejected(
            f"{name}: expected at most {_MATRIX_BYTES} bytes, got {member.left}: send uint8 or bool"
        )
    if classes > 1 and dtype.kind not in "biuf":
        raise Rejected(f"{name}: expected 0 and 1 in {shape}, got {dtype}")
    return np.frombuffer(member.read(), dtype).reshape(shape)


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
            "never opened here: save np.stack of images of one size, or texts as "
            "np.array(list, dtype=str)"
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
    if array.dtype.kind == "U":  # of which numpy makes texts that Python cannot handle
        codes = np.ascontiguousarray(array).reshape(-1).view(f"{array.dtype.byteorder}u4")
        if (codes > sys.maxunicode).any():
            raise Rejected(f"{name}: expected text, got numbers that are no characters")
    try:
        texts = array.tolist()
        if array.dtype.kind == "S":
            texts = [text.decode() for text in texts]
        return [unicodedata.normalize("NFC", text) for text in texts]
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
    if raw.dtype.kind in "SU":
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
                f"got {low} to {high}{': count from 0' if (low, high) == (1, len(classes)) else ''}"
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


def _splits(names: Sequence[str], *, count: int) -> NDArray[np.int8]:
    refuse_codes("split", names)
    _check_each("split", names, count=count, problem_of=split_problem)
    splits = splits_of(set(names))
    return np.array([SPLITS.index(splits[name]) for name in names], np.int8)


def _names(
    archive: Archive,
    array: str | None,
    problem_of: Callable[[str], str | None],
    *,
    count: int,
    limits: IntakeLimits,
) -> list[str] | None:
    """A name for each example: a number is named by its digits, as a label is."""
    if array is None:
        return None
    raw = _read_values(archive, array, kinds="iuSU", limits=limits)
    names = _texts(array, raw) if raw.dtype.kind in "SU" else [str(n) for n in raw.tolist()]
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
