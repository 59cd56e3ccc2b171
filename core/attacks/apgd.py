"""Auto-PGD: momentum, and a step size that is halved for each image when its progress stalls.

Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020, Algorithm 1. The loss is whatever the caller passes; theirs
(cross-entropy and DLR) need two and three logits.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adap.core.attacks.averaging import averaged
from adap.core.attacks.base import BestIterate, LossFn, choose, loss_and_gradient
from adap.core.attacks.patience import with_patience
from adap.core.attacks.threat_model import ThreatModel
from adap.core.errors import ConfigError

MOMENTUM = 0.75  # alpha in the paper: the weight of the new step against the last move
RISING = 0.75  # rho: the share of steps that must raise the loss between two checkpoints


@dataclass(frozen=True)
class APGD:
    """Ascent from a random start, without a step size to choose; best iterate of all restarts.

    steps: gradient evaluations of one restart.  restarts: independent starts.
    patience: an image whose loss has not risen above its best of this restart for so many steps is
    no longer attacked until the next one.
    averaged: points over which each gradient is averaged, see `adap.core.attacks.averaging`.

    Costs, each restart, `steps` forward and backward passes and one more forward pass; averaged
    gradients cost `averaged` such passes and a forward pass each.
    """

    steps: int
    restarts: int = 1
    patience: int | None = None
    averaged: int = 1

    def __post_init__(self) -> None:
        if self.steps < 2 or self.restarts < 1:
            raise ConfigError(
                f"expected at least 2 steps and 1 restart, got {self.steps} and {self.restarts}"
            )

    def perturb(
        self, loss_fn: LossFn, x: Tensor, *, threat_model: ThreatModel, generator: torch.Generator
    ) -> Tensor:
        """See `adap.core.attacks.base.Attack`."""
        best = BestIterate(x)
        loss_fn = averaged(loss_fn, self.averaged, threat_model=threat_model, generator=generator)
        for _ in range(self.restarts):
            start = threat_model.random_start(x, generator=generator)
            patient = with_patience(loss_fn, self.patience)
            run = self._ascend(patient, x, start=start, threat_model=threat_model)
            best.keep(run.x, run.loss)
        return best.x

    def _ascend(
        self, loss_fn: LossFn, x: Tensor, *, start: Tensor, threat_model: ThreatModel
    ) -> BestIterate:
        """Algorithm 1. Its restart from the best iterate needs the gradient there, which is kept
        instead of computed twice."""
        best = BestIterate(x)
        x_adv = previous = start
        loss, gradient = loss_and_gradient(loss_fn, x_adv)
        best.keep(x_adv, loss)
        best_gradient = gradient
        step_size = torch.full_like(x[:, :1, :1, :1], 2 * threat_model.reach)

        checkpoints, last_checkpoint = checkpoints_of(self.steps), 0
        best_at_checkpoint = best.loss
        rises = torch.zeros_like(loss)  # (B,) steps since the last checkpoint that raised the loss
        halved = torch.zeros_like(loss, dtype=torch.bool)  # (B,) at the last checkpoint

        for step in range(1, self.steps + 1):
            moved = threat_model.step(x_adv, gradient, x, size=step_size)
            if step > 1:
                momentum = MOMENTUM * (moved - x_adv) + (1 - MOMENTUM) * (x_adv - previous)
                moved = threat_model.project(x_adv + momentum, x)
            x_adv, previous = moved, x_adv
            if step == self.steps:
                break
            loss_before = loss
            loss, gradient = loss_and_gradient(loss_fn, x_adv)
            best_gradient = choose(best.keep(x_adv, loss), gradient, best_gradient)
            rises = rises + (loss > loss_before)

            if step in checkpoints:
                too_few_rises = rises < RISING * (step - last_checkpoint)  # condition 1
                no_progress = ~halved & (best.loss == best_at_checkpoint)  # condition 2
                halved = too_few_rises | no_progress
                step_size = choose(halved, step_size / 2, step_size)
                x_adv = choose(halved, best.x, x_adv)
                gradient = choose(halved, best_gradient, gradient)
                loss = torch.where(halved, best.loss, loss)
                best_at_checkpoint, last_checkpoint = best.loss, step
                rises = torch.zeros_like(rises)

        with torch.no_grad():
            best.keep(x_adv, loss_fn(x_adv))
        return best


def checkpoints_of(steps: int) -> list[int]:
    """Steps after which the step size may be halved: w_j = ceil(p_j * steps), where p_0 = 0,
    p_1 = 0.22 and p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).

    >>> checkpoints_of(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    # In hundredths, as whole numbers: 0.07 * 100 is above 7 in floating point, and would round up.
    before, p = 0, 22
    checkpoints = []
    while p < 100:
        checkpoints.append(math.ceil(p * steps / 100))
        before, p = p, p + max(p - before - 3, 6)
    return sorted(set(checkpoints))
