"""What the checks look at, and how figures become a check by their limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adap.core.audit.checks.limits import (
    AP_CHANGE,
    LEFT_OF_A_POSITIVE,
    NO_GRADIENTS,
    NO_NUMBER,
    REAL_MARGIN,
)
from adap.core.audit.checks.runs import Logits
from adap.core.figures.ranking import average_precision, floor_ap
from adap.core.report import Check, Limit, Status

SEVERITY: Sequence[Status] = ("skipped", "pass", "caution", "fail")


@dataclass(frozen=True)
class Judged:
    """The logits of the sample, clean and under every run, and what the checks read off them."""

    targets: NDArray[np.int64]
    clean: Logits
    found: Mapping[str, Logits]  # empty where no pixel may change

    @property
    def positives(self) -> int:
        return int(self.targets.sum())

    @property
    def floor(self) -> float:
        return floor_ap(self.positives, len(self.targets))

    @property
    def ap_limit(self) -> Limit:
        """AP_CHANGE, or what one and two positives weigh where that is more."""
        assert AP_CHANGE.fail is not None
        return Limit(
            caution=max(AP_CHANGE.caution, 1 / self.positives),
            fail=max(AP_CHANGE.fail, 2 / self.positives),
        )

    @property
    def left_limit(self) -> Limit:
        """Of what further searches take off an AP: see LEFT_OF_A_POSITIVE."""
        return Limit(caution=max(AP_CHANGE.caution, LEFT_OF_A_POSITIVE / self.positives))

    @property
    def real_margin(self) -> float:
        return REAL_MARGIN * float(self.clean.std())

    def margins(self, name: str) -> Logits:
        return (2 * self.targets - 1) * (self.clean if name == "clean" else self.found[name])

    def lowest(self, *names: str) -> Logits:
        """(n,) the lowest margin over these runs."""
        margins: Logits = np.min([self.margins(name) for name in names], axis=0)
        return margins

    def ap(self, *names: str) -> float:
        """AP of the lowest margins over these runs."""
        return self.ap_of(self.lowest(*names))

    def ap_of(self, margins: Logits) -> float:
        return average_precision((2 * self.targets - 1) * margins, self.targets)

    def drop(self, name: str) -> float:
        """How far the mean margin fell."""
        return float((self.margins("clean") - self.margins(name)).mean())

    def unjudgeable(self, check: str, *names: str) -> Check | None:
        """The check's answer where these runs leave nothing to judge: not run, or not finite."""
        if not self.found:
            return skipping(check, "Epsilon is 0, so there is no attack to look at.")
        if any(name not in self.found for name in names):
            return skipping(check, NO_GRADIENTS)
        return refused_numbers(check, *(self.margins(name) for name in ("clean", *names)))

    @property
    def white_box(self) -> list[str]:
        """The runs that follow the gradient within the threat model."""
        return [name for name in ("white_box", "doubled", "restart", "same") if name in self.found]


def check_of(
    name: str, message: str, figures: dict[str, float], limits: Mapping[str, Limit]
) -> Check:
    """A check of the status that its figures have by its limits."""
    return Check(
        name=name,
        status=status_of(figures, limits),
        message=message,
        figures=figures,
        limits=dict(limits),
    )


def status_of(figures: Mapping[str, float], limits: Mapping[str, Limit]) -> Status:
    """The gravest that any of the limits says."""
    statuses = (limit.status(figures[name]) for name, limit in limits.items())
    return max(statuses, key=SEVERITY.index, default="pass")


def skipping(name: str, why: str) -> Check:
    return Check(name=name, status="skipped", message=why, figures={})


def refused_numbers(name: str, *logits: Logits) -> Check | None:
    """A failed check where some image got no number."""
    broken = int((~np.isfinite(logits)).any(axis=0).sum())
    if not broken:
        return None
    message = (
        f"{broken} of {len(logits[0])} images score NaN or infinity here: attacks cannot follow "
        "such scores and no ranking holds them. Find the overflow or the division by zero."
    )
    return check_of(name, message, {"not_finite": float(broken)}, {"not_finite": NO_NUMBER})


def fuzzy(check: Check) -> Check:
    """A figure of a model whose scores are no function of the image says less than it seems to."""
    from_attacks = check.name not in ("units", "gradients", "repeatable", "batch_independent")
    if check.status == "skipped" or "not_finite" in check.figures or not from_attacks:
        return check
    message = f"{check.message} As scores do not hold still, this figure is fuzzy."
    return check.model_copy(update={"message": message})


def change_of(logits: Logits, other: Logits, *, spread: float) -> tuple[float, float]:
    """Largest change of a logit, absolute and as a share of the clean logits' spread."""
    change = float(np.abs(other - logits).max())
    if change == 0:
        return 0.0, 0.0
    return change, float(change / spread) if spread > 0 else 1.0


def correlation_of(one: Logits, other: Logits) -> float:
    """Pearson's; 1 of scores that are all alike, as nothing tells them apart."""
    if one.std() == 0 or other.std() == 0:
        return float((one.std() == 0) == (other.std() == 0))
    return float(np.corrcoef(one, other)[0, 1])
