"""Many image files to one array, image by image: what is wrong with any of them is said of all."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adap.core.datasets import ImageSet, release
from adap.models.header import shown
from adap.worker.intake.asked import Asked, Shape
from adap.worker.intake.counts import check_counts
from adap.worker.intake.images import (
    Picture,
    Rules,
    UnscaledError,
    UnusableImageError,
    read_picture,
    resized,
    strict_decoding,
    unscaled,
)
from adap.worker.intake.limits import IntakeLimits, Reasons, Rejected
from adap.worker.intake.notes import Sizes, counted, listed

MAX_SIZES = 20  # that are listed
MAX_THREADS = 4
DARK = 2**15  # 16-bit values that stay below lose more than a bit of the eight that are kept
SMALL_BYTES = 4096  # files smaller than this: threads would wait for each other more than they gain

_DICOM = b"DICM"  # after 128 bytes of anything
_CHUNK_FILES = 100  # decoded by a thread between two words to the others
_CHUNK_BYTES = 1024**2  # of these files; the last may be larger
RELEASE_BYTES = 32 * 1024**2  # of a mapped file, written and not let go of


@dataclass(frozen=True)
class File:
    """An image file that is still to be read: its name, its bytes and how to get them."""

    name: str
    size: int
    read: Callable[[], bytes]


@dataclass
class _Found:
    """What came of some files, in their order."""

    files: int = 0
    sizes: Sizes = field(default_factory=Counter)
    first_of_size: dict[tuple[int, int], str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    deep: "_Deep | None" = None
    unscaled: "dict[str, _Deep]" = field(default_factory=dict)  # by why nothing says the scale
    odd: Counter[str] = field(default_factory=Counter)
    unread: list[int] = field(default_factory=list)  # indices of files that were left out
    damaged: int = 0


@dataclass(frozen=True)
class _Deep:
    """The values of images of more than 8 bits."""

    images: int
    low: float
    high: float

    def join(self, other: "_Deep | None") -> "_Deep":
        if other is None:
            return self
        low, high = min(self.low, other.low), max(self.high, other.high)
        return _Deep(self.images + other.images, low, high)


@dataclass(frozen=True)
class Undecoded:
    """All of a data set but its images, which `decode_all` adds.

    ids: asked once the files were read, as some forms name an image beside its bytes.
    """

    labels: NDArray[Any]
    classes: Sequence[str]
    ids: Callable[[], Sequence[str]]
    splits: NDArray[np.int8] | None = None
    groups: Sequence[str] | None = None
    clusters: Sequence[str] | None = None


def decode_all(files: Iterable[File], undecoded: Undecoded, asked: Asked) -> ImageSet:
    """The data set with the images of these files, read as they are decoded.

    Threads decode, one for small files, each one image at a time: Pillow's decoders let go of the
    interpreter, and what is left of it for a small file is too short to share.
    What is found does not depend on how many they are, nor on which is first. Raises Rejected for
    what does not decode, unless that is to be left out, and for several sizes where no rule is
    declared that makes them one.
    """
    images, kept = _decode_files(files, undecoded.labels, asked)
    ids = undecoded.ids()
    if kept is None:
        kept = np.ones(len(ids), bool)
    index = np.flatnonzero(kept).tolist()

    def of(names: Sequence[str] | None) -> Sequence[str] | None:
        return names if names is None or len(index) == len(ids) else [names[i] for i in index]

    whole = ImageSet(
        images=images,
        labels=undecoded.labels if len(index) == len(ids) else undecoded.labels[kept],
        classes=undecoded.classes,
        example_ids=of(ids) or [],
        splits=None if undecoded.splits is None else undecoded.splits[kept],
        groups=of(undecoded.groups),
        clusters=of(undecoded.clusters),
    )
    if len(index) < len(ids):
        left_out = [ids[i] for i in np.flatnonzero(~kept).tolist()]
        asked.notes.fact(
            "caution",
            "unreadable_files",
            f"{counted(len(left_out), 'image')} of {len(ids):,} could not be read and were left "
            f"out: {listed(left_out)}",
            files=len(left_out),
            share=len(left_out) / len(ids),
        )
        check_counts(whole.classes, whole.labels, splits=whole.splits, groups=whole.groups)
    return whole


def _decode_files(
    files: Iterable[File], labels: NDArray[Any], asked: Asked
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """(N, C, H, W), and which files these are of where some were left out."""
    reasons, resize = Reasons(), asked.options.resize
    stack = _Stack(len(labels), asked.limits, partial(asked.room, labels))
    sizes = asked.notes.sizes
    first_of_size: dict[tuple[int, int], str] = {}
    deep: _Deep | None = None
    unscaled_ones: dict[str, _Deep] = {}
    odd: Counter[str] = Counter()
    unread: list[int] = []
    done = damaged = 0

    def work(start: int, chunk: Sequence[File]) -> _Found:
        return _decode(start, chunk, stack, asked)

    with strict_decoding():
        for found in _in_order(work, _chunks(files)):
            sizes.update(found.sizes)
            first_of_size = found.first_of_size | first_of_size
            for reason in found.reasons:
                reasons.add(reason)
            deep = deep if found.deep is None else found.deep.join(deep)
            for what, some in found.unscaled.items():
                unscaled_ones[what] = some.join(unscaled_ones.get(what))
            odd.update(found.odd)
            unread += found.unread
            damaged += found.damaged
            done += found.files
            asked.on_progress(done, len(labels))
    for what, some in unscaled_ones.items():
        reasons.add(f"{counted(some.images, 'image')}: {unscaled(what, some.low, some.high)}")
    if len(sizes) > 1 and resize is None:
        for (height, width), of_size in sizes.most_common(MAX_SIZES):
            reasons.add(
                f"expected images of one size, got {of_size} of {width}x{height} (width x height), "
                f"for example {shown(first_of_size[height, width])}"
            )
        (height, width), _ = sizes.most_common(1)[0]
        reasons.add(
            f"got {len(sizes)} sizes: to have all images made one size, declare how with `resize`, "
            f"for example {width}x{height}, crop (--resize {width}x{height}:crop; or stretch, pad)"
        )
    if deep is not None:
        _judge_deep(deep, asked, reasons)
    elif asked.options.levels is not None:
        asked.notes.fact(
            "info", "levels_not_used", "no image is deeper than 8 bits: no use of `levels`"
        )
    if damaged:
        reasons.add(
            f"{counted(damaged, 'file')} cannot be read: mend them, leave them out of the archive, "
            "or have what cannot be read left out with `skip_unreadable` (--skip-unreadable)"
        )
    reasons.settle()
    if turned := odd.pop("turned", 0):
        asked.notes.step(
            f"orientation of {counted(turned, 'photograph')} applied (EXIF); torchvision's "
            "ImageFolder does not"
        )
    for name, count in sorted(odd.items()):
        asked.notes.fact("info", name, _ODD[name].format(counted(count, "image")), images=count)
    if not unread:
        return stack.images, None
    if len(unread) == len(labels):
        raise Rejected(f"expected images that can be read, got none among {len(labels)} files")
    kept = np.ones(len(labels), bool)
    kept[unread] = False
    return stack.keep(kept, partial(asked.room, labels[kept])), kept


_ODD = {
    "first_frame": "{} of several frames: the first was taken",
    "cmyk": "{} in CMYK made RGB, without a colour profile",
    "exif": "{} with EXIF that cannot be read: taken as upright",
    "window": "{} of DICOM scaled by the first window of its own file: for one scale for all, say "
    "`levels` (--levels LOW:HIGH)",
    "inverted": "{} of MONOCHROME1, where low values are white: inverted",
    "reduced": "{} of many pixels decoded at a reduced scale, at least twice the size asked for",
}


def _judge_deep(deep: _Deep, asked: Asked, reasons: Reasons) -> None:
    """Values of more than 8 bits are scaled as declared, or by their high byte if that tells."""
    levels, notes = asked.options.levels, asked.notes
    used = f"{deep.low:,.7g} to {deep.high:,.7g}"
    if levels is None and deep.high < DARK:
        left = int(deep.high) // 256 - int(deep.low) // 256 + 1
        range_used = f"{deep.low:g}:{max(deep.high, deep.low + 1):g}"
        reasons.add(
            f"got {counted(deep.images, 'image')} of 16 bits whose values are {used} of 65,535: "
            f"only {left} of 256 grey levels would be left; say which values become black and "
            f"white with `levels`, for example --levels {range_used} for the range that is used, "
            "or --levels 0:65535; colours of 16 bits convert to 8 bits a channel"
        )
        return
    low, high = (0, 65535) if levels is None else (levels.low, levels.high)
    notes.fact(
        "caution" if deep.low < low or deep.high > high else "info",
        "deep_values",
        f"the values of {counted(deep.images, 'image')} of more than 8 bits are {used}; {low:g} to "
        f"{high:g} became 0 to 255{', what lies beyond was cut' if levels else ''}",
        images=deep.images,
        low=deep.low,
        high=deep.high,
    )


def _chunks(files: Iterable[File]) -> Iterator[tuple[int, list[File]]]:
    """Files a few at a time, and few bytes, each few with the index of its first."""
    start, size = 0, 0
    chunk: list[File] = []
    for file in files:
        chunk.append(file)
        size += file.size
        if len(chunk) == _CHUNK_FILES or size > _CHUNK_BYTES:
            yield start, chunk
            start, size, chunk = start + len(chunk), 0, []
    if chunk:
        yield start, chunk


def _in_order(
    work: Callable[[int, Sequence[File]], _Found], chunks: Iterator[tuple[int, list[File]]]
) -> Iterator[_Found]:
    """Work on chunks in threads, no more at once than there are threads, and one that waits."""
    first = next(chunks, None)
    if first is None:
        return
    small = sum(file.size for file in first[1]) < SMALL_BYTES * len(first[1])
    threads = 1 if small else min(len(os.sched_getaffinity(0)), MAX_THREADS)
    running: deque[Future[_Found]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for chunk in chain([first], chunks):
                running.append(pool.submit(work, *chunk))
                if len(running) > threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _decode(
    start: int,
    chunk: Sequence[File],
    stack: "_Stack",
    asked: Asked,
) -> _Found:
    found, resize = _Found(files=len(chunk)), asked.options.resize
    rules = Rules(asked.limits.pixels, asked.options.levels, resize)
    for index, file in enumerate(chunk, start):
        try:
            picture = _read(file.read(), rules)
        except UnscaledError as error:
            values = _Deep(1, error.low, error.high)
            found.unscaled[error.what] = values.join(found.unscaled.get(error.what))
        except UnusableImageError as error:
            if error.damaged and asked.options.skip_unreadable:
                found.unread.append(index)
                continue
            found.damaged += error.damaged
            found.reasons.append(f"{shown(file.name)}: {error}")
        except Rejected as error:
            found.reasons.append(str(error))
        else:
            pixels = picture.pixels
            if picture.values is not None:
                found.deep = _Deep(1, *picture.values).join(found.deep)
            size = picture.came or (pixels.shape[0], pixels.shape[1])
            found.odd.update(picture.odd)
            found.sizes[size] += 1
            found.first_of_size.setdefault(size, file.name)
            stack.put(index, pixels if resize is None else resized(pixels, resize))
    return found


def _read(data: bytes, rules: Rules) -> Picture:
    if data[128:132] != _DICOM:
        return read_picture(data, rules)
    from adap.worker.intake.dicom import read_dicom  # pydicom takes a while to start

    return read_dicom(data, rules)


class _Stack:
    """(N, C, H, W) uint8, allocated when the first image tells H and W.

    It is grey until an image in colour comes: only then are there three channels for all. An image
    of another size than the first is left out: then all are refused in the end.
    """

    images: NDArray[np.uint8]

    def __init__(
        self, count: int, limits: IntakeLimits, allocate: Callable[[Shape], NDArray[np.uint8]]
    ) -> None:
        self._limits = limits
        self._make = allocate
        self._lock = Lock()
        self._written = 0  # bytes, since mapped pages were let go
        self.images = np.empty((count, 0, 0, 0), np.uint8)

    def put(self, index: int, pixels: NDArray[np.uint8]) -> None:
        """Set one image from (H, W) or (H, W, 3). May be called by threads."""
        channels = 1 if pixels.ndim == 2 else 3
        with self._lock:
            if self.images.size == 0:
                self.images = self._allocate(channels, *pixels.shape[:2])
            elif pixels.shape[:2] != self.images.shape[2:]:
                return
            elif channels > self.images.shape[1]:
                self._add_colour()
            self.images[index] = pixels if channels == 1 else pixels.transpose(2, 0, 1)
            self._written += pixels.size
            if self._written > RELEASE_BYTES:
                release(self.images)
                self._written = 0

    def keep(
        self, kept: NDArray[np.bool_], make: Callable[[Shape], NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        """Some of the images, in room of their own."""
        index = np.flatnonzero(kept)
        made = make((len(index), *self.images.shape[1:]))
        step = max(1, RELEASE_BYTES // self.images[0].size)
        for start in range(0, len(index), step):
            made[start : start + step] = self.images[index[start : start + step]]
            release(self.images)
            release(made)
        return made

    def _add_colour(self) -> None:
        grey = self.images
        self.images = self._allocate(3, *grey.shape[2:])
        step = max(1, RELEASE_BYTES // self.images[0].size)
        for start in range(0, len(grey), step):
            self.images[start : start + step] = grey[start : start + step]
            release(grey)
            release(self.images)

    def _allocate(self, channels: int, height: int, width: int) -> NDArray[np.uint8]:
        shape = (len(self.images), channels, height, width)
        wanted = int(np.prod(shape, dtype=np.int64))
        if wanted > self._limits.decoded_bytes:
            raise Rejected(
                f"expected images of at most {self._limits.decoded_bytes} bytes together once "
                f"decoded, got {shape[0]} of {width}x{height}: {wanted} bytes"
            )
        return self._make(shape)
