"""Noise of the size of an attack: the control that every attack must beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from adap.core.attacks.base import LossFn
from adap.core.attacks.threat_model import ThreatModel


@dataclass(frozen=True)
class Noise:
    """One draw from the ball, uniform: each pixel in L-inf, the whole image in L2 and L1.
    Of l0 and patch both the places and their values are drawn.

    One draw and not the best of several, which would be a search, and a poorer one than Square's.
    It never looks at the loss, so it costs no pass.
    """

    def perturb(
        self,
        loss_fn: LossFn,  # noqa: ARG002
        x: Tensor,
        *,
        threat_model: ThreatModel,
        generator: torch.Generator,
    ) -> Tensor:
        """See `adap.core.attacks.base.Attack`."""
        return threat_model.random_start(x, generator=generator)
