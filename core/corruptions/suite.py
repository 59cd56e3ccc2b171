"""Images corrupted: the same pixels for the same image, kind, severity and seed, whoever asks."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from adap.core.config.corruptions import Corruption
from adap.core.corruptions.kinds import KINDS
from adap.core.corruptions.parameters import PARAMETERS, refuse_too_small, table_of

AT_ONCE = 64  # images: what is done to them fits into the cache, and into memory where they are big


def corrupted(
    images: NDArray[np.uint8] | NDArray[np.float32],
    example_ids: Sequence[str],
    *,
    corruption: Corruption,
    seed: int,
) -> NDArray[np.uint8]:
    """(N, C, H, W) uint8: each image as a corruption leaves it, rounded to 8 bits.

    images: (N, C, H, W), 8-bit or floats in [0, 1], which are rounded to 8 bits first.
    example_ids: what the random numbers of an image hang on, beside the corruption and the seed: so
    the picture is the same in any batch, shard or sample.

    Raises DataError for images below 8x8 pixels.
    """
    height, width = images.shape[2:]
    refuse_too_small(height, width)
    parameters = PARAMETERS[corruption.kind].at(table_of(height, width), corruption.severity)
    found = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        draws = [_random(seed, corruption, example_id) for example_id in example_ids[rows]]
        x = torch.tensor(images[rows]).float()
        x = x / 255 if images.dtype == np.uint8 else (x * 255).round() / 255
        with torch.no_grad():
            x = KINDS[corruption.kind](x, draws, *parameters)
        found[rows] = (x.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return found


def _random(seed: int, corruption: Corruption, example_id: str) -> np.random.Generator:
    text = f"{seed}/{corruption.key}/{example_id}"
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
