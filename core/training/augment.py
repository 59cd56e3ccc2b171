"""Random changes of a whole batch that keep its labels, as tensor operations on its own device.

Images are (B, C, H, W), uint8 or float in [0, 1]; what is left of an image when it moves is black.
The generator may live on another device than the images. Nothing mixes images: targets stay 0 or 1,
and an estimator belongs to one image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adap.core.config.training import Augment


def augment(images: Tensor, settings: Augment, *, generator: torch.Generator) -> Tensor:
    """The random changes that the settings ask for, which may be none."""
    if settings.crop_padding:
        images = random_crop(images, padding=settings.crop_padding, generator=generator)
    if settings.flip:
        images = random_flip(images, generator=generator)
    if settings.crop_shift:
        images = crop_shift(images, cut=settings.crop_shift, generator=generator)
    if settings.jitter:
        images = colour_jitter(images, size=settings.jitter, generator=generator)
    if settings.erase:
        images = random_erasing(images, share=settings.erase, generator=generator)
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


def crop_shift(images: Tensor, *, cut: int, generator: torch.Generator) -> Tensor:
    """Of each image a random rectangle, 0 to `cut` pixels lower and narrower, anywhere on black.

    Cropshift of Li & Spratling, *Data Augmentation Alone Can Improve Adversarial Training*, ICLR
    2023: all amounts, and then all places of cutting and of putting down, are equally likely.
    """
    along = [_shifted(size, cut, len(images), generator) for size in images.shape[-2:]]
    (rows, seen_rows), (columns, seen_columns) = (
        (source.to(images.device), seen.to(images.device)) for source, seen in along
    )
    batch = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    moved = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    seen = seen_rows[:, :, None] & seen_columns[:, None, :]  # (B, H, W)
    return torch.where(seen[:, None], moved.permute(0, 3, 1, 2), 0)


def _shifted(size: int, cut: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(B, size) which pixel of an axis comes to each place, and whether any does."""
    draws = torch.rand(3, count, 1, generator=generator, device=generator.device)
    off = (draws[0] * (min(cut, size - 1) + 1)).long()  # pixels cut off this axis
    source, target = ((draw * (off + 1)).long() for draw in draws[1:])  # where it began, and begins
    place = torch.arange(size, device=generator.device) - target
    return (place + source).clamp(0, size - 1), (place >= 0) & (place < size - off)


def colour_jitter(images: Tensor, *, size: float, generator: torch.Generator) -> Tensor:
    """Floats in [0, 1]: brightness, contrast and saturation times factors in [1 - size, 1 + size].

    In this order, as torchvision's ColorJitter has each of them; images without three channels have
    no saturation.
    """
    x = images.float() / 255 if images.dtype == torch.uint8 else images
    draws = torch.rand(3, len(x), 1, 1, 1, generator=generator, device=generator.device)
    brightness, contrast, saturation = (1 + size * (2 * draws - 1)).to(x).unbind()
    x = (x * brightness).clamp(0, 1)
    grey_mean = _grey(x).mean(dim=(1, 2, 3), keepdim=True)
    x = (contrast * x + (1 - contrast) * grey_mean).clamp(0, 1)
    if x.shape[1] == 3:
        x = (saturation * x + (1 - saturation) * _grey(x)).clamp(0, 1)
    return x


def _grey(x: Tensor) -> Tensor:
    """(B, 1, H, W) luma of RGB images (ITU-R BT.601), or the image itself."""
    if x.shape[1] != 3:
        return x
    red, green, blue = x[:, :1], x[:, 1:2], x[:, 2:]
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def random_erasing(images: Tensor, *, share: float, generator: torch.Generator) -> Tensor:
    """A random rectangle of this share of the images becomes black.

    Zhong et al., *Random Erasing Data Augmentation*, AAAI 2020: 2 to 33 % of the area, sides in a
    proportion of 0.3 to 3.3, all places equally likely. What would stick out is cut to the image.
    """
    height, width = images.shape[-2:]
    draws = torch.rand(5, len(images), generator=generator, device=generator.device)
    area = height * width * (0.02 + 0.31 * draws[1])
    proportion = torch.exp(math.log(0.3) + math.log(3.3 / 0.3) * draws[2])
    sides = ((area * proportion).sqrt(), height), ((area / proportion).sqrt(), width)
    inside = []
    for (length, size), draw in zip(sides, draws[3:], strict=True):
        length = length.round().clamp(1, size)
        first = (draw * (size - length + 1)).floor()[:, None]
        place = torch.arange(size, device=generator.device)
        inside.append((place >= first) & (place < first + length[:, None]))
    erased = inside[0][:, :, None] & inside[1][:, None, :] & (draws[0] < share)[:, None, None]
    return images.masked_fill(erased[:, None].to(images.device), 0)
