"""The rankings that an audit compares, as typed keys that cannot be taken for one another.

Figures, intervals and reports are made from several rankings of the same examples: five of the
audit's own, one an attack, one a point of the epsilon curve. In JSON the own ones and the attacks
stand side by side, so a label of an attack may not be one of the own names.
"""

from dataclasses import dataclass
from enum import Enum


class Own(Enum):
    """A ranking that every audit has a name of its own for; the value is that name in JSON."""

    CLEAN = "clean"
    WORST_CASE = "worst_case"
    CERTIFIED_FLOOR = "certified_floor"
    CORRUPTION_WORST_CASE = "corruption_worst_case"
    UNIVERSAL = "universal"


OWN_NAMES = (*(own.value for own in Own), "corruption_mean", "corruption_lowest")


@dataclass(frozen=True)
class Attacked:
    """The ranking of the images that one attack made."""

    attack: str
    """The attack's key: its label, or its name."""


@dataclass(frozen=True)
class AtEpsilon:
    """The ranking behind one point of the epsilon curve."""

    epsilon: float
    """The number itself: two that print alike are two points."""


Ranking = Own | Attacked | AtEpsilon
