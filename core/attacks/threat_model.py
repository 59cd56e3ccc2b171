"""Threat model: the geometry of what an attacker may do to one image, shared by every attack.

Images are (B, C, H, W) floats with pixels in [0, 1]; the perturbation of each image is bounded in a
norm or to a place, and the perturbed image stays an image.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Generator, Tensor

from adap.core.attacks.geometry import (
    FewPixels,
    Geometry,
    L1Ball,
    L2Ball,
    LinfBall,
    SquarePatch,
)
from adap.core.config.threats import Norm, refuse_beyond_pixels
from adap.core.errors import ConfigError

SHAPES: Mapping[Norm, type[Geometry]] = {
    "linf": LinfBall,
    "l2": L2Ball,
    "l1": L1Ball,
    "l0": FewPixels,
    "patch": SquarePatch,
}


@dataclass(frozen=True)
class ThreatModel:
    """The set {x' in [0, 1]: |x' - x| <= epsilon}, image by image, in the given norm.

    l0: at most epsilon pixels, all channels of each, changed at will. patch: the pixels of one
    square whose sides are epsilon pixels long, wherever it is.
    """

    norm: Norm
    epsilon: float

    def __post_init__(self) -> None:
        if self.norm not in SHAPES:
            raise ConfigError(f"expected norm {', '.join(map(repr, SHAPES))}, got {self.norm!r}")
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ConfigError(f"expected a finite epsilon of at least 0, got {self.epsilon}")
        try:
            refuse_beyond_pixels("epsilon", self.epsilon, self.norm)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @cached_property
    def _shape(self) -> Geometry:
        return SHAPES[self.norm](self.epsilon)

    @property
    def reach(self) -> float:
        """The unit of step sizes: epsilon of a ball, 1 where a pixel may go anywhere."""
        return float(self._shape.reach)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The nearest point to `x_adv` that is both within the threat around `x` and in [0, 1]."""
        return self._shape.project(x_adv, x)

    def random_start(self, x: Tensor, *, generator: Generator) -> Tensor:
        """A point drawn from the threat around each image: uniformly from a ball, projected into
        [0, 1]; of l0 and patch places and values both uniform."""
        return self._shape.random_start(x, generator=generator)

    def step(self, x_adv: Tensor, gradient: Tensor, x: Tensor, *, size: float | Tensor) -> Tensor:
        """Up the gradient by a step of this size, and back to the nearest point.

        L-inf: along the sign of the gradient. L2: along the gradient. L1: towards the
        furthest point. l0 and patch: where most is gained. A pixel whose gradient is NaN, and an
        image whose gradient is zero, do not move up.
        """
        return self._shape.step(x_adv, gradient.nan_to_num(nan=0.0), x, size=size)

    def furthest(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The point at which a function that is linear, with this gradient, is highest."""
        return self._shape.furthest(x, gradient.nan_to_num(nan=0.0))
