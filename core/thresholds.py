"""Thresholds on the figures of an audit, as text: `worst_case_ap >= 0.4`. Imports no torch."""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from adap.core.errors import ConfigError
from adap.core.report import Verdict

if TYPE_CHECKING:  # the configuration reads its thresholds with `parse`
    pass


OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}

LEVELS = tuple(reversed(get_args(Verdict)))

"""The verdicts on an audit from worst to best; `trust` is compared by their places."""

_FORM = re.compile(r"\s*(?P<figure>.*[^<>=\s])\s*(?P<operator>>=|<=|>|<)\s*(?P<bound>[^<>=]+?)\s*")


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

    Raises ConfigError for anything else, and for a number that no figure can reach.

    >>> parse("worst_case_ap >= 0.4")
    Threshold(text='worst_case_ap >= 0.4', figure='worst_case_ap', operator='>=', bound=0.4)
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigError(
            "expected a threshold such as `worst_case_ap >= 0.4`, with one of "
            f"{', '.join(OPERATORS)}; got {text!r:.80}"
        )
    figure, bound = found["figure"], found["bound"]
    if figure == "trust":
        if bound not in LEVELS:
            raise ConfigError(f"expected trust to be compared with {_or(LEVELS)}, got {bound!r}")
        value = float(LEVELS.index(bound))
    else:
        try:
            value = float(bound)
        except ValueError:
            value = math.nan
        if not -1 <= value <= 1:
            raise ConfigError(
                f"expected a number between -1 and 1, as every figure is, got {bound!r:.40}"
            )
    return Threshold(text, figure, found["operator"], value)


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
