"""Projected gradient ascent with a fixed step size (Madry et al. 2018)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adap.core.attacks.base import BestIterate, LossFn, loss_and_gradient
from adap.core.attacks.geometry import normal
from adap.core.attacks.patience import with_patience
from adap.core.attacks.threat_model import ThreatModel
from adap.core.errors import ConfigError

START_SIZE = 0.001
"""Standard deviation of the paper's random start, in pixels, whatever epsilon is."""


@dataclass(frozen=True)
class PGD:
    """x <- project(x + step_size * the direction of steepest ascent), `steps` times.

    steps: gradient evaluations of one restart.  step_size: in pixels, or in L2 or L1 length.
    restarts: each image keeps the best of them.
    iterate: 'best' returns each image's iterate of highest loss, 'last' the last one, which a
    step that overshoots can leave worse than an earlier one.
    start: of the first restart: (B, C, H, W) images, projected; or by name. 'normal' adds
    0.001 * N(0, 1), as the paper's training and evaluation do (there the start may leave [0, 1] by
    its noise; here it is projected as well).
    'uniform' draws from the ball; in L2 that is nearly always its border, in a direction which
    the steps then take long to leave. Further restarts are uniform: starts that lie next to one
    another lead to the same place.
    patience: an image whose loss has not risen above its best of this restart for so many steps is
    no longer attacked until the next one.

    Costs `steps` forward and backward passes, and one more forward pass where losses are compared
    (best iterate, or several restarts): no pass is spent on the clean image, so only the
    iterates compete.
    """

    steps: int
    step_size: float
    restarts: int = 1
    iterate: Literal["best", "last"] = "best"
    start: Literal["normal", "uniform"] | Tensor = "normal"
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ConfigError(
                f"expected at least 1 step and 1 restart, got {self.steps} and {self.restarts}"
            )
        if not self.step_size >= 0:
            raise ConfigError(f"expected a step_size of at least 0, got {self.step_size}")

    def perturb(
        self, loss_fn: LossFn, x: Tensor, *, threat_model: ThreatModel, generator: torch.Generator
    ) -> Tensor:
        """See `adap.core.attacks.base.Attack`."""
        best = BestIterate(x)
        for restart in range(self.restarts):
            if restart == 0 and isinstance(self.start, Tensor):
                x_adv = threat_model.project(self.start, x)
            elif restart == 0 and self.start == "normal":
                noise = normal(x.shape, like=x, generator=generator)
                x_adv = threat_model.project(x + START_SIZE * noise, x)
            else:
                x_adv = threat_model.random_start(x, generator=generator)
            patient = with_patience(loss_fn, self.patience)
            for _ in range(self.steps):
                loss, gradient = loss_and_gradient(patient, x_adv)
                if self.iterate == "best":
                    best.keep(x_adv, loss)
                x_adv = threat_model.step(x_adv, gradient, x, size=self.step_size)
            if self.iterate == "last" and self.restarts == 1:
                return x_adv
            # The last iterates compete, whether or not their image was given up on.
            last_loss_fn = loss_fn if self.iterate == "last" else patient
            with torch.no_grad():
                best.keep(x_adv, last_loss_fn(x_adv))
        return best.x
