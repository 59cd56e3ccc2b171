"""The fast gradient sign method: one step, as long as the threat model allows.

Goodfellow, Shlens & Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.attacks.base import LossFn, loss_and_gradient
from core.attacks.threat_model import ThreatModel


@dataclass(frozen=True)
class FGSM:
    """x + epsilon * steepest_ascent(gradient at x), projected; in L2 the step of length epsilon.

    Exact for a loss that is linear within the ball. It draws nothing, and costs one forward and
    one backward pass; it is not known whether the loss rose.
    """

    def perturb(
        self,
        loss_fn: LossFn,
        x: Tensor,
        *,
        threat_model: ThreatModel,
        generator: torch.Generator,  # noqa: ARG002
    ) -> Tensor:
        """See `core.attacks.base.Attack`."""
        _, gradient = loss_and_gradient(loss_fn, x)
        direction = threat_model.steepest_ascent(gradient)
        return threat_model.project(x + threat_model.epsilon * direction, x)
