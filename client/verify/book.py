"""What is compared, line by line: a figure as it is told and as it is computed again."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adap.client.client import ClientError, Json
from adap.client.verify.scores import (
    LEAST_RESAMPLES,
    MOST_RESAMPLES,
    RESAMPLES,
    TOLERANCE,
    Floats,
    Ints,
    Names,
    and_unseen,
)

STANDARD_ERRORS = 4.5  # of two sets of resamples: one interval in 100,000 is off by more


class NotAReportError(ClientError):
    """The files are not a report and its scores."""


class MismatchError(ClientError):
    """A report says what its scores do not."""


@dataclass(frozen=True)
class Line:
    """One figure: as the report has it, as it comes out here, and whether that is the same."""

    figure: str
    reported: Any
    recomputed: Any
    ok: bool


@dataclass
class Book:
    """The lines so far."""

    lines: list[Line] = field(default_factory=list)
    prefix: str = ""

    def same(self, figure: str, reported: Any, recomputed: Any) -> None:
        """Words and counts, which are equal or not."""
        self.add(figure, reported, recomputed, reported == recomputed)

    def number(
        self, figure: str, reported: Any, recomputed: float | None, *, within: float = TOLERANCE
    ) -> None:
        """Figures, which are equal but for rounding; None where there is none."""
        if reported is None or recomputed is None:
            self.add(figure, reported, recomputed, reported is recomputed)
        else:
            close = bool(abs(float(reported) - recomputed) <= within)
            self.add(figure, reported, float(recomputed), close)

    def resamples(self, reported: Any) -> int:
        """How many an interval rests on; too few would make every interval pass."""
        if reported is None:
            return RESAMPLES
        if type(reported) is int and LEAST_RESAMPLES <= reported <= MOST_RESAMPLES:
            return reported
        self.add("resamples", reported, f"{LEAST_RESAMPLES} to {MOST_RESAMPLES}", False)
        return RESAMPLES

    def interval(self, figure: str, reported: Json | None, own: Floats, resamples: int) -> None:
        """An interval, against resampled figures of our own."""
        if reported is None:
            return
        self._ends(figure, reported, own, own, resamples)

    def _ends(
        self, figure: str, reported: Json, lows: Floats, highs: Floats, resamples: int
    ) -> None:
        """The lower end against the first figures, the upper one against the second."""
        tail = (1 - min(max(reported["level"], 0.0), 1.0)) / 2
        slack = STANDARD_ERRORS * np.sqrt(tail * (1 - tail) * (1 / len(lows) + 1 / resamples))
        low, high = np.quantile(lows, tail), np.quantile(highs, 1 - tail)
        # Mirrored, the upper end is a lower one.
        ok = (
            0 < reported["level"] < 1
            and _is_quantile(reported["low"], lows, tail, slack)
            and _is_quantile(-reported["high"], -highs, tail, slack)
        )
        span = f"{reported['low']:.4f} to {reported['high']:.4f}"
        self.add(f"{figure}.interval", span, f"about {low:.4f} to {high:.4f}", ok)

    def ap_interval(
        self,
        figure: str,
        reported: Json | None,
        own: Floats,
        resamples: int,
        *,
        logits: Floats,
        targets: Ints,
        clusters: Names | None,
    ) -> None:
        """The interval of an AP, against resampled APs of our own with unseen examples added."""
        if reported is None:
            return
        low, high = and_unseen(own, logits, targets, clusters)
        self._ends(figure, reported, low, high, resamples)

    def taken(self, figure: str, reported: Any, why: str) -> None:
        """What cannot be computed here, and why."""
        self.add(figure, reported, f"({why})", True)

    def add(self, figure: str, reported: Any, recomputed: Any, ok: bool) -> None:
        named = _visible(self.prefix + figure)  # a report may hold any text
        self.lines.append(Line(named, _visible(reported), _visible(recomputed), ok))


def _visible(value: Any) -> Any:
    """Text without what a terminal would obey: such characters are written out."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in value)


def _is_quantile(end: float, own: Floats, tail: float, slack: float) -> bool:
    """Whether a share of about `tail` of the resampled figures is below `end`."""
    below = (own < end - TOLERANCE).mean()
    upto = (own <= end + TOLERANCE).mean()
    return bool(own.min() - TOLERANCE <= end and below <= tail + slack and upto >= tail - slack)
