"""One perturbation for all images: it raises the loss of whatever it is added to.

Moosavi-Dezfooli et al., "Universal adversarial perturbations", CVPR 2017, by the stochastic ascent
of Shafahi et al., "Universal adversarial training", AAAI 2020: steps along the sign of the gradient
(L-inf), or the gradient itself (L2), of the loss of all batches.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from adap.core.attacks.base import loss_and_gradient
from adap.core.attacks.geometry import unit
from adap.core.config.threats import BALL_NORMS
from adap.core.errors import ConfigError

Batch = tuple[Tensor, Callable[[Tensor], Tensor]]
"""(B, C, H, W) images, and what gives (B,) losses of images beside them; losses are added up."""


def universal_perturbation(
    batches: Callable[[], Iterable[Batch]],
    *,
    norm: str,
    epsilon: float,
    rounds: int,
    judge: Callable[[Tensor], float] = lambda losses: float(losses.sum()),
) -> Tensor:
    """(C, H, W) within epsilon: of the perturbations that were tried the one that is judged best.

    judge: what (N,) losses of all images are worth, the more the better; by default their sum.

    batches: gives all of them anew in each round, one in memory at a time. Perturbed images are
    clipped to [0, 1]. Starts at 0 and draws nothing; costs `rounds` + 1 forward and backward passes
    of every image.

    Raises ConfigError for another norm and for no round.
    """
    if norm not in BALL_NORMS:
        raise ConfigError(
            f"expected norm {' or '.join(BALL_NORMS)} for one perturbation of all images, got "
            f"{norm!r}"
        )
    if rounds < 1:
        raise ConfigError(f"expected at least 1 round, got {rounds}")
    size = 2.5 * epsilon / rounds
    delta = next(torch.zeros_like(x[:1]) for x, _ in batches())
    best, worth = delta, -math.inf
    for done in range(rounds + 1):
        losses, ascent = [], torch.zeros_like(delta)
        for x, loss_fn in batches():
            loss, gradient = loss_and_gradient(loss_fn, (x + delta).clamp(0, 1))
            losses.append(loss)
            # a pixel that is clipped feels nothing of a larger perturbation
            felt = ((x + delta) >= 0) & ((x + delta) <= 1)
            ascent += (gradient.nan_to_num(nan=0.0) * felt).sum(dim=0, keepdim=True)
        if (now := judge(torch.cat(losses))) > worth:
            best, worth = delta, now
        if done < rounds:
            delta = _moved(delta, ascent, size=size, norm=norm, epsilon=epsilon)
    return best[0]


def _moved(delta: Tensor, ascent: Tensor, *, size: float, norm: str, epsilon: float) -> Tensor:
    if norm == "linf":
        return (delta + size * ascent.sign()).clamp(-epsilon, epsilon)
    delta = delta + size * unit(ascent)
    length: Tensor = delta.norm().clamp_min(1e-12)
    return delta * (epsilon / length).clamp_max(1)
