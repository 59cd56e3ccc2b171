"""Images into a network, logits out, and the loss that attacks ascend: for audits and checks.

Nothing here judges. Logits may be NaN or of a wrong shape; who asks decides what that means.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from adap.core.attacks.base import PerImage
from adap.core.config.attacks import APGDAttack, Attack

Network = Callable[[Tensor], Tensor]  # (B, C, H, W) to (B,) logits

Pixels = NDArray[np.uint8] | NDArray[np.float32]
"""(N, C, H, W): 8-bit as stored, or floats in [0, 1] that a caller of the library has."""


CPU = torch.device("cpu")


class Rows(Protocol):
    """Images of a split, (N, C, H, W) once they are looked at: by a slice or by an index."""

    def __getitem__(self, rows: Any, /) -> Any: ...


def as_input(images: Pixels, device: torch.device) -> Tensor:
    """Images as floats in [0, 1] on the device; copied, as stored images are read-only."""
    x = torch.tensor(images, device=device).float()
    return x / 255 if images.dtype == np.uint8 else x


def logits_of(network: Network, x: Tensor) -> NDArray[np.float64]:
    """float64 logits, computed without gradients."""
    with torch.no_grad():
        logits: Tensor = network(x)
    return logits.double().cpu().numpy()


def loss_of(
    attack: Attack, network: Network, targets: NDArray[np.int64], device: torch.device
) -> PerImage:
    """What an attack ascends: -(2y - 1) * logit, which pushes positives down the ranking and
    negatives up, or, as log(1 + exp) of it, binary cross-entropy where the attack asks for that.

    targets: (B,) in {0, 1}.
    """
    signs = torch.tensor(1 - 2 * targets, dtype=torch.float32, device=device)
    if isinstance(attack, APGDAttack) and attack.loss == "bce":
        return PerImage(lambda x, signs: F.softplus(signs * network(x)), signs)
    return PerImage(lambda x, signs: signs * network(x), signs)


def generator_of(*parts: object, device: torch.device = CPU) -> torch.Generator:
    """Random numbers of their own for each piece of work, whoever does it and in whatever order.

    device: that draws them; on a GPU they are others than on a CPU.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big"))
