"""The five adversarial AP methods of the paper (Section 4, Algorithms 1 to 5)."""

# Every objective answers the same call, though few need all of it.
# ruff: noqa: ARG002

from typing import Any

from torch import Tensor

from adap.core.config.methods import AdapLNMethod, AdapLPNMethod, AdapLZMethod, AdapPZMethod
from adap.core.objectives.ap import APObjective
from adap.core.objectives.estimators import ListwiseEstimator
from adap.core.objectives.surrogates import bernoulli_kl, half_squared_shift, negative_margin


class AdapMM(APObjective):
    """min max P(w, delta), eq. (6), Algorithm 2: the attack ascends the AP surrogate itself.

    Algorithm 2 also commits the estimators at each attack step; here they are only read during
    the attack, so that one optimisation step is one visit, as in every other method.
    """

    needs_adversarial = True

    def inner_loss(self, clean: None, adv: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        return self.ap.shares(adv, targets, index, commit=False)

    def forward(
        self, clean: None, adv: Tensor, targets: Tensor, index: Tensor, anchor: Tensor | None = None
    ) -> Tensor:
        return self.p(adv, targets, index)


class AdapPZ(APObjective):
    """min P(w) + lambda * mean max KL(clean, adv), eq. (7), Algorithm 4."""

    needs_clean = needs_adversarial = inner_needs_clean = True

    def __init__(self, method: AdapPZMethod, *, examples: int, classes: int | None = None) -> None:
        super().__init__(method, examples=examples, classes=classes)
        self.weight = method.lambda_

    def inner_loss(self, clean: Tensor, adv: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        return half_squared_shift(clean, adv)

    def forward(
        self,
        clean: Tensor,
        adv: Tensor,
        targets: Tensor,
        index: Tensor,
        anchor: Tensor | None = None,
    ) -> Tensor:
        return self.p(clean, targets, index) + self.weight * bernoulli_kl(clean, adv).mean()


class AdapLN(APObjective):
    """min P(w) + lambda * R(w, delta), attacked pointwise, eq. (9), Algorithm 1.

    With an anchor, which is not the paper's, R keeps the attacked ranking near a smoother one: the
    clean ranking of the averaged weights. Its gradient then flows through the attacked logits only.
    """

    needs_clean = needs_adversarial = True

    def __init__(
        self,
        method: AdapLZMethod | AdapLNMethod | AdapLPNMethod,
        *,
        examples: int,
        classes: int | None = None,
    ) -> None:
        super().__init__(method, examples=examples, classes=classes)
        self.weight = method.lambda_
        self.needs_anchor = getattr(method, "anchor", "own") == "ema"
        self.listwise = ListwiseEstimator(
            gamma=method.gamma2, first_visit=method.first_visit, classes=classes
        )

    def inner_loss(self, clean: Any, adv: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        return negative_margin(adv, targets)

    def forward(
        self,
        clean: Tensor,
        adv: Tensor,
        targets: Tensor,
        index: Tensor,
        anchor: Tensor | None = None,
    ) -> Tensor:
        # R compares the attacked ranking with the clean one, or with the anchor's in its place
        kept = clean if anchor is None else anchor
        r = self.listwise.shares(kept, adv, commit=self.commits).sum(dim=0).mean()
        return self.p(clean, targets, index) + self.weight * r


class AdapLPN(AdapLN):
    """AdAP_LN plus lambda * mean KL(clean, adv), eq. (10), Algorithm 3."""

    def forward(
        self,
        clean: Tensor,
        adv: Tensor,
        targets: Tensor,
        index: Tensor,
        anchor: Tensor | None = None,
    ) -> Tensor:
        pointwise = bernoulli_kl(clean, adv).mean()
        return super().forward(clean, adv, targets, index, anchor) + self.weight * pointwise


class AdapLZ(AdapLN):
    """AdAP_LN as a zero-sum game, eq. (18), Algorithm 5: the attack ascends R itself.

    As in AdAP_MM, the attack reads the estimator and does not write it.
    """

    inner_needs_clean = True

    def inner_loss(self, clean: Tensor, adv: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        return self.listwise.shares(clean, adv, commit=False)
