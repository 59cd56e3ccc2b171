"""Many image files to one array, image by image: what is wrong with any of them is said of all."""

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from core.config import Resize
from models.header import shown
from worker.intake.images import UnusableImageError, decode, resized, strict_decoding
from worker.intake.limits import IntakeLimits, Reasons, Rejected

Sizes = Counter[tuple[int, int]]
"""How many images came in each size: height, width."""

MAX_SIZES = 20  # that are listed

_PROGRESS_EVERY = 100


def decode_all(
    files: Iterable[tuple[str, Callable[[], bytes]]],
    count: int,
    *,
    limits: IntakeLimits,
    resize: Resize | None,
    sizes: Sizes,
    on_progress: Callable[[int, int], None],
) -> NDArray[np.uint8]:
    """(N, C, H, W) of `count` files by name, read one by one; `sizes` is filled.

    In one thread: Pillow spends most of the time of a small image in Python, so that a second
    thread makes it slower. Raises Rejected for what does not decode, and for several sizes where
    no rule is declared that makes them one.
    """
    reasons = Reasons()
    stack = _Stack(count, limits)
    first_of_size: dict[tuple[int, int], str] = {}
    with strict_decoding():
        for done, (name, read) in enumerate(files, start=1):
            try:
                pixels = decode(read(), max_pixels=limits.pixels)
            except UnusableImageError as error:
                reasons.add(f"{shown(name)}: {error}")
            except Rejected as error:
                reasons.add(str(error))
            else:
                height, width = pixels.shape[:2]
                sizes[height, width] += 1
                first_of_size.setdefault((height, width), name)
                if resize is not None:
                    stack.put(done - 1, resized(pixels, resize))
                elif len(sizes) == 1:
                    stack.put(done - 1, pixels)
            if done % _PROGRESS_EVERY == 0 or done == count:
                on_progress(done, count)
    if len(sizes) > 1 and resize is None:
        for (height, width), of_size in sizes.most_common(MAX_SIZES):
            reasons.add(
                f"expected images of one size, got {of_size} of {width}x{height} (width x height), "
                f"for example {shown(first_of_size[height, width])}"
            )
        (height, width), _ = sizes.most_common(1)[0]
        reasons.add(
            f"got {len(sizes)} sizes: to have all images made one size, declare how with `resize`, "
            f'for example {{"height": {height}, "width": {width}, "fit": "crop"}} '
            "(fit: stretch, crop or pad)"
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
