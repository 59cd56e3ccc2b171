"""Parts of an image, for asking of each whether its gradient foretells what steps do.

A gradient may be right on the whole and turned round in a column, in a channel, where pixels are
bright or where it is small: a search then walks the wrong way there, and random steps of all
pixels, of which it is a few per cent, hardly show it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adap.core.audit.checks.limits import NOTHING, PART_CHANCE

BANDS = 8  # of columns, of rows and of brightness, at most
QUARTERS = 4  # of the pixels, from the smallest to the largest gradient
SINGLE = 256  # numbers an image: up to so many each is a part of its own
FEWEST = 8  # images, in effect, that foretell something of a part


@dataclass(frozen=True)
class Partition:
    """names: of its parts.  part_of: images and their gradients, (B, C, H, W) each, to a part's
    number for every pixel, of a shape that broadcasts to theirs."""

    names: list[str]
    part_of: Callable[[Tensor, Tensor], Tensor]


def partitions(channels: int, height: int, width: int) -> list[Partition]:
    """Every way in which images of this shape are taken apart."""
    found = [_bands("columns", width, -1), _bands("rows", height, -2)]
    if channels > 1:
        names = [f"channel {channel}" for channel in range(channels)]
        found.append(Partition(names, lambda x, _: _along(x, -3)))
    phases = [
        f"every second row from {row}, column from {column}" for row in (0, 1) for column in (0, 1)
    ]
    found.append(Partition(phases, lambda x, _: 2 * (_along(x, -2) % 2) + _along(x, -1) % 2))
    levels = [f"pixels from {low / BANDS:.3g} to {(low + 1) / BANDS:.3g}" for low in range(BANDS)]
    found.append(Partition(levels, lambda x, _: (BANDS * x).long().clamp(0, BANDS - 1)))
    sizes = [
        f"quarter {quarter + 1} of the pixels by the size of their gradient"
        for quarter in range(QUARTERS)
    ]
    found.append(Partition(sizes, _quarters))
    if channels * height * width <= SINGLE:
        numbers = range(channels * height * width)
        names = [
            f"the pixel in row {i // width % height}, column {i % width}"
            + (f" of channel {i // (height * width)}" if channels > 1 else "")
            for i in numbers
        ]
        found.append(
            Partition(
                names, lambda x, _: torch.arange(x[0].numel(), device=x.device).view(x[:1].shape)
            )
        )
    return found


def summed(products: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """(G, B) sums of (B, C, H, W) numbers over each part, one partition after the other."""
    sums = []
    for partition in partitions(*x.shape[1:]):
        part = partition.part_of(x, gradient).expand_as(x).flatten(1)
        empty = products.new_zeros(len(x), len(partition.names))
        sums.append(empty.scatter_add(1, part, products.flatten(1)))
    return torch.cat(sums, 1).T


@dataclass(frozen=True)
class Place:
    """A part by its name, one of so many that an image is taken into the same way."""

    name: str
    among: int


def places(channels: int, height: int, width: int) -> list[Place]:
    """The parts that `summed` sums over, in its order."""
    return [
        Place(name, len(partition.names))
        for partition in partitions(channels, height, width)
        for name in partition.names
    ]


def _bands(of: str, size: int, dim: int) -> Partition:
    bands = min(BANDS, size)
    edges = [-(-band * size // bands) for band in range(bands + 1)]
    names = [f"{of} {low} to {high - 1}" for low, high in pairwise(edges)]
    return Partition(names, lambda x, _: _along(x, dim) * bands // size)


def _along(x: Tensor, dim: int) -> Tensor:
    """Each pixel's place along one dimension."""
    shape = [1, 1, 1, 1]
    shape[dim] = x.shape[dim]
    return torch.arange(x.shape[dim], device=x.device).view(shape)


def _quarters(_: Tensor, gradient: Tensor) -> Tensor:
    size = gradient.flatten(1).abs().nan_to_num(0)
    ranks = size.argsort(1).argsort(1)
    return (ranks * QUARTERS // size.shape[1]).view(gradient.shape)


@dataclass(frozen=True)
class Part:
    """The part of an image whose gradient is most surely wrong.

    slope: of what happens on what this part foretells, in units of that of the whole image.
    high: what it is at most, but for a chance of PART_CHANCE by its partition.
    """

    name: str
    slope: float
    high: float


def weakest(
    places: list[Place],
    by_parts: NDArray[np.float64],
    predicted: NDArray[np.float64],
    seen: NDArray[np.float64],
) -> Part | None:
    """None where so few images, or a gradient of the wrong sign, leave nothing to tell.  A part
    that few images have is left out: one image alone meets any slope without an error.

    by_parts: (G, n) what each part contributes to `predicted`, (n,).  Signs of steps are random, so
    what one part foretells has nothing to do with what the others do, and is regressed alone.
    """
    whole = float(np.square(predicted).sum())
    unit = float((predicted * seen).sum()) / whole if whole > 0 else 0.0
    if unit <= 0:
        return None
    foretold = unit * by_parts
    squares = np.square(foretold)
    sums = squares.sum(axis=1, keepdims=True)
    kept = np.flatnonzero(sums > NOTHING * unit**2 * whole)
    shares = squares[kept] / sums[kept]
    # One over it is the effective number of images (Kish, 1965), all of them where all weigh alike.
    images = 1 / np.square(shares).sum(axis=1)
    many = images >= FEWEST
    kept, shares, images = kept[many], shares[many], images[many]
    if not len(kept):
        return None
    foretold, squares, sums = foretold[kept], squares[kept], sums[kept]
    slopes = 1 + (foretold * (seen - unit * predicted)).sum(axis=1, keepdims=True) / sums
    # What is left, larger where one image weighs much (HC3 of MacKinnon & White, 1985).
    left = seen - unit * predicted - (slopes - 1) * foretold
    left /= np.maximum(1 - shares, NOTHING)
    errors = np.sqrt((squares * np.square(left)).sum(axis=1, keepdims=True)) / sums
    among = np.array([place.among for place in places])[kept]
    high = slopes[:, 0] + _quantiles(PART_CHANCE / among, images - 1) * errors[:, 0]
    worst = int(high.argmin())
    return Part(places[kept[worst]].name, float(slopes[worst, 0]), float(high[worst]))


def _quantiles(chances: NDArray[np.float64], freedom: NDArray[np.float64]) -> NDArray[np.float64]:
    """What Student's t exceeds with these chances, to 2 % (Wallace, 1959, turned round)."""
    normal = np.array([-NormalDist().inv_cdf(chance) for chance in chances])
    normal *= (8 * freedom + 3) / (8 * freedom + 1)
    found: NDArray[np.float64] = np.sqrt(freedom * np.expm1(np.square(normal) / freedom))
    return found
