"""Images of a data set that may equal one another, found without a digest of each."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from adap.core.datasets import release
from adap.worker.intake.decoding import RELEASE_BYTES


def alike(images: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
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
