"""From an uploaded file to an `ImageSet`, or to every reason why not."""

from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.config import SPLITS
from core.datasets import ImageSet
from models.formats import EDGE_BYTES, describe
from models.header import shown
from worker.intake.archive import Archive
from worker.intake.arrays import is_arrays, read_arrays
from worker.intake.counts import check_counts, class_counts
from worker.intake.folders import Example, arrange
from worker.intake.images import UnusableImageError, decode, strict_decoding
from worker.intake.limits import IntakeLimits, Reasons, Rejected

_PROGRESS_EVERY = 100


def read_dataset(
    path: Path, *, limits: IntakeLimits, on_progress: Callable[[int, int], None]
) -> ImageSet:
    """Open what somebody sent as a data set: a zip of images or an NPZ, told by its content.

    `on_progress(done, total)` counts images; it is called every hundred images or more.
    Raises Rejected with up to 100 reasons.
    """
    size = path.stat().st_size
    if size > limits.archive_bytes:
        raise Rejected(f"expected a file of at most {limits.archive_bytes} bytes, got {size}")
    _check_is_zip(path, size)
    with Archive(path, limits=limits) as archive:
        read = read_arrays if is_arrays(archive) else _read_folders
        return read(archive, limits=limits, on_progress=on_progress)


def summarise(image_set: ImageSet) -> dict[str, Any]:
    """What a data set holds, as plain JSON: counts, sizes and how many images are repeated.

    `duplicates` counts the images whose pixels were seen before in the data set.
    """
    count, channels, height, width = image_set.images.shape
    different = {blake2b(image.tobytes(), digest_size=16).digest() for image in image_set.images}
    splits, groups = None, image_set.groups
    if image_set.splits is not None:
        splits = {
            split: class_counts(image_set.classes, image_set.labels[image_set.splits == i])
            for i, split in enumerate(SPLITS)
            if image_set.has_split(split)
        }
    return {
        "examples": count,
        "classes": class_counts(image_set.classes, image_set.labels),
        "splits": splits,
        "groups": None if groups is None else dict(sorted(Counter(groups).items())),
        "channels": channels,
        "height": height,
        "width": width,
        "duplicates": count - len(different),
    }


def _check_is_zip(path: Path, size: int) -> None:
    with path.open("rb") as file:
        head = file.read(EDGE_BYTES)
        if head.startswith(b"PK"):
            return
        file.seek(max(0, size - EDGE_BYTES))
        tail = file.read()
    raise Rejected(f"expected a zip of class folders or an NPZ, got {describe(head, tail)}")


def _read_folders(
    archive: Archive, *, limits: IntakeLimits, on_progress: Callable[[int, int], None]
) -> ImageSet:
    examples = arrange(archive)
    classes = sorted({example.label for example in examples})
    position = {name: i for i, name in enumerate(classes)}
    labels = np.array([position[example.label] for example in examples], np.int64)
    declared = [SPLITS.index(example.split) for example in examples if example.split is not None]
    splits = np.array(declared, np.int8) if declared else None
    groups = [example.group for example in examples if example.group is not None] or None
    check_counts(classes, labels, splits=splits, groups=groups)
    return ImageSet(
        images=_decode_all(archive, examples, limits=limits, on_progress=on_progress),
        labels=labels,
        classes=classes,
        example_ids=[example.example_id for example in examples],
        splits=splits,
        groups=groups,
    )


def _decode_all(
    archive: Archive,
    examples: Sequence[Example],
    *,
    limits: IntakeLimits,
    on_progress: Callable[[int, int], None],
) -> NDArray[np.uint8]:
    """(N, C, H, W) of all examples, one by one.

    In one thread: Pillow spends most of the time of a small image in Python, so that a second
    thread makes it slower.
    """
    reasons = Reasons()
    stack = _Stack(len(examples), limits)
    sizes: Counter[tuple[int, ...]] = Counter()
    first_of_size: dict[tuple[int, ...], str] = {}
    with strict_decoding():
        for done, example in enumerate(examples, start=1):
            try:
                pixels = decode(archive.read(example.name), max_pixels=limits.pixels)
            except UnusableImageError as error:
                reasons.add(f"{shown(example.name)}: {error}")
            except Rejected as error:
                reasons.add(str(error))
            else:
                size = pixels.shape[:2]
                sizes[size] += 1
                first_of_size.setdefault(size, example.name)
                if len(sizes) == 1:
                    stack.put(done - 1, pixels)
            if done % _PROGRESS_EVERY == 0 or done == len(examples):
                on_progress(done, len(examples))
    if len(sizes) > 1:
        for (height, width), count in sizes.most_common():
            reasons.add(
                f"expected images of one size, got {count} of {width}x{height} (width x height), "
                f"for example {shown(first_of_size[height, width])}"
            )
    reasons.settle()
    return stack.images


class _Stack:
    """(N, C, H, W) uint8, allocated when the first image tells H and W.

    It is grey until an image in colour comes: only then are there three channels for all.
    """

    images: NDArray[np.uint8]

    def __init__(self, count: int, limits: IntakeLimits) -> None:
        self._limits = limits
        self.images = np.empty((count, 0, 0, 0), np.uint8)

    def put(self, index: int, pixels: NDArray[np.uint8]) -> None:
        """Set one image from (H, W) or (H, W, 3)."""
        channels = 1 if pixels.ndim == 2 else 3
        if self.images.size == 0:
            self._allocate(channels, *pixels.shape[:2])
        elif channels > self.images.shape[1]:
            grey = self.images
            self._allocate(channels, *pixels.shape[:2])
            self.images[:index] = grey[:index]
        self.images[index] = pixels if channels == 1 else pixels.transpose(2, 0, 1)

    def _allocate(self, channels: int, height: int, width: int) -> None:
        shape = (len(self.images), channels, height, width)
        wanted = int(np.prod(shape, dtype=np.int64))
        if wanted > self._limits.decoded_bytes:
            raise Rejected(
                f"expected images of at most {self._limits.decoded_bytes} bytes together once "
                f"decoded, got {shape[0]} of {width}x{height}: {wanted} bytes"
            )
        self.images = np.empty(shape, np.uint8)
