"""Gradients averaged over points beside an image, which see past what turns too fast to follow.

Athalye, Engstrom et al., "Synthesizing robust adversarial examples", ICML 2018: a search follows
the mean of the gradients over what may happen to the image; here that is noise within the ball. A
term such as sin(200 x) drowns the gradient at a point and cancels in the mean. What has no gradient
at all (detached, rounded without a way through) is not seen by any average of gradients.
"""

from typing import Any

import torch
from torch import Tensor

from adap.core.attacks.base import LossFn, PerImage, loss_and_gradient
from adap.core.attacks.threat_model import ThreatModel


def averaged(
    loss_fn: LossFn, points: int, *, threat_model: ThreatModel, generator: torch.Generator
) -> LossFn:
    """The same losses, with gradients averaged over so many points; itself for one point.

    Each step then costs `points` forward and backward passes, and one forward pass for the loss.
    """
    if points == 1:
        return loss_fn

    def of(loss_fn: LossFn, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return loss_fn(x)
        loss: Tensor = _Averaged.apply(
            x,
            loss_fn,
            [threat_model.random_start(x.detach(), generator=generator) for _ in range(points)],
        )
        return loss

    if isinstance(loss_fn, PerImage):
        function = loss_fn.function
        return PerImage(lambda x, each: of(lambda x: function(x, each), x), loss_fn.of_each)
    return lambda x: of(loss_fn, x)


class _Averaged(torch.autograd.Function):
    """Each loss depends on its own image alone, so the gradient of a point is taken at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss_fn: LossFn, points: list[Tensor]) -> Tensor:
        gradient = torch.zeros_like(x)
        for point in points:
            gradient += loss_and_gradient(loss_fn, point)[1]
        ctx.save_for_backward(gradient / len(points))
        with torch.no_grad():
            return loss_fn(x).clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream.view(-1, 1, 1, 1) * gradient, None, None
