"""The fast gradient sign method: one step, as far as the threat model allows.

Goodfellow, Shlens & Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adap.core.attacks.base import LossFn, loss_and_gradient
from adap.core.attacks.threat_model import ThreatModel

# In epsilons. The nearest point to a far one is the one furthest along the gradient; a step of just
# epsilon stops short of it where the box of an L2 ball binds, and pixels at their walls are lost.
FAR = 1000


@dataclass(frozen=True)
class FGSM:
    """The point of the threat model where a loss with the gradient at x would be highest.

    Exact for a loss that is linear within the ball. L-inf: epsilon times the sign of the gradient,
    clipped. L2: epsilon along the gradient, where pixels that meet black or white leave what they
    cannot use to the others. It draws nothing, and costs one forward and one backward pass; it is
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
        direction = threat_model.steepest_ascent(gradient)
        return threat_model.project(x + FAR * threat_model.epsilon * direction, x)
