"""From an uploaded file to an `ImageSet`, or to every reason why not."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adap.core.config import SPLITS, Resize
from adap.core.datasets import ImageSet, release
from adap.models.formats import EDGE_BYTES, describe
from adap.worker.intake.archive import Archive
from adap.worker.intake.arrays import is_arrays, read_arrays
from adap.worker.intake.counts import check_class_count, check_counts, label_matrix
from adap.worker.intake.decoding import (
    MAX_SIZES,
    RELEASE_BYTES,
    File,
    Room,
    Shape,
    Sizes,
    decode_all,
)
from adap.worker.intake.folders import arrange
from adap.worker.intake.limits import IntakeLimits, Rejected

PARQUET_MAGIC = b"PAR1"


def in_memory(_: NDArray[Any], shape: Shape) -> NDArray[np.uint8]:
    """Room for a small data set."""
    return np.empty(shape, np.uint8)


def read_dataset(
    path: Path,
    *,
    limits: IntakeLimits,
    on_progress: Callable[[int, int], None],
    resize: Resize | None = None,
    sizes: Sizes | None = None,
    room: Room = in_memory,
) -> ImageSet:
    """Open what somebody sent as a data set: a zip of images, an NPZ or Parquet, by its content.

    `on_progress(done, total)` counts images; it is called at least every hundred images.
    `resize` makes images of any size one size; `sizes` is told in which sizes they came; `room`
    says where the pixels go, for example `adap.core.datasets.Draft.room`.
    Raises Rejected with up to 100 reasons.
    """
    size = path.stat().st_size
    sizes = Counter() if sizes is None else sizes
    if size > limits.archive_bytes:
        raise Rejected(f"expected a file of at most {limits.archive_bytes} bytes, got {size}")
    options: dict[str, Any] = {
        "limits": limits,
        "resize": resize,
        "sizes": sizes,
        "room": room,
        "on_progress": on_progress,
    }
    if _kind(path, size) == "parquet":
        from adap.worker.intake.parquet import read_parquet  # pyarrow takes a while to start

        return read_parquet(path, **options)
    with Archive(path, limits=limits) as archive:
        read = read_arrays if is_arrays(archive) else _read_folders
        return read(archive, **options)


def summarise(
    image_set: ImageSet, *, sizes: Sizes | None = None, resize: Resize | None = None
) -> dict[str, Any]:
    """What a data set holds, as plain JSON: counts, sizes and how many images are repeated.

    `duplicates` counts the images whose pixels were seen before in the data set.
    """
    count, channels, height, width = image_set.images.shape
    splits, split_examples, groups = None, {}, image_set.groups
    if image_set.splits is not None:
        members = {
            split: image_set.splits == i
            for i, split in enumerate(SPLITS)
            if image_set.has_split(split)
        }
        splits = {split: image_set.class_counts(mask) for split, mask in members.items()}
        split_examples = {split: int(mask.sum()) for split, mask in members.items()}
    classes = image_set.class_counts()
    came = sizes or Counter({(height, width): count})
    return {
        "examples": count,
        "multilabel": image_set.multilabel,
        "classes": classes,
        "prevalence": {name: of_class / count for name, of_class in classes.items()},
        "splits": splits,
        "split_examples": split_examples,
        "groups": None if groups is None else dict(sorted(Counter(groups).items())),
        "channels": channels,
        "height": height,
        "width": width,
        "sizes": {f"{w}x{h}": number for (h, w), number in came.most_common(MAX_SIZES)},
        "resize": None if resize is None else resize.as_json(),
        **_repeated(image_set),
    }


def _repeated(image_set: ImageSet) -> dict[str, int | None]:
    """How many images were seen before, and how many of these with other labels or elsewhere."""
    first: dict[bytes, int] = {}
    duplicates = conflicting = across = 0
    for i, image in _alike(image_set.images):
        earlier = first.setdefault(blake2b(image.tobytes(), digest_size=16).digest(), i)
        if earlier == i:
            continue
        duplicates += 1
        conflicting += bool((image_set.labels[earlier] != image_set.labels[i]).any())
        if image_set.splits is not None:
            across += bool(image_set.splits[earlier] != image_set.splits[i])
    return {
        "duplicates": duplicates,
        "conflicting": conflicting,
        "across_splits": None if image_set.splits is None else across,
    }


def _alike(images: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Every image that may equal another one, with its index, in their order.

    A weighted sum of an image's bytes, modulo 2^64, is far cheaper than a digest of each, and is
    the same for equal images. That images were made to share one costs time and changes nothing.
    """
    count, size = len(images), images[0].size
    flat = images.reshape(count, size)
    weights = np.random.default_rng(0).integers(1, 2**64, size // 8 + size % 8, np.uint64)
    sums = np.empty(count, np.uint64)
    whole = size // 8 * 8
    step = max(1, RELEASE_BYTES // size)
    for start in range(0, count, step):
        block = flat[start : start + step]
        words, rest = block[:, :whole].view(np.uint64), block[:, whole:].astype(np.uint64)
        sums[start : start + step] = words @ weights[: size // 8] + rest @ weights[size // 8 :]
        release(images)
    _, group, members = np.unique(sums, return_inverse=True, return_counts=True)
    for n, i in enumerate(np.flatnonzero(members[group] > 1).tolist(), start=1):
        yield i, images[i]
        if n % step == 0:
            release(images)


def _kind(path: Path, size: int) -> Literal["zip", "parquet"]:
    with path.open("rb") as file:
        head = file.read(EDGE_BYTES)
        file.seek(max(0, size - EDGE_BYTES))
        tail = file.read()
    if head.startswith(b"PK"):
        return "zip"
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    raise Rejected(
        f"expected a zip of class folders, an NPZ or Parquet, got {describe(head, tail)}"
    )


def _read_folders(
    archive: Archive,
    *,
    limits: IntakeLimits,
    resize: Resize | None,
    sizes: Sizes,
    room: Room,
    on_progress: Callable[[int, int], None],
) -> ImageSet:
    examples, multilabel = arrange(archive)
    named = [example.labels for example in examples]
    classes = sorted({name for names in named for name in names})
    labels: NDArray[np.int64] | NDArray[np.uint8]
    if multilabel:
        check_class_count(classes, examples=len(examples))
        labels = label_matrix(named, classes)
    else:
        position = {name: i for i, name in enumerate(classes)}
        labels = np.array([position[name] for (name,) in named], np.int64)
    declared = [SPLITS.index(example.split) for example in examples if example.split is not None]
    splits = np.array(declared, np.int8) if declared else None
    groups = [example.group for example in examples if example.group is not None] or None
    check_counts(classes, labels, splits=splits, groups=groups)
    return ImageSet(
        images=decode_all(
            (
                File(name, archive.size(name), partial(archive.read, name))
                for name in (example.name for example in examples)
            ),
            len(examples),
            limits=limits,
            resize=resize,
            sizes=sizes,
            allocate=partial(room, labels),
            on_progress=on_progress,
        ),
        labels=labels,
        classes=classes,
        example_ids=[example.example_id for example in examples],
        splits=splits,
        groups=groups,
    )
