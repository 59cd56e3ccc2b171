"""The methods that the paper compares with, which care for accuracy rather than for ranking."""

# Every objective answers the same call, though few need all of it.
# ruff: noqa: ARG002

from torch import Tensor

from adap.core.config.methods import CEMethod, MARTMethod, PGDMethod, TRADESMethod
from adap.core.objectives.base import Objective
from adap.core.objectives.surrogates import (
    bernoulli_kl,
    cross_entropy,
    half_squared_shift,
    negative_margin,
    wrongness,
)


class CE(Objective):
    """min mean CE(clean): no defence at all."""

    needs_clean = True

    def __init__(self, method: CEMethod, *, examples: int, classes: int | None = None) -> None:
        super().__init__()

    def forward(
        self, clean: Tensor, adv: None, targets: Tensor, index: Tensor, anchor: Tensor | None = None
    ) -> Tensor:
        return cross_entropy(clean, targets).mean()


class PGDTraining(Objective):
    """min mean max CE(adv), eq. (4) (Madry et al. 2018)."""

    needs_adversarial = True

    def __init__(self, method: PGDMethod, *, examples: int, classes: int | None = None) -> None:
        super().__init__()

    def inner_loss(self, clean: None, adv: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        return negative_margin(adv, targets)

    def forward(
        self, clean: None, adv: Tensor, targets: Tensor, index: Tensor, anchor: Tensor | None = None
    ) -> Tensor:
        return cross_entropy(adv, targets).mean()


class TRADES(Objective):
    """min mean (CE(clean) + lambda * max KL(clean, adv)), eq. (5) (Zhang et al. 2019)."""

    needs_clean = needs_adversarial = inner_needs_clean = True

    def __init__(self, method: TRADESMethod, *, examples: int, classes: int | None = None) -> None:
        super().__init__()
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
        return (cross_entropy(clean, targets) + self.weight * bernoulli_kl(clean, adv)).mean()


class MART(Objective):
    """min mean (CE(adv) + lambda * KL(clean, adv) * |y - p_clean|) (Wang et al. 2020).

    With CE(adv) alone in the first term, as the paper's experiments do; MART's own first term
    adds a margin.
    """

    needs_clean = needs_adversarial = True

    def __init__(self, method: MARTMethod, *, examples: int, classes: int | None = None) -> None:
        super().__init__()
        self.weight = method.lambda_

    def inner_loss(self, clean: None, adv: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        return negative_margin(adv, targets)

    def forward(
        self,
        clean: Tensor,
        adv: Tensor,
        targets: Tensor,
        index: Tensor,
        anchor: Tensor | None = None,
    ) -> Tensor:
        kl = bernoulli_kl(clean, adv) * wrongness(clean, targets)
        return (cross_entropy(adv, targets) + self.weight * kl).mean()
