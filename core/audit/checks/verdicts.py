"""Verdicts of an audit's checks on the runs behind them, and the limits of each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from adap.core.audit.checks.planned import CURVE, GradientAttack, Run, examined_attack
from adap.core.audit.checks.runs import Bench, Logits, Slopes
from adap.core.audit.network import Pixels
from adap.core.config import (
    COUNTED_NORMS,
    LARGE_LINF,
    APGDAttack,
    Attack,
    FGSMAttack,
    Norm,
    PGDAttack,
    SquareAttack,
    Threat,
)
from adap.core.figures.ranking import average_precision, floor_ap
from adap.core.report import Check, Limit, Status, Trust, Verdict

# A status falls to caution beyond the first number and to fail beyond the second. What honest
# networks reach, and what fooling ones do, is in docs/trust.md. Each check carries its limits, so
# that whoever has a report can judge its figures again.

# Of an AP that should not change. The sample is half positives, where AP is steadiest, and the runs
# compared share their images and mostly their starts: on honest networks they differ by 0.005 at
# most. A single positive weighs 1 / P, so few of them must not decide: see `ap_limits`.
AP_CHANGE = Limit(caution=0.01, fail=0.05)

# Of the weight of a positive: what all searches of the checks that follow the gradient leave less
# than the audit's own alone. Each of them starts or ends elsewhere, so of a gradient that leads
# astray, as by noise, they find different images; of honest networks they find the same.
LEFT_OF_A_POSITIVE = 0.6

# Fewer than ten positives leave a limit above this, and no check by AP can say much.
VAGUE = 0.1

# Of the fall of the mean margin: how much further the margin falls on doubled steps. AP at its
# floor, or still at 1, does not show that an attack was on its way. In l0 and with a patch a black
# box is judged by it, too: on single images the better place is luck, on honest networks as well.
MARGIN_CHANGE = Limit(caution=0.15, fail=0.5)

# Of the way from a perfect ranking down to the inverted one: how much is left when every pixel may
# take any value.
ABOVE_FLOOR = Limit(caution=0.02, fail=0.1)

# Noise's fall of the mean margin as a share of the attack's. Following the gradient must beat
# walking at random by far; on honest networks the share is below 0.05.
NOISE_SHARE = Limit(caution=0.5, fail=0.9)

# Share of images on which a black box beats the white box by more than REAL_MARGIN.
BLACK_BOX_WINS = Limit(caution=0.025, fail=0.15)

# A difference between logits that matters, as a share of the standard deviation of clean logits.
REAL_MARGIN = 0.05

# Of `quick`, whose Square asks little: its fall of the mean margin as a share of the white box's. A
# gradient that finds more than this of the true fall stays ahead of Square, so below a fifth its
# silence is no evidence. On honest networks the share depends on the image's size above all.
SQUARE_SHARE = Limit(caution=0.2, side="below")

# Share of a class whose gradient is zero or not finite. ReLU networks have a few dead images; a
# tenth of a class changes an AP visibly.
BLOCKED = Limit(caution=0.01, fail=0.1)

# Share of images whose score is some other image's too. An output rounded to 16 bits loses places
# in the ranking, but its gradient may be whole: `gradients` and `gradient_predicts` tell.
SHARED = Limit(caution=0.01)

# Of what the gradient foretells of small random steps with what they do: the slope (1 where all of
# it is foretold), which a hidden part lowers, and the correlation, which noise in a gradient lowers
# too. Near steps or coarse ones will do: of an honest deep network the near ones are foretold, of
# pixels in levels whose gradient goes straight through the coarse ones, of what is hidden neither.
# Where the rounding of scores leaves the coarse ones alone, a deep network may bend in them, so
# that their correlation is a caution at most, as are both where longer paths are foretold. A
# gradient that is PARALLEL may be of any length.
CORRELATION = Limit(caution=0.85, fail=0.6, side="below")
CORRELATION_COARSE = Limit(caution=0.85, side="below")
PARALLEL = Limit(caution=0.999, side="below")
SLOPE = Limit(caution=0.85, fail=0.65, side="below")
SLOPE_COARSE = Limit(caution=0.85, side="below")
NEAR_ONE, COARSE_ONE = 0, 1

# Of what is promised along paths, which honest networks keep in the mean however they bend, and of
# which every jump takes away. Judged is the slope and this many of its errors above, so that
# neither a rough network nor a single image that crosses a gate decides.
ERRORS = 2

# Share of the change by steps of all pixels that is had by those alone whose gradient is exactly
# zero: nothing, but where part of the image is cut off.
UNSEEN = Limit(caution=0.005, fail=0.05)

# Share of images on which one step along an averaged gradient beats the whole search by more than
# REAL_MARGIN: terms too fast to follow drown the gradient that the search sees.
AVERAGED_WINS = Limit(caution=0.1, fail=0.15)

# Of a network that rounds, followed straight through: the correlation of its scores with those that
# it would give if nothing in it rounded. Below it the gradient is that of another ranking.
UNROUNDED = Limit(caution=0.95, fail=0.8, side="below")

# Share of the change by small steps that is no more than the rounding of the logits: above it the
# rest is not told apart.
ROUNDING = Limit(caution=0.1)
MOST_ROUNDING = 0.9  # that is taken off: little is left to compare with beyond it

NOTHING = 1e-12  # of what is squared and near 1
TOLERANCE = 1e-6  # of a multiple of a step
ULPS = 8  # from one float32 to the next, by which the arithmetic of a deep network is off
MOST_ULPS = 256  # by which it may be: no change below it is held against a network

# Largest change of a logit that should not change at all, as a share of the same deviation. Another
# batch size chooses another algorithm: float32 then differs by 1e-6, TF32 by up to 1e-3.
LOGIT_CHANGE = Limit(caution=2e-3, fail=2e-2)

# Of a model that draws numbers: the standard error of a mean over its draws, as a share of the same
# deviation. Means of a few draws are never exact, so more than one draw is a caution in any case.
MEAN_ERROR = Limit(caution=0.25, fail=0.5)
ONE_DRAW = Limit(caution=1)

ALONE = Limit(caution=1, fail=1, side="below")  # 0 where an image that comes alone is refused

NO_NUMBER = Limit(caution=0, fail=0)  # images that score NaN or infinity

# How many times the change from one scoring to the next another batch must change a logit to count.
APART = 3

# Share of the attack's fall of the mean margin that is lost when its images are stored as bytes.
LOST_TO_ROUNDING = Limit(caution=0.1, fail=0.5)

# Share of that fall by which it grows there, beyond what half a level adds to epsilon: files are
# then scored otherwise than what lies between them, and no search by gradients comes upon a file.
GAINED_BY_ROUNDING = Limit(caution=0.05, fail=0.25)

HALF_A_LEVEL = 0.5 / 255
NO_GRADIENTS = "The model is a function without gradients, so there are none to look at."


def merge(
    checks_by_task: Mapping[str, Sequence[Check]], *, of_files: Sequence[Check] = ()
) -> Trust:
    """The worst result of each check over the tasks, and what follows from all of them.

    of_files: checks that all tasks have in common, as from `adap.core.audit.checks.files`.

    Any fail: not trustworthy; else any caution: caution; else trustworthy. A check that was skipped
    counts for nothing. With several tasks a message begins with the name of its task.
    """
    worst: dict[str, Check] = {}
    for task, checks in checks_by_task.items():
        for check in checks:
            known = worst.get(check.name)
            if known is None or SEVERITY.index(check.status) > SEVERITY.index(known.status):
                message = f"{task}: {check.message}" if len(checks_by_task) > 1 else check.message
                worst[check.name] = check.model_copy(update={"message": message})
    worst |= {check.name: check for check in of_files}
    statuses = {check.status for check in worst.values()}
    verdict: Verdict = (
        "not trustworthy"
        if "fail" in statuses
        else "caution"
        if "caution" in statuses
        else "trustworthy"
    )
    return Trust(verdict=verdict, checks=list(worst.values()))


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
        return average_precision((2 * self.targets - 1) * self.lowest(*names), self.targets)

    def drop(self, name: str) -> float:
        """How far the mean margin fell."""
        return float((self.margins("clean") - self.margins(name)).mean())

    def unjudgeable(self, check: str, *names: str) -> Check | None:
        """The check's answer where these runs leave nothing to judge: not run, or not finite."""
        if not self.found:
            return _skipped(check, "Epsilon is 0, so there is no attack to look at.")
        if any(name not in self.found for name in names):
            return _skipped(check, NO_GRADIENTS)
        return _not_finite(check, *(self.margins(name) for name in ("clean", *names)))

    @property
    def white_box(self) -> list[str]:
        """The runs that follow the gradient within the threat model."""
        return [name for name in ("white_box", "doubled", "restart", "same") if name in self.found]


def units(threat: Threat, images: Pixels, *, box: float) -> Check:
    epsilon = threat.epsilon
    brightest = int(images.max() if images.dtype == np.uint8 else (255 * images.max()).round())
    # a quarter of the way, of the places, or of the area; half of the length
    large = {"linf": LARGE_LINF, "l0": box / 4, "patch": box / 2}.get(threat.norm, box / 2)
    figures = {
        "epsilon": epsilon,
        "levels": 255 * epsilon,
        "covers_everything": box,
        "brightest": float(brightest),
    }
    limits = {
        "epsilon": Limit(caution=large, fail=box),
        "brightest": Limit(caution=2, side="below"),
    }
    counted = threat.norm in COUNTED_NORMS
    if epsilon > 0 and not counted:
        limits["levels"] = Limit(caution=255 * HALF_A_LEVEL, side="below")
    message = f"Epsilon {epsilon:g} ({threat.norm}) is plausible for pixels in [0, 1]."
    if epsilon == 0:
        message = "Epsilon is 0, so no pixel may change: only the scores themselves are checked."
    if epsilon > box:
        message = (
            f"Epsilon {epsilon:g} covers every image there is ({box:g} would do): pixels are in "
            f"[0, 1], so 8 of 255 levels are 8/255 = 0.0314."
        )
    elif epsilon > box / 2 and not counted:
        message = (
            f"Epsilon {epsilon:g} ({threat.norm}) can turn every image into plain grey, so that no "
            "model can rank: choose a smaller one."
        )
    elif epsilon > large and counted:
        message = f"Epsilon {epsilon:g} ({threat.norm}) is more than a quarter of every image."
    elif epsilon > large:
        message = (
            f"Epsilon {epsilon:g} ({threat.norm}) is {255 * epsilon:.0f} of 255 levels, which "
            "changes what people see: 8 levels are 8/255 = 0.0314."
        )
    elif 0 < epsilon < HALF_A_LEVEL and not counted:
        message = (
            f"Epsilon {epsilon:g} is less than half a level of an 8-bit pixel ({HALF_A_LEVEL:.4f}):"
            " no image stored as bytes can show it. Give it for pixels in [0, 1]."
        )
    elif brightest <= 1:
        message = (
            f"No sampled pixel is brighter than {brightest} of 255, so the images seem to be in "
            "[0, 1] already: store them as 0 to 255."
        )
    return _check("units", message, figures, limits)


def converged(judged: Judged, attacks: Sequence[Attack], runs: Mapping[str, Run]) -> Check:
    name = "converged"
    if judged.found and "white_box" not in judged.found:
        message = (
            "The model is a function without gradients, so only `square`, `transfer` and noise can "
            "attack it: whoever has its weights may do more, and the figures hold for an attacker "
            "who has not."
        )
        limits = {"gradient_attacks": Limit(caution=1, side="below")}
        return _check(name, message, {"gradient_attacks": 0.0}, limits)
    if unjudgeable := judged.unjudgeable(name, "white_box", "doubled"):
        return unjudgeable
    before, after = judged.ap("white_box"), judged.ap("doubled")
    lowest = judged.ap(*judged.white_box)
    drop, further = judged.drop("white_box"), judged.drop("doubled")
    examined = examined_attack(attacks)
    following = sum(isinstance(attack, GradientAttack) for attack in attacks)
    blind = not following and not any(isinstance(attack, SquareAttack) for attack in attacks)
    figures = {
        "ap": before,
        "ap_doubled": after,
        "ap_lower": before - after,
        "ap_lowest": lowest,
        "ap_left": before - lowest,
        "margin_drop": drop,
        "margin_drop_doubled": further,
        "margin_further": (further - drop) / further if further > 0 else 0.0,
        "weight_of_a_positive": 1 / judged.positives,
        "gradient_attacks": float(following),
    }
    left = Limit(caution=max(AP_CHANGE.caution, LEFT_OF_A_POSITIVE / judged.positives))
    ends = {"ap_lower": judged.ap_limit, "ap_left": left, "margin_further": MARGIN_CHANGE}
    first, second = _described(runs["white_box"].attack), _described(runs["doubled"].attack)
    goes_on = _described(examined) != first
    if goes_on:  # what the sample's search leaves may be found by the audit's own
        ends = {of: limit.model_copy(update={"fail": None}) for of, limit in ends.items()}
    limits = {
        **ends,
        "weight_of_a_positive": Limit(caution=VAGUE),
        "gradient_attacks": Limit(caution=1, fail=1 if blind else None, side="below"),
    }
    message = (
        f"On the sample {first} leaves AP {before:.3f} and lowers the mean margin by {drop:.3g}, "
        f"{second} {after:.3f} and by {further:.3g}, and all that follow the gradient "
        f"{lowest:.3f} together"
    )
    if not following:
        message = (
            "The audit runs no attack that follows gradients"
            f"{', and none that searches at all' if blind else ''}: add `apgd` (on the sample "
            f"it leaves AP {before:.3f} of {judged.ap('clean'):.3f})."
        )
    elif _judge(figures, ends) != "pass":
        message += (
            f": the search was not at its end there, though the audit's goes on to "
            f"{_described(examined)}. Ask for full checks, or a larger number of steps."
            if goes_on
            else ": the search was not at its end, give the attack more steps."
        )
    elif 1 / judged.positives > VAGUE:
        message += (
            f"; but with {judged.positives} positives one image can move AP by "
            f"{1 / judged.positives:.2f}, so no check by AP is sharp: audit with more positives."
        )
    else:
        message += "."
    return _check(name, message, figures, limits)


def restarts(judged: Judged, attacks: Sequence[Attack]) -> Check:
    name = "restarts"
    if "white_box" in judged.found and "restart" not in judged.found:
        return _skipped(name, "FGSM starts at the image itself, so there is nothing to restart.")
    if unjudgeable := judged.unjudgeable(name, "white_box", "restart"):
        return unjudgeable
    one, two = judged.ap("white_box"), judged.ap("white_box", "restart")
    examined = examined_attack(attacks)
    restarts = 1 if isinstance(examined, FGSMAttack) else examined.restarts
    limit = judged.ap_limit
    if restarts > 1:  # the audit took the better one itself, and a third is not known
        limit = limit.model_copy(update={"fail": None})
    figures = {"ap": one, "ap_two_starts": two, "ap_lower": one - two}
    matters = limit.status(one - two) != "pass"
    message = (
        f"One start leaves AP {one:.3f} on the sample, the better of two {two:.3f}"
        f"{'' if restarts == 1 else f' (the audit has {restarts})'}"
        f"{': where the search starts matters, add restarts.' if matters else '.'}"
    )
    return _check(name, message, figures, {"ap_lower": limit})


def reaches_floor(judged: Judged) -> Check:
    name = "reaches_floor"
    if unjudgeable := judged.unjudgeable(name, "floor"):
        return unjudgeable
    ap, floor = judged.ap("floor"), judged.floor
    above = (ap - floor) / (1 - floor)
    message = (
        f"With every pixel free, the attack leaves AP {ap:.3f} on the sample; floor {floor:.3f}"
    )
    if ABOVE_FLOOR.status(above) == "pass":
        message += "."
    else:
        message += (
            ": an attacker who may do anything must invert the ranking, so the attack does not see "
            "where to go. Audit the network without what stops or scrambles its gradients."
        )
    figures = {"ap": ap, "floor": floor, "share_above_floor": above}
    return _check(name, message, figures, {"share_above_floor": ABOVE_FLOOR})


def noise_weaker(judged: Judged) -> Check:
    name = "noise_weaker"
    if unjudgeable := judged.unjudgeable(name, "noise", "white_box"):
        return unjudgeable
    noise, attack = judged.drop("noise"), judged.drop("white_box")
    share = noise / attack if attack > 0 else 1.0  # an attack that moved nothing is beaten by noise
    message = (
        f"Noise of the same size lowers the mean margin by {noise:.3g}, the attack by {attack:.3g}"
    )
    if NOISE_SHARE.status(share) == "pass":
        message += "."
    else:
        message += (
            ": following the gradient is hardly better than chance, so the gradient says little; "
            "trust `square` only."
        )
    figures = {
        "margin_drop_noise": noise,
        "margin_drop": attack,
        "share": share,
        "ap_noise": judged.ap("noise"),
        "ap": judged.ap("white_box"),
    }
    return _check(name, message, figures, {"share": NOISE_SHARE})


def black_box_weaker(judged: Judged, level: Literal["quick", "full"], norm: Norm) -> Check:
    name = "black_box_weaker"
    boxes = [box for box in ("square", "transfer") if box in judged.found]
    if unjudgeable := judged.unjudgeable(name, *boxes, "white_box"):
        return unjudgeable
    white, white_ap = judged.lowest(*judged.white_box), judged.ap(*judged.white_box)
    wins = {box: float((judged.margins(box) < white - judged.real_margin).mean()) for box in boxes}
    aps = {box: judged.ap(box) for box in boxes}
    drop = float((judged.margins("clean") - white).mean())
    figures = {"ap_white_box": white_ap}
    limits: dict[str, Limit] = {}
    statuses: dict[str, Status] = {}
    for box in boxes:
        figures |= {
            f"ap_{box}": aps[box],
            f"{box}_ap_lower": white_ap - aps[box],
            f"{box}_wins": wins[box],
        }
        figures[f"margin_drop_{box}"] = found = judged.drop(box)
        figures[f"{box}_further"] = (found - drop) / found if found > 0 else 0.0
        of_box = {f"{box}_ap_lower": judged.ap_limit}
        of_box |= (
            {f"{box}_further": MARGIN_CHANGE}
            if norm in COUNTED_NORMS  # see MARGIN_CHANGE
            else {f"{box}_wins": BLACK_BOX_WINS}
        )
        limits |= of_box
        statuses[box] = _judge(figures, of_box)
    share = judged.drop("square") / drop if drop > 0 else 1.0
    figures |= {"margin_drop": drop, "square_share": share}
    strongest = max(boxes, key=lambda box: (SEVERITY.index(statuses[box]), wins[box]))
    message = (
        f"`{strongest}`, which sees no gradient of the model, leaves AP {aps[strongest]:.3f} on "
        "the sample, whose prevalence is its own, and is clearly stronger on "
        f"{wins[strongest]:.0%} of the images; the attacks that see it leave {white_ap:.3f}"
    )
    if set(statuses.values()) != {"pass"}:
        message += ": the gradients mislead, so read the figures of `square`, with more queries."
    elif level == "quick" and SQUARE_SHARE.status(share) != "pass":
        message += (
            f"; but `square` was too short for images of this size: it lowers the mean margin by "
            f"{share:.0%} of what they do, so a gradient that tells half the truth would look as "
            "good. Ask for full checks (`checks`: full, --set checks=full)."
        )
    else:
        message += "."
    if level == "quick":
        limits["square_share"] = SQUARE_SHARE
    return _check(name, message, figures, limits)


def monotone(judged: Judged, threat: Threat) -> Check:
    name = "monotone"
    if unjudgeable := judged.unjudgeable(name, *CURVE):
        return unjudgeable
    aps = {point: judged.ap(point) for point in ("clean", *CURVE)}
    rise = max(np.diff(list(aps.values())).max(), 0.0)
    rises = judged.ap_limit.status(rise) != "pass"
    epsilons = ", ".join(f"{multiple * threat.epsilon:.3g}" for multiple in (0, *CURVE.values()))
    message = (
        f"At epsilon {epsilons} AP on the sample is {', '.join(f'{ap:.3f}' for ap in aps.values())}"
        f"{': it must not rise, so the attack loses its way in a ' if rises else '.'}"
        f"{'larger ball. Give it more steps, or trust `square` only.' if rises else ''}"
    )
    figures = {f"ap_{point}": ap for point, ap in aps.items()} | {"rise": float(rise)}
    return _check(name, message, figures, {"rise": judged.ap_limit})


def gradients(clean: Logits, bench: Bench, slopes: Slopes | None) -> Check:
    name = "gradients"
    if slopes is None:
        return _skipped(name, NO_GRADIENTS)
    if not_finite := _not_finite(name, clean):
        return not_finite
    classes = {"positives": bench.targets == 1, "negatives": bench.targets == 0}
    figures = {f"zero_{of}": float(slopes.zero[rows].mean()) for of, rows in classes.items()}
    figures |= {
        f"not_finite_{of}": float(slopes.broken[rows].mean()) for of, rows in classes.items()
    }
    blocked = max(figures, key=figures.__getitem__)
    limits = dict.fromkeys(figures, BLOCKED) | {"equal_scores": SHARED}
    figures["equal_scores"] = _equal_scores(clean, bench.images)
    kind, _, of = blocked.rpartition("_")
    if BLOCKED.status(figures[blocked]) != "pass":
        what = "exactly zero" if kind == "zero" else "NaN or infinite"
        message = (
            f"The gradients of {figures[blocked]:.0%} of the {of} are {what}, so attacks that "
            "follow them see nothing: audit the network before its sigmoid or its rounding, or "
            "trust `square` only."
        )
    elif SHARED.status(figures["equal_scores"]) != "pass":
        message = (
            f"{figures['equal_scores']:.0%} of the images have exactly the score of another image: "
            "the output is rounded, as to bfloat16 or float16, and ties rank negatives first. "
            "Audit the network before that step."
        )
    else:
        message = (
            f"The gradient is zero for {figures['zero_positives']:.1%} of the positives and "
            f"{figures['zero_negatives']:.1%} of the negatives, and "
            f"{figures['equal_scores']:.1%} of the images share their score with another."
        )
    return _check(name, message, figures, limits)


def gradient_predicts(
    clean: Logits, slopes: Slopes | None, judged: Judged, *, norm: Norm = "linf"
) -> Check:
    """Over all images, without centring, of the size of steps that is foretold best; what rounding
    adds is taken off.

    judged: with the search that follows this gradient, `white_box`. Of a network whose rounding is
    followed straight through, the steps are those of the network without it, and its scores must
    be nearly the same.
    """
    name = "gradient_predicts"
    if slopes is None:
        return _skipped(name, NO_GRADIENTS)
    if not len(slopes.predicted):
        return _skipped(name, "Epsilon is 0, so there is no attack to look at.")
    searched = judged.margins("white_box")
    scored = (*slopes.back, *slopes.forth, slopes.unseen, *slopes.ends, slopes.averaged)
    if not_finite := _not_finite(name, clean, searched, *scored):
        return not_finite
    near, coarse = (_stepped(slopes, of) for of in (NEAR_ONE, COARSE_ONE))
    sharp = ROUNDING.status(near.rounding) == "pass"
    best = max(near, coarse, key=lambda found: found.quality) if sharp else coarse
    correlation, slope, rounding = best.correlation, best.slope, best.rounding
    figures = {"correlation": correlation, "slope": slope, "rounding": rounding}
    path = _along_paths(slopes)
    # Coarse levels of pixels with a gradient straight through: paths are long enough for them.
    kept = path.slope - path.error
    straight = "fail" not in (SLOPE.status(kept), CORRELATION.status(path.correlation))
    limits = {"correlation": CORRELATION if sharp and not straight else CORRELATION_COARSE}
    parallel = PARALLEL.status(correlation) == "pass"  # all of it points the right way
    if not parallel:
        limits["slope"] = SLOPE_COARSE if straight else SLOPE
    limits["rounding"] = ROUNDING
    if ROUNDING.status(path.rounding) == "pass":
        unit = slope if parallel and slope > 0 else 1.0
        figures |= {
            "slope_path": path.slope / unit,
            "slope_path_high": (path.slope + ERRORS * path.error) / unit,
        }
        limits["slope_path_high"] = SLOPE
    if sharp:
        figures["unseen"] = _unseen(slopes)
        limits["unseen"] = UNSEEN
    wins = AVERAGED_WINS
    if norm in COUNTED_NORMS:  # which place is found on one image is luck, see MARGIN_CHANGE
        wins = wins.model_copy(update={"fail": None})
    steps, searching = dict(limits), {"averaged_wins": wins}
    margins = (2 * judged.targets - 1) * slopes.averaged
    figures["averaged_wins"] = float((margins < searched - judged.real_margin).mean())
    limits |= searching
    if slopes.rounded is not None:
        figures["unrounded"] = _correlation(slopes.rounded, slopes.starts)
        limits["unrounded"] = UNROUNDED
    if _judge(figures, steps) == "fail":  # unless arithmetic alone may do as much
        figures["rounding"] = rounding = max(rounding, _arithmetic(slopes))
    if ROUNDING.status(rounding) != "pass":
        message = (
            f"{rounding:.0%} of what small steps do to the scores is their rounding, as to "
            "bfloat16 or float16 (or to float32, where scores are nearly all alike), so nothing "
            "tells whether the gradient foretells the rest: audit the network before that step."
        )
        return _check(name, message, figures, {"rounding": ROUNDING, **searching})
    message = (
        f"What the gradient foretells of small random steps correlates {correlation:.3f} with what "
        f"they do, and is {slope:.2f} of it"
    )
    if "slope_path" in figures:
        message += f", along paths of a quarter of epsilon {figures['slope_path']:.2f} of it"
    message += (
        "; one step along the gradient averaged over noise is clearly stronger than the search on "
        f"{figures['averaged_wins']:.0%} of the images"
    )
    if slopes.rounded is not None:
        message += (
            "; the network rounds and is followed straight through, so these are steps of the "
            f"network without its rounding, whose scores correlate {figures['unrounded']:.3f} with "
            "its own"
        )
    if _judge(figures, limits) == "pass":
        message += "."
    elif _judge(figures, steps) == "pass":
        message += (
            ": within epsilon the gradient turns faster than a search follows it, as fast terms or "
            "a very rough network make it do. Give the attack more steps, or trust `square` with "
            "many queries."
        )
    else:
        message += (
            ": part of the network is hidden from its gradient (rounded, detached, or drowned by "
            "fast terms), so attacks that follow it find less than there is. Audit the network "
            "without that part, or trust `square` with many queries."
        )
    return _check(name, message, figures, limits)


def repeatable(
    clean: Logits,
    again: Logits,
    alone: Logits | None,
    alone_again: Logits | None,
    *,
    draws: int = 1,
) -> Check:
    """In batches, and one by one: a network that draws once a batch then draws for each image.

    draws: behind each of the logits.
    """
    name = "repeatable"
    if not_finite := _not_finite(name, clean, again):
        return not_finite
    change, share = _change(clean, again, spread=clean.std())
    if alone is not None and alone_again is not None and np.isfinite([alone, alone_again]).all():
        change_alone, share_alone = _change(alone, alone_again, spread=clean.std())
        change, share = max(change, change_alone), max(share, share_alone)
    figures = {"largest_change": change, "share_of_spread": share}
    if draws > 1:
        error = float(np.sqrt(np.square(again - clean).mean() / 2) / max(clean.std(), NOTHING))
        figures |= {"draws": float(draws), "error_of_mean": error}
        more = "." if MEAN_ERROR.status(error) == "pass" else ": take more draws."
        message = (
            "The model draws random numbers, so each score and each gradient is the mean over "
            f"{draws} draws, which is off by {error:.1%} of the spread of the logits{more}"
        )
        return _check(name, message, figures, {"draws": ONE_DRAW, "error_of_mean": MEAN_ERROR})
    message = f"The same images scored twice differ by {change:.2g} at most"
    if LOGIT_CHANGE.status(share) == "pass":
        message += "."
    else:
        message += (
            f", {share:.1%} of the spread of the logits: the model draws random numbers, or "
            "remembers. Audit it without that, or averaged over many draws."
        )
    return _check(name, message, figures, {"share_of_spread": LOGIT_CHANGE})


def batch_independent(
    clean: Logits, repeatable: Check, *, shuffled: Logits, alone: Logits | None
) -> Check:
    name = "batch_independent"
    advice = "put BatchNorm into eval mode, with its running statistics."
    if alone is None:
        message = (
            "The model refuses an image that comes alone, so its scores depend on the rest of the "
            f"batch: {advice}"
        )
        return _check(name, message, {"scored_alone": 0.0}, {"scored_alone": ALONE})
    if not_finite := _not_finite(name, clean, shuffled, alone):
        return not_finite
    other, other_share = _change(clean, shuffled, spread=clean.std())
    single, single_share = _change(clean, alone, spread=clean.std())
    share = max(other_share, single_share)
    changes = LOGIT_CHANGE.status(share) != "pass"
    if changes and share < APART * repeatable.figures.get("share_of_spread", 0):
        return _skipped(
            name,
            "Scores do not repeat, and differ no more than that among other images: what the batch "
            "does cannot be told.",
        )
    message = f"Scores differ by {other:.2g} at most among other images, by {single:.2g} alone"
    if not changes:
        message += "."
    else:
        message += (
            f", {share:.1%} of the spread of the logits: the rest of the batch changes an image's "
            f"score, {advice}"
        )
    figures = {
        "largest_change_shuffled": other,
        "largest_change_alone": single,
        "share_of_spread": share,
        "scored_alone": 1.0,
    }
    limits = {"share_of_spread": LOGIT_CHANGE, "scored_alone": ALONE}
    return _check(name, message, figures, limits)


def eight_bit(judged: Judged, threat: Threat) -> Check:
    name = "eight_bit"
    if 0 < threat.epsilon < HALF_A_LEVEL:
        return _skipped(
            name,
            "Epsilon is less than half a level of an 8-bit pixel: no byte can show the attack.",
        )
    if unjudgeable := judged.unjudgeable(name, "white_box", "eight_bit"):
        return unjudgeable
    drop, kept = judged.drop("white_box"), judged.drop("eight_bit")
    before, after = judged.ap("white_box"), judged.ap("eight_bit")
    lost = 1 - kept / drop if drop > 0 else 0.0
    # in L-inf all pixels may round outwards at once; elsewhere they do to either side
    outwards = HALF_A_LEVEL / threat.epsilon if threat.norm == "linf" else 0.0
    figures = {
        "ap": before,
        "ap_8_bit": after,
        "ap_back": after - before,
        "margin_drop": drop,
        "margin_drop_8_bit": kept,
        "share_lost": lost,
        "share_gained": -lost - outwards,
    }
    limits = {
        "share_lost": LOST_TO_ROUNDING,
        "ap_back": judged.ap_limit,
        "share_gained": GAINED_BY_ROUNDING,
    }
    message = (
        f"The attacked images leave AP {before:.3f} on the sample, stored with 8 bits {after:.3f}, "
        f"and keep {1 - lost:.0%} of the fall of the margin"
    )
    if _judge(figures, limits) == "pass":
        message += "."
    elif GAINED_BY_ROUNDING.status(figures["share_gained"]) != "pass":
        message += (
            ": files are scored otherwise than the pixels between their levels, on which attacks "
            "search. Audit the network without what tells them apart."
        )
    else:
        message += (
            ": the attack lives on less than a level of a pixel. Choose a larger epsilon, or audit "
            "the network without what depends on such small changes."
        )
    return _check(name, message, figures, limits)


def _check(
    name: str, message: str, figures: dict[str, float], limits: Mapping[str, Limit]
) -> Check:
    """A check of the status that its figures have by its limits."""
    return Check(
        name=name,
        status=_judge(figures, limits),
        message=message,
        figures=figures,
        limits=dict(limits),
    )


def _judge(figures: Mapping[str, float], limits: Mapping[str, Limit]) -> Status:
    """The gravest that any of the limits says."""
    statuses = (limit.status(figures[name]) for name, limit in limits.items())
    return max(statuses, key=SEVERITY.index, default="pass")


def _skipped(name: str, why: str) -> Check:
    return Check(name=name, status="skipped", message=why, figures={})


def _not_finite(name: str, *logits: Logits) -> Check | None:
    """A failed check where some image got no number."""
    broken = int((~np.isfinite(logits)).any(axis=0).sum())
    if not broken:
        return None
    message = (
        f"{broken} of {len(logits[0])} images score NaN or infinity here: attacks cannot follow "
        "such scores and no ranking holds them. Find the overflow or the division by zero."
    )
    return _check(name, message, {"not_finite": float(broken)}, {"not_finite": NO_NUMBER})


def fuzzy(check: Check) -> Check:
    """A figure of a model whose scores are no function of the image says less than it seems to."""
    from_attacks = check.name not in ("units", "gradients", "repeatable", "batch_independent")
    if check.status == "skipped" or "not_finite" in check.figures or not from_attacks:
        return check
    message = f"{check.message} As scores do not hold still, this figure is fuzzy."
    return check.model_copy(update={"message": message})


def _change(logits: Logits, other: Logits, *, spread: float) -> tuple[float, float]:
    """Largest change of a logit, absolute and as a share of the clean logits' spread."""
    change = float(np.abs(other - logits).max())
    if change == 0:
        return 0.0, 0.0
    return change, float(change / spread) if spread > 0 else 1.0


def _correlation(one: Logits, other: Logits) -> float:
    """Pearson's; 1 of scores that are all alike, as nothing tells them apart."""
    if one.std() == 0 or other.std() == 0:
        return float((one.std() == 0) == (other.std() == 0))
    return float(np.corrcoef(one, other)[0, 1])


@dataclass(frozen=True)
class _Foretold:
    """Of steps: correlation and slope of what is foretold with what happens, not centred, the error
    of that slope, and the share of what happens that is rounding, which is taken off them."""

    correlation: float
    slope: float
    error: float
    rounding: float

    @property
    def quality(self) -> float:
        """The lower of the two; a gradient that promises too much is no hidden one."""
        return min(self.correlation, self.slope)


def _stepped(slopes: Slopes, of: int) -> _Foretold:
    back, forth = slopes.back[of], slopes.forth[of]
    return _foretold(slopes.predicted[of], (forth - back) / 2, _rounding(back, forth))


def _along_paths(slopes: Slopes) -> _Foretold:
    """Rounding doubles where a difference is not halved."""
    rounded = 4 * _rounding(slopes.back[0], slopes.forth[0], *slopes.ends)
    return _foretold(slopes.promised, slopes.ends - slopes.starts, rounded)


def _arithmetic(slopes: Slopes) -> float:
    """Share of what steps of a whole level do that the arithmetic of float32 may have done."""
    back, forth = slopes.back[COARSE_ONE], slopes.forth[COARSE_ONE]
    rounded = _rounding(back, forth, ulps=MOST_ULPS)
    return _foretold(slopes.predicted[COARSE_ONE], (forth - back) / 2, rounded).rounding


def _foretold(
    predicted: NDArray[np.float64], seen: NDArray[np.float64], rounded: float
) -> _Foretold:
    """predicted, seen: (..., n).  rounded: mean square of what rounding does to a change."""
    predicted = np.where(np.isfinite(predicted), predicted, 0)
    # In units of the largest, so that no square leaves float64.
    unit = max(float(np.abs(seen).max()), float(np.abs(predicted).max()))
    if unit == 0:  # no step changes a score, and none is foretold to
        return _Foretold(1.0, 1.0, 0.0, 0.0)
    n = predicted.shape[-1]
    predicted, seen = (values.reshape(-1, n) / unit for values in (predicted, seen))
    together, happened = (predicted * seen).mean(axis=0), np.square(seen).mean(axis=0)
    foretold = float(np.square(predicted).mean())
    share = min(rounded / unit**2 / max(float(happened.mean()), NOTHING), 1.0)
    kept = 1 - min(share, MOST_ROUNDING)
    real = max(float(happened.mean()) * kept, NOTHING)
    slope = float(together.mean()) / real
    correlation = float(together.mean()) / float(np.sqrt(real * max(foretold, NOTHING)))
    # With each image left out in turn (the jackknife): one that crosses a gate is an error, too.
    others = [(of.sum() - of) for of in (together, happened)]
    without = others[0] / np.maximum(others[1] * kept, NOTHING)
    error = float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))
    return _Foretold(float(np.clip(correlation, -1, 1)), slope, error, float(share))


def _unseen(slopes: Slopes) -> float:
    """Share of the mean square change by a near step that pixels without gradient make."""
    whole = np.square(slopes.forth[NEAR_ONE] - slopes.back[NEAR_ONE]).mean() / 4
    unseen = np.square(slopes.unseen - slopes.starts).mean()
    return float(unseen / whole) if whole > 0 else float(unseen > 0)


def _rounding(*logits: NDArray[np.float64], ulps: int = ULPS) -> float:
    """Mean square error of half a difference of two logits by their rounding to 16 bits or to
    multiples of one step, or, if they are of float32, by its arithmetic."""
    values = np.concatenate([of.ravel() for of in logits])
    steps = [_step(values, kind) for kind in (torch.bfloat16, torch.float16)]
    if (single := _step(values, torch.float32)) is not None:
        steps.append(ulps * single)
    distinct = np.unique(values)
    if len(distinct) > 1:
        step = np.diff(distinct).min()
        multiples = distinct / step
        if np.abs(multiples - multiples.round()).max() < TOLERANCE:
            steps.append(np.full(1, step))
    # A rounding error is uniform within half a step, of variance step^2 / 12; two are halved.
    return max(
        (float(np.square(step).mean() / 24) for step in steps if step is not None), default=0
    )


def _step(logits: NDArray[np.float64], kind: torch.dtype) -> NDArray[np.float64] | None:
    """From each logit to the next that this type holds; None where it does not hold them all."""
    exact = torch.tensor(logits)
    rounded = exact.to(kind)
    if not (rounded.double() == exact).all():
        return None
    step = torch.nextafter(rounded.abs(), torch.full_like(rounded, torch.inf)) - rounded.abs()
    return step.double().numpy()


def _equal_scores(logits: Logits, images: Pixels) -> float:
    """Share of the distinct images whose logit is also that of another one."""
    distinct = {image.tobytes(): logit for image, logit in zip(images, logits, strict=True)}
    counts = Counter(distinct.values())
    return sum(count for count in counts.values() if count > 1) / len(distinct)


def _described(attack: Attack) -> str:
    if isinstance(attack, PGDAttack | APGDAttack):
        return f"{attack.name} with {attack.steps} steps"
    return attack.name
