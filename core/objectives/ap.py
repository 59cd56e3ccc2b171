"""Maximising AP on clean images (Section 3.1), the ground on which every AdAP method stands."""

# Every objective answers the same call, though few need all of it.
# ruff: noqa: ARG002

from torch import Tensor

from adap.core.config.methods import (
    AdapLNMethod,
    AdapLPNMethod,
    AdapLZMethod,
    AdapMMMethod,
    AdapPZMethod,
    APMethod,
)
from adap.core.objectives.base import Objective
from adap.core.objectives.estimators import APEstimator

APMethods = APMethod | AdapMMMethod | AdapPZMethod | AdapLZMethod | AdapLNMethod | AdapLPNMethod


class APObjective(Objective):
    """An objective with the AP surrogate P(w) of eq. (1) in it."""

    needs_positives = True

    def __init__(self, method: APMethods, *, examples: int, classes: int | None = None) -> None:
        super().__init__()
        self.ap = APEstimator(
            examples,
            margin=method.margin,
            gamma=method.gamma1,
            first_visit=method.first_visit,
            classes=classes,
        )

    def p(self, logits: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        """() the surrogate of P(w), of K classes their mean, its estimators committed in a step."""
        return self.ap.shares(logits, targets, index, commit=self.commits).sum(dim=0).mean()

    def metrics(self) -> dict[str, float]:
        """surrogate_ap, on the images whose AP is optimised: attacked ones for AdAP_MM."""
        return {"surrogate_ap": self.ap.surrogate_ap()}


class AP(APObjective):
    """min P(w), eq. (1) (SOAP)."""

    needs_clean = True

    def forward(
        self, clean: Tensor, adv: None, targets: Tensor, index: Tensor, anchor: Tensor | None = None
    ) -> Tensor:
        return self.p(clean, targets, index)
