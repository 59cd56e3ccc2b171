"""How hard each corruption hits at severities 1 to 5, as published; imports no torch.

Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", ICLR 2019 (arXiv:1903.12261): the values of CIFAR-10-C for small images, which are
32x32 there, and those of ImageNet-C for large ones, which are 224x224. `resize` is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adap.core.config.corruptions import CorruptionKind
from adap.core.errors import DataError

Table = Literal["32x32", "224x224"]
"""Which published values: named by the size of the images that they were made for."""

SMALL_SIDE = 96  # below it, by the shorter side, the values for 32x32
LEAST_SIDE = 8  # of an image that can be corrupted: smaller ones have no room for a kernel

Five = tuple[tuple[float, ...], ...]
"""The parameters of a corruption, severity by severity."""


def table_of(height: int, width: int) -> Table:
    """Which published values images of this size get."""
    return "32x32" if min(height, width) < SMALL_SIDE else "224x224"


def refuse_too_small(height: int, width: int) -> None:
    """Raise DataError for images that have no room for a corruption."""
    if min(height, width) < LEAST_SIDE:
        raise DataError(
            f"expected images of at least {LEAST_SIDE}x{LEAST_SIDE} pixels for corruptions, got "
            f"{width}x{height}"
        )


def _zooms(*ends_and_steps: tuple[float, float]) -> Five:
    """Factors from 1 up to an end that is left out."""
    return tuple(tuple(np.arange(1, end, step).tolist()) for end, step in ends_and_steps)


def _each(*values: float) -> Five:
    return tuple((value,) for value in values)


@dataclass(frozen=True)
class Published:
    """The parameters of one corruption by size of the images."""

    small: Five
    large: Five

    def at(self, table: Table, severity: int) -> tuple[float, ...]:
        """Of a severity from 1 to 5."""
        return (self.small if table == "32x32" else self.large)[severity - 1]


_RESIZE = _each(0.9, 0.75, 0.6, 0.5, 0.35)

PARAMETERS: Mapping[CorruptionKind, Published] = {
    # standard deviation
    "gaussian_noise": Published(
        _each(0.04, 0.06, 0.08, 0.09, 0.10), _each(0.08, 0.12, 0.18, 0.26, 0.38)
    ),
    # photons behind a white pixel
    "shot_noise": Published(_each(500, 250, 100, 75, 50), _each(60, 25, 12, 5, 3)),
    # share of the values that become black or white
    "impulse_noise": Published(
        _each(0.01, 0.02, 0.03, 0.05, 0.07), _each(0.03, 0.06, 0.09, 0.17, 0.27)
    ),
    # radius of the disk, sigma of its edge
    "defocus_blur": Published(
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    # sigma of the blur before and after, largest shift of a pixel, rounds
    "glass_blur": Published(
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    # radius, sigma along the way
    "motion_blur": Published(
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": Published(
        _zooms((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        _zooms((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    # of the flakes: mean, deviation, zoom, least brightness, radius and sigma of their fall; and
    # how much of the picture's own colour is left
    "snow": Published(
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    # density, how fast its waves shrink
    "fog": Published(
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    # added to the value of HSV
    "brightness": Published(_each(0.05, 0.1, 0.15, 0.2, 0.3), _each(0.1, 0.2, 0.3, 0.4, 0.5)),
    # share that is left
    "contrast": Published(_each(0.75, 0.5, 0.4, 0.3, 0.15), _each(0.4, 0.3, 0.2, 0.1, 0.05)),
    # as shares of the side: shift of the pixels, sigma of its smoothness, shift of three corners
    "elastic_transform": Published(
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        # published in units of 244 pixels beside images of 224
        tuple(
            tuple(share * 244 / 224 for share in shares)
            for shares in (
                (2, 0.7, 0.1),
                (2, 0.08, 0.2),
                (0.05, 0.01, 0.02),
                (0.07, 0.01, 0.02),
                (0.12, 0.01, 0.02),
            )
        ),
    ),
    # share of the side that is left
    "pixelate": Published(_each(0.95, 0.9, 0.85, 0.75, 0.65), _each(0.6, 0.5, 0.4, 0.3, 0.25)),
    # quality
    "jpeg_compression": Published(_each(80, 65, 58, 50, 40), _each(25, 18, 15, 10, 7)),
    # share of the side that is left
    "resize": Published(_RESIZE, _RESIZE),
}
