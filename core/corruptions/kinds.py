"""Each corruption as a function of pictures, their random numbers and its parameters.

Written from the published description and its parameters; where the published code and the paper's
words differ, the code's pixels are followed, and it is said. On (B, C, H, W) floats in [0, 1], the
result may leave [0, 1] and is clipped by whoever asked.
"""

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adap.core.config.corruptions import CorruptionKind
from adap.core.corruptions.sampling import (
    convolved,
    dragged,
    gaussian_blur,
    read_at,
    zoomed,
)

Draws = Sequence[np.random.Generator]
"""One source of random numbers a picture, so that none depends on who else is in its batch."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def _drawn(draws: Draws, draw: Callable[[np.random.Generator], NDArray[np.float64]]) -> Tensor:
    return torch.from_numpy(np.stack([draw(random) for random in draws])).float()


# --- noise ----------------------------------------------------------------------------------------


def gaussian_noise(x: Tensor, draws: Draws, deviation: float) -> Tensor:
    """The sensor's."""
    return x + _drawn(draws, lambda random: random.normal(scale=deviation, size=x.shape[1:]))


def shot_noise(x: Tensor, draws: Draws, photons: float) -> Tensor:
    """Too few photons: Poisson."""
    counts = (x.double() * photons).numpy()
    found = [random.poisson(each) for random, each in zip(draws, counts, strict=True)]
    return torch.from_numpy(np.stack(found)).float() / photons


def impulse_noise(x: Tensor, draws: Draws, share: float) -> Tensor:
    """Salt and pepper, each value of a pixel for itself."""
    hit = _drawn(draws, lambda random: random.random(x.shape[1:])) < share
    white = _drawn(draws, lambda random: random.random(x.shape[1:])) < 0.5
    return torch.where(hit, white.to(x.dtype), x)


# --- blur -----------------------------------------------------------------------------------------


def defocus_blur(x: Tensor, _draws: Draws, radius: float, edge_sigma: float) -> Tensor:
    """A disk with a soft edge."""
    return convolved(x, disk(radius, edge_sigma))


def disk(radius: float, edge_sigma: float) -> NDArray[np.float64]:
    """(17, 17), or as wide as the disk where that is more; sums to about 1."""
    reach = 8 if radius <= 8 else int(radius)
    steps = np.arange(-reach, reach + 1)
    inside = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float64)
    inside /= inside.sum()
    half = 1 if radius <= 8 else 2
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / edge_sigma) ** 2)
    weights /= weights.sum()
    around = np.pad(inside, half, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(around, (2 * half + 1, 2 * half + 1))
    soft: NDArray[np.float64] = np.einsum("ijkl,k,l->ij", windows, weights, weights)
    spare = int(np.argmax(soft.max(axis=0) > 0))  # what is zero all around
    return soft[spare : len(soft) - spare, spare : len(soft) - spare]


def glass_blur(x: Tensor, draws: Draws, sigma: float, shift: float, rounds: float) -> Tensor:
    """Each pixel takes the colour of a neighbour, between two blurs.

    The published text speaks of a swap; the published code, and so its pictures, copy.
    """
    far = int(shift)
    batch, height, width = len(x), *x.shape[-2:]
    levels = (gaussian_blur(x, sigma) * 255).floor().permute(2, 3, 0, 1).contiguous().numpy()
    each = np.arange(batch)
    for _ in range(int(rounds)):
        # (B, places, 2): one draw of all, as drawing one by one would take longer than the rest
        places = [(h, w) for h in range(height - far, far, -1) for w in range(width - far, far, -1)]
        moves = np.stack([random.integers(-far, far, (len(places), 2)) for random in draws])
        for (h, w), move in zip(places, moves.transpose(1, 0, 2), strict=True):
            levels[h, w] = levels[h + move[:, 1], w + move[:, 0], each]
    return gaussian_blur(torch.from_numpy(levels).permute(2, 3, 0, 1) / 255, sigma)


def motion_blur(x: Tensor, draws: Draws, radius: float, sigma: float) -> Tensor:
    """The camera moved, up to 45 degrees from level."""
    return dragged(x, int(radius), sigma, [random.uniform(-45, 45) for random in draws])


def zoom_blur(x: Tensor, _draws: Draws, *factors: float) -> Tensor:
    """The camera moved ahead."""
    return (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


# --- weather --------------------------------------------------------------------------------------


def snow(
    x: Tensor,
    draws: Draws,
    mean: float,
    deviation: float,
    zoom: float,
    least: float,
    radius: float,
    sigma: float,
    colour: float,
) -> Tensor:
    """A whitened picture behind flakes that fall."""
    flakes = _drawn(draws, lambda random: random.normal(mean, deviation, (1, *x.shape[-2:])))
    flakes = zoomed(flakes, zoom)
    flakes = torch.where(flakes < least, 0, flakes).clamp(0, 1)
    flakes = (flakes * 255).floor() / 255
    flakes = dragged(flakes, int(radius), sigma, [random.uniform(-135, -45) for random in draws])
    white = (grey(x) * 1.5 + 0.5).maximum(x)
    return colour * x + (1 - colour) * white + flakes + flakes.rot90(2, dims=(-2, -1))


def grey(x: Tensor) -> Tensor:
    """(B, 1, H, W) brightness: of RGB as the eye weighs it, of other channels their mean."""
    if x.shape[1] != len(_LUMA):
        return x.mean(dim=1, keepdim=True)
    return (x * torch.tensor(_LUMA, dtype=x.dtype).view(-1, 1, 1)).sum(dim=1, keepdim=True)


def fog(x: Tensor, draws: Draws, density: float, decay: float) -> Tensor:
    """A cloud in front of it, and all darkened until the brightest value is as before."""
    height, width = x.shape[-2:]
    clouds = cloud(draws, 1 << (max(height, width) - 1).bit_length(), decay)
    brightest = x.amax(dim=(1, 2, 3), keepdim=True)
    hidden = x + density * clouds[:, None, :height, :width]
    return hidden * brightest / (brightest + density).clamp_min(1e-12)


def cloud(draws: Draws, side: int, decay: float) -> Tensor:
    """(B, side, side) in [0, 1] by the diamond-square algorithm on a torus; side a power of two."""
    heights = np.zeros((len(draws), side, side))
    step, rough = side, 100.0

    def around(total: NDArray[np.float64]) -> NDArray[np.float64]:
        size = total.shape[1:]
        noise = np.stack([random.uniform(-rough, rough, size) for random in draws])
        found: NDArray[np.float64] = total / 4 + rough * noise
        return found

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        total = corners + np.roll(corners, -1, axis=1)
        heights[:, half::step, half::step] = around(total + np.roll(total, -1, axis=2))
        middles, corners = heights[:, half::step, half::step], heights[:, ::step, ::step]
        level = middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=2)
        heights[:, ::step, half::step] = around(level)
        upright = middles + np.roll(middles, 1, axis=2) + corners + np.roll(corners, -1, axis=1)
        heights[:, half::step, ::step] = around(upright)
        step, rough = half, rough / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    heights /= heights.max(axis=(1, 2), keepdims=True)
    return torch.from_numpy(heights).float()


# --- the camera's and the file's ------------------------------------------------------------------


def brightness(x: Tensor, _draws: Draws, more: float) -> Tensor:
    """The value of HSV is raised: hue and saturation stay."""
    value = x.amax(dim=1, keepdim=True)
    raised = (value + more).clamp_max(1)
    return torch.where(value > 0, x * raised / value.clamp_min(1e-12), raised)


def contrast(x: Tensor, _draws: Draws, left: float) -> Tensor:
    """Each channel drawn to its mean."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean) * left + mean


def elastic_transform(
    x: Tensor, draws: Draws, shift: float, smoothness: float, corner: float
) -> Tensor:
    """Bent as a whole by three corners, then pixel by pixel; in shares of the shorter side."""
    height, width = x.shape[-2:]
    side = min(height, width)
    middle, far = np.array([width // 2, height // 2], np.float64), side // 3
    three = middle + far * np.array([[1, 1], [1, -1], [-1, -1]])
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    flat = torch.stack([columns, rows, torch.ones_like(rows)]).double().flatten(1)  # (3, H * W)
    bent = []
    for random in draws:
        moved = three + random.uniform(-corner * side, corner * side, three.shape)
        # the affine map from where the corners are now to where they were
        back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), three).T
        bent.append((torch.from_numpy(back) @ flat).view(2, height, width))
    sources = torch.stack(bent)  # (B, 2, H, W): columns, rows
    x = read_at(x, sources[:, 1], sources[:, 0], "reflect")
    moves = _drawn(draws, lambda random: random.uniform(-1, 1, (2, height, width)))
    moves = shift * side * gaussian_blur(moves, smoothness * side, truncate=3, edge="symmetric")
    return read_at(x, rows + moves[:, 1], columns + moves[:, 0], "symmetric")


def pixelate(x: Tensor, _draws: Draws, share: float) -> Tensor:
    """Fewer, larger pixels."""
    return _there_and_back(x, share, Image.Resampling.BOX)


def resize(x: Tensor, _draws: Draws, share: float) -> Tensor:
    """Shrunk and enlarged again, bilinear, as on the way through somebody's pipeline."""
    return _there_and_back(x, share, Image.Resampling.BILINEAR)


def _there_and_back(x: Tensor, share: float, by: Image.Resampling) -> Tensor:
    height, width = x.shape[-2:]
    small = max(int(width * share), 1), max(int(height * share), 1)

    def there_and_back(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(plane).resize(small, by).resize((width, height), by))

    planes = _levels(x).reshape(-1, height, width)
    return _floats(np.stack([there_and_back(plane) for plane in planes]).reshape(x.shape))


def jpeg_compression(x: Tensor, _draws: Draws, quality: float) -> Tensor:
    """Through a JPEG file; channels that are no RGB, one by one as grey ones."""
    found = []
    for picture in _levels(x):
        if len(picture) == 3:
            found.append(_through_jpeg(picture.transpose(1, 2, 0), quality).transpose(2, 0, 1))
        else:
            found.append(np.stack([_through_jpeg(plane, quality) for plane in picture]))
    return _floats(np.stack(found))


def _through_jpeg(picture: NDArray[np.uint8], quality: float) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


def _levels(x: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = (x * 255).round().to(torch.uint8).numpy()
    return found


def _floats(levels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(levels).float() / 255


KINDS: Mapping[CorruptionKind, Callable[..., Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "resize": resize,
}
