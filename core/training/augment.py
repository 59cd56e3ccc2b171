"""Random crops and flips of a whole batch, as tensor operations on the images' own device.

Images are (B, C, H, W), uint8 or float; what is left of an image when it moves is black. The
generator may live on another device than the images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from adap.core.config import Augment


def augment(images: Tensor, settings: Augment, *, generator: torch.Generator) -> Tensor:
    """The random changes that the settings ask for, which may be none."""
    if settings.crop_padding:
        images = random_crop(images, padding=settings.crop_padding, generator=generator)
    if settings.flip:
        images = random_flip(images, generator=generator)
    return images


def random_crop(images: Tensor, *, padding: int, generator: torch.Generator) -> Tensor:
    """Each image padded with `padding` black pixels on every side and cropped back at random.

    All (2 * padding + 1)^2 places are equally likely, image by image.
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, top, left, H, W), a view
    top, left = torch.randint(
        2 * padding + 1, (2, len(images)), generator=generator, device=generator.device
    ).to(images.device)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def random_flip(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Each image flipped left to right with probability one half."""
    flipped = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
    return torch.where(flipped.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)
