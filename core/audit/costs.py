"""What attacks and measures of an audit cost, in passes of one image. No torch."""

from dataclasses import dataclass

from adap.core.audit.plan import Clean, Corrupted, CurvePoint, Measure, Recovery, UnderAttack
from adap.core.config.attacks import (
    APGDAttack,
    Attack,
    FGSMAttack,
    PGDAttack,
    SquareAttack,
    TransferAttack,
)
from adap.core.config.audits import CURVE_ATTACK, SmallestChanges, UniversalSearch

AFTER_SEARCH = 16  # scorings of a positive by which FMN's change is drawn back and looked at


@dataclass(frozen=True)
class Passes:
    """Of one image through a network."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward + other.forward, self.backward + other.backward)

    @property
    def both(self) -> int:
        """Each counted once."""
        return self.forward + self.backward


def per_step(attack: APGDAttack) -> int:
    """Forward passes of an image that a step costs."""
    return 1 if attack.averaged == 1 else 1 + attack.averaged


def of_attack(attack: Attack) -> Passes:
    """Of an attack on one image, the scoring of what it finds included."""
    match attack:
        case PGDAttack():
            steps = attack.restarts * attack.steps
            return Passes(steps + attack.restarts * (attack.iterate == "best") + 1, steps)
        case APGDAttack():
            forward = attack.restarts * (attack.steps * per_step(attack) + 1) + 1
            return Passes(forward, attack.restarts * attack.steps * attack.averaged)
        case SquareAttack():
            return Passes(attack.queries + 1)
        case TransferAttack():
            return Passes(attack.steps + (attack.iterate == "best") + 1, attack.steps)
        case FGSMAttack():
            return Passes(2, 1)
    return Passes(1)  # noise


def of_smallest(asked: SmallestChanges, *, images: int, positives: int) -> Passes:
    """Of smallest changes of a whole task, if all of its positives are among the first k."""
    searched = min(asked.positives, positives)
    return Passes(images + searched * (asked.steps + AFTER_SEARCH), searched * asked.steps)


def of_universal(asked: UniversalSearch, *, images: int) -> Passes:
    """Of one perturbation for a whole task, at most: searched on some images, scored on all."""
    searched = (asked.rounds + 1) * min(asked.images, images)
    return Passes(searched + 2 * images, searched)


def of_measure(measure: Measure) -> Passes:
    """Of what is measured of each image; of a search that goes on, what it costs where it does.

    Samples of a few images and bounds count for nothing: beside attacks they are cheap. What
    is of a whole task has a function of its own.
    """
    match measure:
        case Clean() | Corrupted():
            return Passes(1)
        case UnderAttack(attack=attack):
            return of_attack(attack)
        case CurvePoint():
            return of_attack(CURVE_ATTACK)
        case Recovery(attacks=attacks):
            return sum(map(of_attack, attacks), Passes())
    return Passes()
