"""Threat model: the geometry of what an attacker may do to one image, shared by every attack.

Images are (B, C, H, W) floats with pixels in [0, 1]; the perturbation of each image is bounded in
L-inf or L2 norm, and the perturbed image stays an image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adap.core.config import Norm, refuse_beyond_pixels
from adap.core.errors import ConfigError

# Rounds of the L2 projection. Each all but squares the error; it was exact in float32 after four,
# for dark and for bright images, steps from a tenth of epsilon to 25 of it.
L2_ROUNDS = 5


@dataclass(frozen=True)
class ThreatModel:
    """The set {x' in [0, 1]: |x' - x| <= epsilon}, image by image, in the given norm."""

    norm: Norm
    epsilon: float

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise ConfigError(f"expected norm 'linf' or 'l2', got {self.norm!r}")
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ConfigError(f"expected a finite epsilon of at least 0, got {self.epsilon}")
        try:
            refuse_beyond_pixels("epsilon", self.epsilon, self.norm)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest point to `x_adv` that is both in the ball around `x` and in [0, 1].

        L-inf: pixel by pixel. L2: clip(x + scale * (x_adv - x)) with the largest scale up to 1
        that stays in the ball (the KKT conditions of the nearest point). Shrinking into the ball
        and clipping afterwards, as is common, stops short of that wherever a pixel meets black or
        white, and gives a weaker attack.
        """
        if self.norm == "linf":
            return x_adv.clamp(x - self.epsilon, x + self.epsilon).clamp_(0, 1)
        delta = x_adv - x
        way, room = delta.abs(), torch.where(delta > 0, 1 - x, x)  # room: to the pixel's wall
        scale = torch.zeros_like(x[:, :1, :1, :1])
        for _ in range(L2_ROUNDS):
            # The scale that is right if no pixel meets its wall but those known to: it grows
            # round by round from below, so that the point is in the ball whenever we stop.
            at_wall = scale * way >= room
            used = torch.where(at_wall, room, 0).square().sum(dim=(1, 2, 3), keepdim=True)
            free = torch.where(at_wall, 0, way).square().sum(dim=(1, 2, 3), keepdim=True)
            left = (self.epsilon**2 - used).clamp_min(0)
            scale = (left / free.clamp_min(torch.finfo(x.dtype).tiny)).sqrt().clamp_max(1)
        # where: a point inside keeps its bits instead of being taken apart and added up again
        return torch.where(scale < 1, x + scale * delta, x_adv).clamp_(0, 1)

    def random_start(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """A point drawn uniformly from the ball around each image, projected into [0, 1]."""
        if self.norm == "linf":
            noise = torch.rand(
                x.shape, dtype=x.dtype, device=generator.device, generator=generator
            ).to(x.device)
            delta = self.epsilon * (2 * noise - 1)
        else:
            # The first d coordinates of a uniform point on the sphere in d + 2 dimensions are
            # uniform in the d-dimensional ball. One draw, so that the numbers an image gets
            # do not depend on how many images follow it.
            count, pixels = len(x), x[0].numel()
            point = normal((count, pixels + 2), like=x, generator=generator)
            point = point / point.norm(dim=1, keepdim=True)
            delta = self.epsilon * point[:, :pixels].reshape(x.shape)
        return self.project(x + delta, x)

    def steepest_ascent(self, gradient: Tensor) -> Tensor:
        """The direction of length 1 along which a linear function with this gradient rises most.

        L-inf: the sign of the gradient. L2: the gradient over its norm. A pixel whose gradient is
        NaN, and an image whose gradient is zero, do not move.
        """
        gradient = gradient.nan_to_num(nan=0.0)
        return gradient.sign() if self.norm == "linf" else unit(gradient)


def unit(v: Tensor) -> Tensor:
    """(B, C, H, W) scaled to L2 length 1, image by image; zero stays zero.

    Divided by the largest entry first: the squares of a saturated network's gradient (1e-30)
    vanish in float32, and those of a huge one overflow.
    """
    tiny = torch.finfo(v.dtype).tiny
    v = v / v.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(tiny)
    length: Tensor = v.flatten(1).norm(dim=1).clamp_min(tiny)
    return v / length.view(-1, 1, 1, 1)


def normal(shape: Sequence[int], *, like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) with the dtype and on the device of `like`, drawn where the generator lives: so a
    CPU generator gives the same numbers whatever device the images are on."""
    return torch.randn(shape, dtype=like.dtype, device=generator.device, generator=generator).to(
        like.device
    )
