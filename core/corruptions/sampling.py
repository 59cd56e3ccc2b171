"""What corruptions share: edges, blurs, zooms and pictures read off between their pixels.

All on (B, C, H, W) float tensors, on the CPU.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Edge = Literal["edge", "reflect", "symmetric"]
"""What lies beyond the border, in NumPy's words: aaa|abcd, dcb|abcd and cba|abcd."""


def padded(x: Tensor, by: int, edge: Edge) -> Tensor:
    """With so many pixels around it; also where they are more than the picture has."""
    rows, columns = (
        torch.from_numpy(np.pad(np.arange(size), by, mode=edge)) for size in x.shape[-2:]
    )
    return x[..., rows[:, None], columns]


def gaussian_blur(x: Tensor, sigma: float, *, truncate: float = 4.0, edge: Edge = "edge") -> Tensor:
    """Along both sides, cut off after so many sigmas."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return x
    steps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    down, across = (_blur_matrix(size, weights, edge).to(x.dtype) for size in x.shape[-2:])
    return down @ x @ across.T


def _blur_matrix(size: int, weights: NDArray[np.float64], edge: Edge) -> Tensor:
    """(size, size): a blur is linear, and a matrix also knows kernels larger than the picture."""
    radius = len(weights) // 2
    sources = np.pad(np.arange(size), radius, mode=edge)
    matrix = np.zeros((size, size))
    for shift, weight in enumerate(weights):
        np.add.at(matrix, (np.arange(size), sources[shift : shift + size]), weight)
    return torch.from_numpy(matrix)


def convolved(x: Tensor, kernel: NDArray[np.float64]) -> Tensor:
    """With an odd, square kernel that is its own mirror image; edges reflected."""
    radius = len(kernel) // 2
    batch, channels, height, width = x.shape
    single = padded(x, radius, "reflect").reshape(batch * channels, 1, *_grown(x, radius))
    found = F.conv2d(single, torch.from_numpy(kernel).to(x.dtype)[None, None])
    return found.reshape(batch, channels, height, width)


def _grown(x: Tensor, radius: int) -> tuple[int, int]:
    return x.shape[-2] + 2 * radius, x.shape[-1] + 2 * radius


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle, enlarged to the size of the whole; corners stay corners."""
    sides = x.shape[-2:]
    cut = [math.ceil(side / factor) for side in sides]
    top, left = ((side - part) // 2 for side, part in zip(sides, cut, strict=True))
    middle = x[..., top : top + cut[0], left : left + cut[1]]
    large = F.interpolate(
        middle,
        size=[max(round(part * factor), side) for part, side in zip(cut, sides, strict=True)],
        mode="bilinear",
        align_corners=True,
    )
    top, left = ((have - side) // 2 for have, side in zip(large.shape[-2:], sides, strict=True))
    return large[..., top : top + sides[0], left : left + sides[1]]


def dragged(x: Tensor, radius: int, sigma: float, angles: Sequence[float]) -> Tensor:
    """Motion blur: each picture along its own angle, in degrees; edges repeated.

    Half of a Gaussian over 2 * radius + 1 places, each at the nearest pixel of the way.
    """
    width = 2 * radius + 1
    weights = np.exp(-0.5 * (np.arange(width) / sigma) ** 2)
    weights /= weights.sum()
    batch, channels, height, across = x.shape
    radians = np.deg2rad(np.asarray(angles))
    rows, columns = torch.arange(height), torch.arange(across)
    of, channel = torch.arange(batch).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1)
    found = torch.zeros_like(x)
    for step, weight in enumerate(weights):
        down = torch.from_numpy(np.ceil(step * np.sin(radians) - 0.5)).long().view(-1, 1)
        along = torch.from_numpy(np.ceil(step * np.cos(radians) - 0.5)).long().view(-1, 1)
        row = (rows + down).clamp(0, height - 1).view(batch, 1, height, 1)
        column = (columns + along).clamp(0, across - 1).view(batch, 1, 1, across)
        found += float(weight) * x[of, channel, row, column]
    return found


def read_at(x: Tensor, rows: Tensor, columns: Tensor, edge: Edge) -> Tensor:
    """Between the pixels, bilinear.  rows, columns: (B, H, W) in pixels."""
    corners = edge == "reflect"  # mirrored at the last pixel's middle, or at its border
    size = torch.tensor(x.shape[-2:], dtype=x.dtype)
    at = torch.stack([columns, rows], dim=-1).to(x.dtype)
    sides = size.flip(0)
    grid = 2 * at / (sides - 1) - 1 if corners else (2 * at + 1) / sides - 1
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=corners)
