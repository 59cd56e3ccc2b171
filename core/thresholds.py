"""Thresholds on the figures of an audit, as text: `worst_case_ap >= 0.4`. Imports no torch."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from adap.core.errors import ConfigError
from adap.core.fractions import fraction
from adap.core.report import Verdict

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}

LEVELS = tuple(reversed(get_args(Verdict)))

"""The verdicts on an audit from worst to best; `trust` is compared by their places."""

SIZES = ("smallest_least", "smallest_median")
"""Figures that are sizes of a change in the threat's norm, and so compared with any size."""

MAX_CHARACTERS = 200


@dataclass(frozen=True)
class Threshold:
    """One condition on one figure."""

    text: str
    figure: str
    operator: str
    bound: float
    """A number; of `trust` the place of a level in LEVELS."""

    def met_by(self, value: float) -> bool:
        """Whether a figure of this value is good enough."""
        return OPERATORS[self.operator](value, self.bound)


def parse(text: str) -> Threshold:
    """Read `<figure> <operator> <number>`, or `trust <operator> <level>`.

    Figures are between -1 and 1, but for those in SIZES. A number may be a fraction such as 8/255.

    Raises ConfigError for anything else, and for a number that no figure can reach.

    >>> parse("worst_case_ap >= 0.4")
    Threshold(text='worst_case_ap >= 0.4', figure='worst_case_ap', operator='>=', bound=0.4)
    """
    parts = _split(text)
    if parts is None:
        raise ConfigError(
            "expected a threshold such as `worst_case_ap >= 0.4`, with one of "
            f"{', '.join(OPERATORS)}; got {text!r:.80}"
        )
    figure, sign, bound = parts
    if figure == "trust":
        if bound not in LEVELS:
            raise ConfigError(
                f"expected trust to be compared with {_or(LEVELS)}, got {bound!r:.40}"
            )
        value = float(LEVELS.index(bound))
    elif figure.rpartition(".")[2] in SIZES:
        value = _number(bound)
        if not 0 <= value < math.inf:
            raise ConfigError(
                f"expected {figure} to be compared with the size of a change, such as 0.02 or "
                f"8/255, got {bound!r:.40}"
            )
    else:
        value = _number(bound)
        if not -1 <= value <= 1:
            raise ConfigError(
                f"expected a number between -1 and 1, as every figure is, got {bound!r:.40}"
            )
    return Threshold(text, figure, sign, value)


def _number(text: str) -> float:
    """Of a text such as 0.4 or 8/255; NaN where it is none."""
    try:
        return float(fraction(text))
    except ValueError:
        return math.nan


def _split(text: str) -> tuple[str, str, str] | None:
    """Figure, operator and bound, by one look from the end; None where one of them is missing."""
    end = max(map(text.rfind, "<>="))
    if end < 0:
        return None
    sign = text[end - 1 : end + 1] if text[max(end - 1, 0) : end + 1] in OPERATORS else text[end]
    figure, bound = text[: end + 1].removesuffix(sign).strip(), text[end + 1 :].strip()
    whole = end > 0 and sign in OPERATORS and figure and bound and len(text) <= MAX_CHARACTERS
    return (figure, sign, bound) if whole and figure[-1] not in "<>=" else None


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
