"""The smallest change of an image that brings a function of it below zero.

Pintor, Roli, Brendel & Biggio, "Fast minimum-norm adversarial attacks through adaptive norm
constraints", NeurIPS 2021, Algorithm 1: one ascent in which every image has an epsilon of its own,
that shrinks while the image is across and grows while it is not. Differs: what was found is drawn
back towards the image by bisection in the end.
"""

import math

import torch
from torch import Tensor

from adap.core.attacks.base import LossFn, choose, loss_and_gradient
from adap.core.attacks.geometry import Geometry, L1Ball, L2Ball, LinfBall, unit
from adap.core.errors import ConfigError

SHRINK = 0.05  # gamma: by which an epsilon changes from step to step, falling to 0
STEP = {"linf": 10.0, "l2": 1.0, "l1": 1.0}  # alpha: L2 length of the first step, falling to 0
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
BALLS: dict[str, type[Geometry]] = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}
LEAST = 1e-4  # of the first epsilon: at a tie a linear function needs none, and stays there
HALVINGS = 12  # of the way back: a five-thousandth of the change is left


def smallest_change(height: LossFn, x: Tensor, *, norm: str, steps: int) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) images in [0, 1] at which `height` is below 0, and (B,) their distances to `x`.

    height: (B, C, H, W) to (B,), each of its own image alone.  norm: 'linf', 'l2' or 'l1'.
    Where nothing below 0 was found the distance is infinite and the image is `x`; where `x` is
    below 0 itself it is 0. What is found bounds the smallest change from above. It draws nothing.
    Costs `steps` forward and backward passes, and HALVINGS + 3 forward passes.

    Raises ConfigError for another norm and for no step.
    """
    if norm not in BALLS:
        raise ConfigError(f"expected norm {' or '.join(BALLS)} for smallest changes, got {norm!r}")
    if steps < 1:
        raise ConfigError(f"expected at least 1 step, got {steps}")
    best, best_size = x, torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    size = torch.full_like(best_size, torch.inf)
    at = x
    for step in range(steps):
        falling = 0.5 * (1 + math.cos(math.pi * step / steps))
        value, gradient = loss_and_gradient(height, at)
        gradient = gradient.nan_to_num(nan=0.0)
        now = distance(at, x, norm)
        across = value < 0
        closer = across & (now < best_size)
        best, best_size = choose(closer, at, best), torch.where(closer, now, best_size)
        # until it is across for the first time: a little further than a linear function would go
        slope = gradient.flatten(1).norm(p=DUAL[norm], dim=1).clamp_min(1e-12)
        first = ((now + value.abs() / slope) * (1 + SHRINK)).clamp_min(LEAST)
        reach = torch.where(best_size.isinf(), first, size * (1 + SHRINK * falling))
        size = torch.where(across, (size * (1 - SHRINK * falling)).minimum(best_size), reach)
        moved = (at - STEP[norm] * falling * unit(gradient)).clamp(0, 1)
        at = projected(moved, x, norm=norm, size=size)
    with torch.no_grad():
        now, value = distance(at, x, norm), height(at)
        closer = (value < 0) & (now < best_size)
        best = choose(closer, at, best)
        low, high = torch.zeros_like(best_size), torch.ones_like(best_size)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            tried = x + middle.view(-1, 1, 1, 1) * (best - x)
            across = height(tried) < 0
            low, high = torch.where(across, low, middle), torch.where(across, middle, high)
        found = (x + high.view(-1, 1, 1, 1) * (best - x)).clamp(0, 1)
        across = height(found) < 0  # an image is never said to be out that is not
        found = choose(across, found, best)
        there = across | (height(best) < 0)
        infinite = torch.full_like(best_size, torch.inf)
    return choose(there, found, x), torch.where(there, distance(found, x, norm), infinite)


def distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """(B,)"""
    delta = (x_adv - x).flatten(1)
    found: Tensor = delta.norm(p={"linf": math.inf, "l2": 2.0, "l1": 1.0}[norm], dim=1)
    return found


def projected(x_adv: Tensor, x: Tensor, *, norm: str, size: Tensor) -> Tensor:
    """To the ball of each image's own size."""
    ball = BALLS[norm](size.clamp_max(torch.finfo(x.dtype).max ** 0.25).view(-1, 1, 1, 1))
    return ball.project(x_adv, x)
