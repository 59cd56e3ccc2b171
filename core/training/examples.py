"""The images and targets of a training: what can be trained on, and where and how it lies."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from adap.core.datasets import Picked
from adap.core.errors import DataError

ROWS = 4096
"""Images that are looked at together: what is mapped from a file need not fit into memory."""

Images = Tensor | Picked
"""(N, C, H, W), in memory or where they are stored."""


def as_input(images: Tensor) -> Tensor:
    """uint8 to floats in [0, 1]; floats are in it already."""
    x = images.float() / 255 if images.dtype == torch.uint8 else images
    return x.contiguous(memory_format=torch.channels_last)


def resident(sets: Sequence[Images], device: torch.device) -> list[Images]:
    """The sets of images on a GPU where all of them take up less than half of what is free there;
    else as they are, and every batch is brought there."""
    size = sum(math.prod(images.shape) * images.dtype.itemsize for images in sets)
    if device.type != "cuda" or 2 * size > torch.cuda.mem_get_info(device)[0]:
        return list(sets)
    return [brought(images, device) for images in sets]


def brought(images: Images, device: torch.device) -> Tensor:
    """All of them on the device, part by part where they are no tensor yet."""
    if isinstance(images, Tensor):
        return images.to(device)
    dtype = taken(images, slice(0, 0), device).dtype
    found, start = torch.empty(images.shape, dtype=dtype, device=device), 0
    for part in parts(images):
        found[start : start + len(part)] = part
        start += len(part)
    return found


def home(images: Images) -> torch.device:
    """Where they lie."""
    return images.device if isinstance(images, Tensor) else torch.device("cpu")


def taken(images: Images, rows: slice | Tensor, device: torch.device) -> Tensor:
    """(B, C, H, W) those at these places, on the device.  rows: where the images lie."""
    if isinstance(images, Tensor):
        return images[rows].to(device)
    return torch.from_numpy(images[rows.numpy() if isinstance(rows, Tensor) else rows]).to(device)


def parts(values: Images) -> Iterator[Tensor]:
    """All of them, in order, so many at once as need little memory; of a tensor no copies."""
    cpu = torch.device("cpu")
    for start in range(0, len(values), ROWS):
        yield taken(values, slice(start, start + ROWS), cpu)


def refuse_unusable(name: str, images: Images, targets: Tensor) -> None:
    """Raise DataError for images or targets of another form, or of one side alone."""
    if images.ndim != 4 or not (images.dtype in (torch.uint8, np.uint8) or _of_unit(images)):
        raise DataError(
            f"expected {name} images (N, C, H, W) of uint8, or of float32 in [0, 1], "
            f"got {tuple(images.shape)} of {images.dtype}"
        )
    if targets.shape[:1] != images.shape[:1] or targets.ndim > 2:
        raise DataError(
            f"expected {len(images)} {name} targets, one an image (and class), "
            f"got {tuple(targets.shape)}"
        )
    other = int(((targets != 0) & (targets != 1)).sum())
    if other:
        raise DataError(f"expected {name} targets in {{0, 1}}, got {other} other values")
    for number, positives in enumerate((targets == 1).sum(dim=0).reshape(-1).tolist()):
        if positives in (0, len(images)):
            of_class = "" if targets.ndim == 1 else f" of class {number}"
            raise DataError(
                f"expected positives and negatives{of_class} among the {name} images, "
                f"got {positives} positives and {len(images) - positives} negatives"
            )


def _of_unit(images: Images) -> bool:
    """Whether these are float32 in [0, 1]."""
    return images.dtype in (torch.float32, np.float32) and all(
        bool(((part >= 0) & (part <= 1)).all()) for part in parts(images)
    )
