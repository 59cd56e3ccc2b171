"""Images that look alike in two splits, though their bytes differ: saved again, or made smaller.

The method is the difference hash: an image is reduced to 8x9 grey values, and 64 bits say which of
two neighbours is brighter. Some bits change where neighbours are nearly as bright, so images are
compared of which two sixths of the bits are equal, each with a few of these, sorted by
brightness; and as smooth images have few bits that mean something, the 72 values must be near, too.
It finds images that were saved again with loss or scaled, not crops, mirror images, nor the same
thing photographed twice. Time and memory grow with the images alone, whatever they show.

Source: N. Krawetz, "Kind of Like That" (hackerfactor.com, 2013), who describes the hash.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from adap.core.datasets import release
from adap.worker.intake.notes import Notes

ROWS, COLUMNS = 8, 9
NEAR = 3.0  # grey levels of 256 between the reduced images, on average
FLAT = 8.0  # reduced images that vary less say nothing
PARTS = 6  # of the 64 bits, of which two have to be equal: four other bits may differ anywhere
NEIGHBOURS = 3  # of the same bits that an image is compared with
CAUTION = 0.01  # of all images

_SAMPLED = 4 * ROWS, 4 * COLUMNS  # rows and columns at least, where a larger image is thinned out
_BLOCK_BYTES = 16 * 1024**2


def note_near_duplicates(
    images: NDArray[np.uint8], splits: NDArray[np.int8] | None, notes: Notes
) -> None:
    """Note how many of (N, C, H, W) look like one in another split without being equal to it.

    splits: (N,). Nothing is noted without splits, nor of images too small to be reduced.
    """
    height, width = images.shape[2:]
    if splits is None or len(np.unique(splits)) < 2 or height <= ROWS or width <= COLUMNS:
        return
    reduced = _reduced(images)
    brighter = (reduced[:, :, 1:] > reduced[:, :, :-1]).reshape(len(images), 64)
    parts = [
        part @ (1 << np.arange(part.shape[1], dtype=np.uint32))
        for part in np.array_split(brighter, PARTS, axis=1)
    ]
    found = _count(images, splits, parts, reduced.reshape(len(images), -1))
    if found:
        notes.fact(
            "caution" if found >= CAUTION * len(images) else "info",
            "near_duplicates_across_splits",
            f"{found:,} of {len(images):,} images look like one in another split (nearly the same "
            f"difference hash of 8x9 grey values, which differ by at most {NEAR:g} of 256 on "
            "average): they may be the same image, saved again; crops are not found",
            images=found,
            share=found / len(images),
        )


def _count(
    images: NDArray[np.uint8],
    splits: NDArray[np.int8],
    parts: Sequence[NDArray[np.uint32]],
    values: NDArray[np.float32],
) -> int:
    """Images that resemble an earlier one of another split, without those that equal one."""
    brightness = values.mean(axis=1)
    worth = np.flatnonzero(values.max(axis=1) - values.min(axis=1) >= FLAT)
    near, equal = np.zeros(len(images), bool), np.zeros(len(images), bool)
    seen: set[tuple[int, int]] = set()
    for left, right in combinations(parts, 2):
        key = left << 16 | right
        order = worth[np.lexsort((brightness[worth], key[worth]))]
        for apart in range(1, NEIGHBOURS + 1):
            a, b = order[:-apart], order[apart:]
            same = (key[a] == key[b]) & (splits[a] != splits[b])
            a, b = a[same], b[same]
            close = np.abs(values[a] - values[b]).mean(axis=1) <= NEAR
            pairs = np.sort(np.stack([a[close], b[close]], axis=1), axis=1).tolist()
            for first, later in pairs:
                if (first, later) in seen:
                    continue
                seen.add((first, later))
                same_image = np.array_equal(images[first], images[later])
                (equal if same_image else near)[later] = True
    return int((near & ~equal).sum())


def _reduced(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 8, 9) mean grey values, of large images from some of the pixels."""
    count, channels, height, width = images.shape
    down, right = max(1, height // _SAMPLED[0]), max(1, width // _SAMPLED[1])
    thin = images[:, :, ::down, ::right]
    rows, columns = (_means(n, k) for n, k in zip(thin.shape[2:], (ROWS, COLUMNS), strict=True))
    weights = np.einsum("ih,jw->hwij", rows, columns).reshape(-1, ROWS * COLUMNS)
    reduced = np.empty((count, ROWS, COLUMNS), np.float32)
    step = max(1, _BLOCK_BYTES // images[0].size)
    for start in range(0, count, step):
        grey = thin[start : start + step].sum(axis=1, dtype=np.uint16).astype(np.float32)
        sums = grey.reshape(len(grey), -1) @ weights / channels
        reduced[start : start + step] = sums.reshape(-1, ROWS, COLUMNS)
        release(images)
    return reduced


def _means(length: int, parts: int) -> NDArray[np.float32]:
    """(parts, length): the weights that make each part's mean of a row of so many values."""
    part = np.arange(length) * parts // length
    weights = (part == np.arange(parts)[:, None]).astype(np.float32)
    means: NDArray[np.float32] = weights / weights.sum(axis=1, keepdims=True)
    return means
