"""JPEG with a gradient: exact pixels from Pillow, and slopes of the same steps with soft rounding.

A JPEG keeps a change only as far as it moves a coefficient of an 8x8 block across a step of the
quantisation, so a search that takes JPEG for nothing spends its epsilon on what is rounded away.
Here the steps are written out in tensors (luma and chroma, chroma at half the size, the cosine
transform of blocks, division by libjpeg's tables), and rounding is softened to a cubic staircase,
`round(c) + 4 (c - round(c))**3`: no slope where a change is lost, much near the next step. The
cubic is that of Shin & Song, "JPEG-resistant adversarial images" (NIPS 2017 workshop on machine
learning and computer security); four times as steep it has no jumps, and rises by one a step.
"""

import io
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adap import rounding

BLOCK = 8
CHROMA = 2  # times as wide and high is a pixel of chroma: Pillow's default, 4:2:0

# JFIF: luma, then how much bluer and redder than it
_TO_CHROMA = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
_COSINES = [
    [
        math.sqrt((1 if u == 0 else 2) / BLOCK) * math.cos((2 * i + 1) * u * math.pi / (2 * BLOCK))
        for i in range(BLOCK)
    ]
    for u in range(BLOCK)
]


def through_jpeg(x: Tensor, qualities: Sequence[int]) -> Tensor:
    """(B, C, H, W) in [0, 1] as JPEG files leave them, rounded to 8 bits before and after.

    x: of 1 or 3 channels.  qualities: libjpeg's, 1 to 100, of each image.
    """
    if rounding.is_left_out():
        return softly(x, qualities)
    levels = (x.detach() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    found = np.stack([_file(*each) for each in zip(levels, qualities, strict=True)])
    exact = torch.from_numpy(found).permute(0, 3, 1, 2).to(x) / 255
    return rounding.straight_through(exact, softly(x, qualities)) if x.requires_grad else exact


def softly(x: Tensor, qualities: Sequence[int]) -> Tensor:
    """(B, C, H, W), about what `through_jpeg` gives, with slopes wherever a change can matter."""
    height, width = x.shape[2:]
    whole = BLOCK * CHROMA
    padded = F.pad(255 * x, (0, -width % whole, 0, -height % whole), mode="replicate")
    tables = torch.stack([_tables(quality) for quality in qualities]).to(x)  # (B, 2, 8, 8)
    if x.shape[1] == 1:
        found = _blocks(padded - 128, tables[:, :1]) + 128
    else:
        to_chroma = torch.tensor(_TO_CHROMA).to(x)
        split = torch.einsum("ij,bjhw->bihw", to_chroma, padded)
        luma = _blocks(split[:, :1] - 128, tables[:, :1]) + 128
        chroma = _blocks(F.avg_pool2d(split[:, 1:], CHROMA), tables[:, 1:])
        wide = F.interpolate(chroma, scale_factor=CHROMA, mode="bilinear", align_corners=False)
        back = torch.linalg.inv(to_chroma)
        found = torch.einsum("ij,bjhw->bihw", back, torch.cat([luma, wide], dim=1))
    return (found[:, :, :height, :width] / 255).clamp(0, 1)


def _blocks(plane: Tensor, tables: Tensor) -> Tensor:
    """(B, C, H, W) levels around 0, each block of 8x8 as its rounded coefficients give it back.

    H, W: multiples of 8.  tables: (B, 1, 8, 8) steps of the coefficients.
    """
    batch, channels, height, width = plane.shape
    cosines = torch.tensor(_COSINES).to(plane)
    steps = tables[:, :, None, None]
    blocks = plane.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK)  # (B, C, H / 8, W / 8, 8, 8)
    found = cosines.T @ (_softly_rounded(cosines @ blocks @ cosines.T / steps) * steps) @ cosines
    return found.permute(0, 1, 2, 4, 3, 5).reshape(batch, channels, height, width)


def _softly_rounded(values: Tensor) -> Tensor:
    whole = values.detach().round()
    return whole + 4 * (values - whole) ** 3


def _file(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """(H, W, C) to the same through a file."""
    file = io.BytesIO()
    grey = picture.shape[2] == 1
    Image.fromarray(picture[:, :, 0] if grey else picture).save(file, "JPEG", quality=quality)
    found = np.asarray(Image.open(file))
    return found[:, :, None] if grey else found


@lru_cache(maxsize=100)
def _tables(quality: int) -> Tensor:
    """(2, 8, 8) steps of luma and of chroma, as libjpeg writes them at a quality."""
    file = io.BytesIO()
    Image.new("RGB", (BLOCK, BLOCK)).save(file, "JPEG", quality=quality)
    with Image.open(file) as picture:
        found = picture.quantization  # type: ignore[attr-defined]
    return torch.tensor([found[0], found[1]], dtype=torch.float32).view(2, BLOCK, BLOCK)
