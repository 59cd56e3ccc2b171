"""The seam between attacks and everything else, and what all gradient attacks need.

An attack knows no model, label or objective: it is handed a function of the images and ascends it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adap.core.attacks.threat_model import ThreatModel
from adap.core.errors import ConfigError

LossFn = Callable[[Tensor], Tensor]
"""(B, C, H, W) images to (B,) losses, each of its own image alone; attacks ascend it."""


@dataclass(frozen=True)
class PerImage:
    """A loss that knows what belongs to each image, so that it can be asked about some of them.

    function: (B, C, H, W) images and (B,) what belongs to them (a sign, a target) to (B,) losses.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    of_each: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(B,) losses."""
        return self.function(x, self.of_each)

    def only(self, rows: Tensor) -> "PerImage":
        """The same loss for these rows of the batch."""
        return PerImage(self.function, self.of_each[rows])


class Attack(Protocol):
    """A search for the image of highest loss within a threat model."""

    def perturb(
        self, loss_fn: LossFn, x: Tensor, *, threat_model: ThreatModel, generator: torch.Generator
    ) -> Tensor:
        """(B, C, H, W) images of the threat model around `x`, in [0, 1], detached.

        The generator decides every random choice and may live on another device than `x`.
        """
        ...


def perturbed(
    attack: Attack,
    loss_fn: LossFn,
    x: Tensor,
    *,
    threat_model: ThreatModel,
    generator: torch.Generator,
) -> Tensor:
    """(B, C, H, W) what an attack finds, as it may be scored: within the threat model and [0, 1].

    An attack is not taken at its word: what left the ball is projected back to its nearest point,
    so that no figure rests on an image that the attacker may not show. Raises ConfigError for
    images of another shape, and for pixels that are not finite.
    """
    x_adv = attack.perturb(loss_fn, x, threat_model=threat_model, generator=generator).detach()
    if x_adv.shape != x.shape:
        raise ConfigError(
            f"expected {type(attack).__name__} to return images of shape {tuple(x.shape)}, "
            f"got {tuple(x_adv.shape)}"
        )
    broken = int((~x_adv.isfinite()).flatten(1).any(dim=1).sum())
    if broken:
        raise ConfigError(
            f"expected {type(attack).__name__} to return pixels in [0, 1], got NaN or infinity in "
            f"{broken} of {len(x)} images"
        )
    return threat_model.project(x_adv.to(x), x)


BESIDE = 2**-23  # of a pixel in [0, 1]: two steps of float32 below 1


def loss_and_gradient(loss_fn: LossFn, x_adv: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) losses and (B, C, H, W) their gradients: one forward, one backward to the input.

    A network that lets no gradient through (rounding, for example) has gradient zero: the attack
    stays at its start, and the audit shows it.

    Black and white pixels are asked `BESIDE` their wall: a network that clamps its input to [0, 1]
    has no gradient on the wall itself, in PyTorch, and the search would leave them alone. The loss
    is that of the image there; what an audit reports is scored again, as it is.
    """
    with torch.enable_grad():
        x_adv = x_adv.detach().clamp(BESIDE, 1 - BESIDE).requires_grad_()
        loss = loss_fn(x_adv)
        if not loss.requires_grad:
            return loss, torch.zeros_like(x_adv)
        # Each loss depends on its own image only, so the gradient of the sum is all gradients.
        (gradient,) = torch.autograd.grad(
            loss.sum(), x_adv, allow_unused=True, materialize_grads=True
        )
    return loss.detach(), gradient


class BestIterate:
    """For each image the iterate of highest loss so far; a NaN loss is never the highest."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.loss = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)

    def keep(self, x_adv: Tensor, loss: Tensor) -> Tensor:
        """Take over the iterates that are better; returns (B,) which ones were."""
        better = loss > self.loss
        self.x = choose(better, x_adv, self.x)
        self.loss = torch.where(better, loss, self.loss)
        return better


def choose(where: Tensor, x: Tensor, otherwise: Tensor) -> Tensor:
    """`x` for the images where the (B,) mask is true, `otherwise` for the others.

    Never an index: that would make a GPU wait for the host inside a step.
    """
    return torch.where(where.view(-1, 1, 1, 1), x, otherwise)
