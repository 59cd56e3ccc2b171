"""Pixel values in use, of 256: an attack's budget says little beside a narrow range."""

import numpy as np
from numpy.typing import NDArray

from adap.core.datasets import release
from adap.worker.intake.notes import Notes

NARROW = 64  # levels between the darkest and the brightest pixel; 8/255 is then an eighth or more
FEW = 16  # different levels

_BLOCK_BYTES = 1024**2


def note_values(images: NDArray[np.uint8], notes: Notes) -> None:
    """Note the values that (N, C, H, W) uint8 use, with a caution where they are narrow or few.

    Looking stops once all 256 were seen, after a few photographs.
    """
    seen = np.zeros(256, bool)
    step = max(1, _BLOCK_BYTES // images[0].size)
    for start in range(0, len(images), step):
        seen[images[start : start + step]] = True
        if seen.all():
            break
        release(images)
    values = np.flatnonzero(seen)
    low, high, levels = int(values[0]), int(values[-1]), len(values)
    notes.step(f"pixels use {low} to {high}, {levels} levels")
    figures = {"low": low, "high": high, "levels": levels}
    if high - low < NARROW:
        notes.fact(
            "caution",
            "narrow_range",
            f"pixels use only {low} to {high} of 0 to 255, {levels} levels: an epsilon of 8/255 is "
            f"{8 / max(high - low, 1):.0%} of that range; scale the values before sending, or say "
            "with `levels` which become black and white",
            **figures,
        )
    elif levels <= FEW:
        notes.fact(
            "caution",
            "few_levels",
            f"pixels have only {levels} different values from {low} to {high}: small changes do "
            "not look like such images",
            **figures,
        )
