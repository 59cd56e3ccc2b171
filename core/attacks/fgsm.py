"""The fast gradient sign method: one step, as far as the threat model allows.

Goodfellow, Shlens & Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adap.core.attacks.base import LossFn, loss_and_gradient
from adap.core.attacks.threat_model import ThreatModel


@dataclass(frozen=True)
class FGSM:
    """The point of the threat model where a loss with the gradient at x would be highest.

    Exact for a loss that is linear within the ball. L-inf: epsilon times the sign of the gradient,
    clipped. L2: epsilon along the gradient, where pixels that meet black or white leave what they
    cannot use to the others. L1: the steepest pixels go to their walls. l0 and patch: the places
    where that gains most. It draws nothing, and costs one forward and one backward pass; it is
    not known whether the loss rose.
    """

    def perturb(
        self,
        loss_fn: LossFn,
        x: Tensor,
        *,
        threat_model: ThreatModel,
        generator: torch.Generator,  # noqa: ARG002
    ) -> Tensor:
        """See `adap.core.attacks.base.Attack`."""
        _, gradient = loss_and_gradient(loss_fn, x)
        return threat_model.furthest(x, gradient)
