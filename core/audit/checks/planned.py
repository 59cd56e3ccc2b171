"""Which attacks the checks of an audit run, and what all of them cost. No torch.

The sample and the length of each search depend on the level alone, so the cost is known before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adap.core.audit.costs import Passes, of_attack
from adap.core.config.attacks import (
    APGDAttack,
    Attack,
    FGSMAttack,
    NoiseAttack,
    PGDAttack,
    SquareAttack,
    TransferAttack,
)
from adap.core.config.audits import Checks
from adap.core.config.threats import BALL_NORMS, COUNTED_NORMS, LARGEST_LINF, Threat


@dataclass(frozen=True)
class Depth:
    """How thorough: images of each class, and the length of each search."""

    images: int
    steps: int  # of the audit's own attack at most; twice as many when doubled
    queries: int
    curve_steps: int
    floor_steps: int
    transfer_steps: int


DEPTHS: Mapping[Checks, Depth] = {
    "quick": Depth(48, 10, queries=32, curve_steps=5, floor_steps=9, transfer_steps=10),
    "full": Depth(128, 50, queries=200, curve_steps=10, floor_steps=20, transfer_steps=20),
}

SCORINGS = 6  # clean, again, shuffled, alone, alone again, and the gradient at the clean image

# Of `gradient_predicts`: random steps forth and back, and paths with a gradient in each half.
STEPS, PATHS, HALVES = 2, 2, 2

BORROWED_STEPS = 8  # of a search that starts from what helped against other images

CURVE = {"half": 0.5, "same": 1.0, "twice": 2.0}

GradientAttack = FGSMAttack | PGDAttack | APGDAttack


@dataclass(frozen=True)
class Run:
    """One attack on every image of the sample."""

    attack: Attack
    threat: Threat
    start: str  # runs of the same one draw the same numbers
    uniform_start: bool = False  # of PGD, whose first start else lies beside the image
    borrowed: bool = False  # of PGD, from where most helped against other images of its side

    @property
    def on_surrogate(self) -> bool:
        return isinstance(self.attack, TransferAttack)

    @property
    def passes(self) -> int:
        """Forward passes of each image, the scoring of what was found included."""
        return of_attack(self.attack).forward


def plan_runs(
    threat: Threat,
    attacks: Sequence[Attack],
    depth: Depth,
    *,
    surrogate: bool,
    box: float,
    gradients: bool = True,
) -> dict[str, Run]:
    """The attacks behind the checks, by name; none where no pixel may change.

    box: the epsilon at which every image is within reach of every other.
    gradients: whether the model has any; otherwise only what needs none is run.
    """
    if threat.epsilon == 0:
        return {}
    examined = examined_attack(attacks)
    if isinstance(examined, FGSMAttack):
        white_box: GradientAttack = examined
        doubled: GradientAttack = PGDAttack(steps=min(10, depth.steps))  # more than one step
    else:
        steps = min(examined.steps, depth.steps)
        white_box = examined.model_copy(update={"steps": steps, "restarts": 1})
        doubled = white_box.model_copy(update={"steps": 2 * steps})
    runs = {
        "white_box": Run(white_box, threat, start="white_box"),
        "doubled": Run(doubled, threat, start="white_box"),
    }
    if not isinstance(white_box, FGSMAttack):
        runs["restart"] = Run(white_box, threat, start="restart", uniform_start=True)
        if threat.norm not in COUNTED_NORMS:  # which places matter is each image's own
            borrowed = PGDAttack(steps=BORROWED_STEPS)
            runs["borrowed"] = Run(borrowed, threat, start="borrowed", borrowed=True)
    if not gradients:
        runs.clear()
    runs["noise"] = Run(NoiseAttack(), threat, start="noise")
    runs["square"] = Run(SquareAttack(queries=depth.queries), threat, start="square")
    if surrogate:
        runs["transfer"] = Run(TransferAttack(steps=depth.transfer_steps), threat, start="transfer")
    if not gradients:
        return runs
    curve = APGDAttack(steps=depth.curve_steps)
    for name, multiple in CURVE.items():
        scaled = threat.scaled(multiple)
        most = min(scaled.epsilon, max(box, threat.epsilon))
        scaled = scaled.model_copy(update={"epsilon": most})
        runs[name] = Run(curve, scaled, start="curve")
    # the same images in every norm; in these the attacks find them best
    everything = (
        threat.model_copy(update={"epsilon": box})
        if threat.norm in BALL_NORMS
        else Threat(norm="linf", epsilon=LARGEST_LINF)
    )
    runs["floor"] = Run(APGDAttack(steps=depth.floor_steps), everything, start="floor")
    return runs


def examined_attack(attacks: Sequence[Attack]) -> GradientAttack:
    """The audit's attack that evaluates most gradients, or the default one where it has none."""
    following = [attack for attack in attacks if isinstance(attack, GradientAttack)]
    return max(following, key=_evaluations, default=APGDAttack())


def _evaluations(attack: GradientAttack) -> tuple[int, bool]:
    """Of gradients, for each image; APGD is the stronger one among equals."""
    if isinstance(attack, FGSMAttack):
        return 1, False
    return attack.steps * attack.restarts, isinstance(attack, APGDAttack)


def passes_of_image(
    threat: Threat,
    attacks: Sequence[Attack],
    level: Checks,
    *,
    surrogate: bool,
    gradients: bool = True,
) -> Passes:
    """What all checks cost for each sampled image, the surrogate's passes included."""
    runs = plan_runs(
        threat, attacks, DEPTHS[level], surrogate=surrogate, box=1.0, gradients=gradients
    )
    found = sum((of_attack(run.attack) for run in runs.values()), Passes())
    found += Passes(SCORINGS - (not gradients), int(gradients))
    if "white_box" in runs:
        found += Passes(1)  # the stored images of the white box
        # a gradient, steps forth and back, one of unseen pixels, gradients on paths and their ends,
        # one step along the mean of these gradients, and the first gradient again
        found += Passes(1 + 2 * STEPS + 1 + (HALVES + 1) * PATHS + 2, 2 + HALVES * PATHS)
    return found
