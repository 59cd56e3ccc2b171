"""What the checks of an audit say of the runs behind them, and the limits by which they say it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adap.core.audit.checks.runs import CURVE, Bench, GradientAttack, Logits, Run, examined_attack
from adap.core.audit.scoring import Pixels
from adap.core.config import (
    APGDAttack,
    Attack,
    FGSMAttack,
    PGDAttack,
    SquareAttack,
    Threat,
)
from adap.core.figures.ranking import average_precision, floor_ap
from adap.core.report import Check, Status, Trust, Verdict

# A status falls to caution above the first number and to fail above the second. What honest
# networks reach, and what fooling ones do, is in docs/trust.md.

# Of an AP that should not change. The sample is half positives, where AP is steadiest, and the runs
# compared share their images and mostly their starts: on honest networks they differ by 0.005 at
# most. A single positive weighs 1 / P, so few of them must not decide: see `ap_limits`.
AP_CHANGE = (0.01, 0.05)

# Fewer than ten positives leave a limit above this, and no check by AP can say much.
VAGUE = 0.1

# Of the fall of the mean margin: how much further the margin falls on doubled steps. AP at its
# floor, or still at 1, does not show that an attack was on its way.
MARGIN_CHANGE = (0.15, 0.5)

# Of the way from a perfect ranking down to the inverted one: how much is left when every pixel may
# take any value.
ABOVE_FLOOR = (0.02, 0.1)

# Noise's fall of the mean margin as a share of the attack's. Following the gradient must beat
# walking at random by far; on honest networks the share is below 0.05.
NOISE_SHARE = (0.5, 0.9)

# Share of images on which a black box beats the white box by more than REAL_MARGIN.
BLACK_BOX_WINS = (0.05, 0.15)

# A difference between logits that matters, as a share of the standard deviation of clean logits.
REAL_MARGIN = 0.05

# Share of a class whose gradient is zero or not finite, and of images whose score is some other
# image's too. ReLU networks have a few dead images; a tenth of a class changes an AP visibly.
BLOCKED = (0.01, 0.1)

# Largest change of a logit that should not change at all, as a share of the same deviation. Another
# batch size chooses another algorithm: float32 then differs by 1e-6, TF32 by up to 1e-3.
LOGIT_CHANGE = (2e-3, 2e-2)

# How many times the change from one scoring to the next another batch must change a logit to count.
APART = 3

# Share of the attack's fall of the mean margin that is lost when its images are stored as bytes.
LOST_TO_ROUNDING = (0.1, 0.5)


NO_GRADIENTS = "The model is a function without gradients, so there are none to look at."


def merge(checks_by_task: Mapping[str, Sequence[Check]]) -> Trust:
    """The worst result of each check over the tasks, and what follows from all of them.

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
    def ap_limits(self) -> tuple[float, float]:
        """AP_CHANGE, or what one and two positives weigh where that is more."""
        return max(AP_CHANGE[0], 1 / self.positives), max(AP_CHANGE[1], 2 / self.positives)

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
    status: Status = "pass"
    message = f"Epsilon {epsilon:g} ({threat.norm}) is plausible for pixels in [0, 1]."
    if epsilon == 0:
        message = "Epsilon is 0, so no pixel may change: only the scores themselves are checked."
    if epsilon > box:
        status = "fail"
        message = (
            f"Epsilon {epsilon:g} covers every image there is ({box:g} would do): pixels are in "
            f"[0, 1], so 8 of 255 levels are 8/255 = 0.0314."
        )
    elif epsilon > box / 2:
        status = "caution"
        message = (
            f"Epsilon {epsilon:g} ({threat.norm}) can turn every image into plain grey, so that no "
            "model can rank: choose a smaller one."
        )
    elif 0 < epsilon < 0.5 / 255:
        status = "caution"
        message = (
            f"Epsilon {epsilon:g} is less than half a level of an 8-bit pixel ({0.5 / 255:.4f}): "
            "give it for pixels in [0, 1]."
        )
    elif brightest <= 1:
        status = "caution"
        message = (
            f"No sampled pixel is brighter than {brightest} of 255, so the images seem to be in "
            "[0, 1] already: store them as 0 to 255."
        )
    figures = {"epsilon": epsilon, "covers_everything": box, "brightest": float(brightest)}
    return Check(name="units", status=status, message=message, figures=figures)


def converged(judged: Judged, attacks: Sequence[Attack], runs: Mapping[str, Run]) -> Check:
    name = "converged"
    if judged.found and "white_box" not in judged.found:
        message = (
            "The model is a function without gradients, so only `square`, `transfer` and noise can "
            "attack it: whoever has its weights may do more, and the figures hold for an attacker "
            "who has not."
        )
        return Check(name=name, status="caution", message=message, figures={})
    if unjudgeable := judged.unjudgeable(name, "white_box", "doubled"):
        return unjudgeable
    before, after = judged.ap("white_box"), judged.ap("doubled")
    drop, further = judged.drop("white_box"), judged.drop("doubled")
    gain = (further - drop) / further if further > 0 else 0.0
    status = _worst(_status(before - after, judged.ap_limits), _status(gain, MARGIN_CHANGE))
    examined = examined_attack(attacks)
    first, second = _described(runs["white_box"].attack), _described(runs["doubled"].attack)
    found = (
        f"On the sample {first} leaves AP {before:.3f} and lowers the mean margin by {drop:.3g}, "
        f"{second} {after:.3f} and by {further:.3g}"
    )
    if status == "pass":
        message = f"{found}."
    elif _described(examined) != first:
        status = "caution"
        message = (
            f"{found}: the search was not at its end there, though the audit's goes on to "
            f"{_described(examined)}. Ask for full checks, or a larger number of steps."
        )
    else:
        message = f"{found}: the search was not at its end, give the attack more steps."
    if status == "pass" and judged.ap_limits[0] > VAGUE:
        status = "caution"
        message = (
            f"{found}; but with {judged.positives} positives one image can move AP by "
            f"{1 / judged.positives:.2f}, so no check by AP is sharp: audit with more positives."
        )
    if not any(isinstance(attack, GradientAttack) for attack in attacks):
        blind = not any(isinstance(attack, SquareAttack) for attack in attacks)
        status = _worst(status, "fail" if blind else "caution")
        message = (
            "The audit runs no attack that follows gradients"
            f"{', and none that searches at all' if blind else ''}: add `apgd` (on the sample "
            f"it leaves AP {before:.3f} of {judged.ap('clean'):.3f})."
        )
    figures = {
        "ap": before,
        "ap_doubled": after,
        "margin_drop": drop,
        "margin_drop_doubled": further,
    }
    return Check(name=name, status=status, message=message, figures=figures)


def restarts(judged: Judged, attacks: Sequence[Attack]) -> Check:
    name = "restarts"
    if "white_box" in judged.found and "restart" not in judged.found:
        return _skipped(name, "FGSM starts at the image itself, so there is nothing to restart.")
    if unjudgeable := judged.unjudgeable(name, "white_box", "restart"):
        return unjudgeable
    one, two = judged.ap("white_box"), judged.ap("white_box", "restart")
    status = _status(one - two, judged.ap_limits)
    examined = examined_attack(attacks)
    restarts = 1 if isinstance(examined, FGSMAttack) else examined.restarts
    if restarts > 1 and status == "fail":
        status = "caution"  # the audit took the better one itself, and a third is not known
    message = (
        f"One start leaves AP {one:.3f} on the sample, the better of two {two:.3f}"
        f"{'' if restarts == 1 else f' (the audit has {restarts})'}"
        f"{'.' if status == 'pass' else ': where the search starts matters, add restarts.'}"
    )
    figures = {"ap": one, "ap_two_starts": two}
    return Check(name=name, status=status, message=message, figures=figures)


def reaches_floor(judged: Judged) -> Check:
    name = "reaches_floor"
    if unjudgeable := judged.unjudgeable(name, "floor"):
        return unjudgeable
    ap, floor = judged.ap("floor"), judged.floor
    above = (ap - floor) / (1 - floor)
    status = _status(above, ABOVE_FLOOR)
    message = (
        f"With every pixel free, the attack leaves AP {ap:.3f} on the sample; floor {floor:.3f}"
    )
    if status == "pass":
        message += "."
    else:
        message += (
            ": an attacker who may do anything must invert the ranking, so the attack does not see "
            "where to go. Audit the network without what stops or scrambles its gradients."
        )
    figures = {"ap": ap, "floor": floor, "share_above_floor": above}
    return Check(name=name, status=status, message=message, figures=figures)


def noise_weaker(judged: Judged) -> Check:
    name = "noise_weaker"
    if unjudgeable := judged.unjudgeable(name, "noise", "white_box"):
        return unjudgeable
    noise, attack = judged.drop("noise"), judged.drop("white_box")
    share = noise / attack if attack > 0 else 1.0  # an attack that moved nothing is beaten by noise
    status = _status(share, NOISE_SHARE)
    message = (
        f"Noise of the same size lowers the mean margin by {noise:.3g}, the attack by {attack:.3g}"
    )
    if status == "pass":
        message += "."
    else:
        message += (
            ": following the gradient is hardly better than chance, so the gradient says little; "
            "trust `square` only."
        )
    figures = {
        "margin_drop_noise": noise,
        "margin_drop": attack,
        "ap_noise": judged.ap("noise"),
        "ap": judged.ap("white_box"),
    }
    return Check(name=name, status=status, message=message, figures=figures)


def black_box_weaker(judged: Judged) -> Check:
    name = "black_box_weaker"
    boxes = [box for box in ("square", "transfer") if box in judged.found]
    if unjudgeable := judged.unjudgeable(name, *boxes, "white_box"):
        return unjudgeable
    white, white_ap = judged.lowest(*judged.white_box), judged.ap(*judged.white_box)
    wins = {box: float((judged.margins(box) < white - judged.real_margin).mean()) for box in boxes}
    aps = {box: judged.ap(box) for box in boxes}
    statuses = {
        box: _worst(
            _status(white_ap - aps[box], judged.ap_limits), _status(wins[box], BLACK_BOX_WINS)
        )
        for box in boxes
    }
    status = _worst(*statuses.values())
    strongest = max(boxes, key=lambda box: (SEVERITY.index(statuses[box]), wins[box]))
    message = (
        f"`{strongest}`, which sees no gradient of the model, leaves AP {aps[strongest]:.3f} on "
        f"the sample and is clearly stronger on {wins[strongest]:.0%} of the images; the attacks "
        f"that see it leave {white_ap:.3f}"
    )
    if status == "pass":
        message += "."
    else:
        message += ": the gradients mislead, so read the figures of `square`, with more queries."
    figures = {"ap_white_box": white_ap}
    for box in boxes:
        figures |= {f"ap_{box}": aps[box], f"{box}_wins": wins[box]}
    return Check(name=name, status=status, message=message, figures=figures)


def monotone(judged: Judged, threat: Threat) -> Check:
    name = "monotone"
    if unjudgeable := judged.unjudgeable(name, *CURVE):
        return unjudgeable
    aps = {point: judged.ap(point) for point in ("clean", *CURVE)}
    rise = max(np.diff(list(aps.values())).max(), 0.0)
    status = _status(rise, judged.ap_limits)
    epsilons = ", ".join(f"{multiple * threat.epsilon:.3g}" for multiple in (0, *CURVE.values()))
    message = (
        f"At epsilon {epsilons} AP on the sample is {', '.join(f'{ap:.3f}' for ap in aps.values())}"
        f"{'.' if status == 'pass' else ': it must not rise, so the attack loses its way in a '}"
        f"{'' if status == 'pass' else 'larger ball. Give it more steps, or trust `square` only.'}"
    )
    figures = {f"ap_{point}": ap for point, ap in aps.items()} | {"rise": float(rise)}
    return Check(name=name, status=status, message=message, figures=figures)


def gradients(
    clean: Logits, bench: Bench, zero: NDArray[np.bool_], broken: NDArray[np.bool_]
) -> Check:
    """zero, broken: (n,) of the images, or empty for a model without gradients."""
    name = "gradients"
    if len(zero) == 0:
        return _skipped(name, NO_GRADIENTS)
    if not_finite := _not_finite(name, clean):
        return not_finite
    classes = {"positives": bench.targets == 1, "negatives": bench.targets == 0}
    figures = {f"zero_{of}": float(zero[rows].mean()) for of, rows in classes.items()}
    figures |= {f"not_finite_{of}": float(broken[rows].mean()) for of, rows in classes.items()}
    figures["equal_scores"] = _equal_scores(clean, bench.images)
    status = _worst(*(_status(share, BLOCKED) for share in figures.values()))
    worst = max(figures, key=figures.__getitem__)
    kind, _, of = worst.rpartition("_")
    if status == "pass":
        message = (
            f"The gradient is zero for {figures['zero_positives']:.1%} of the positives and "
            f"{figures['zero_negatives']:.1%} of the negatives, and "
            f"{figures['equal_scores']:.1%} of the images share their score with another."
        )
    elif worst == "equal_scores":
        message = (
            f"{figures[worst]:.0%} of the images have exactly the score of another image: the "
            "output is saturated or rounded. Audit the network before that step."
        )
    else:
        what = "exactly zero" if kind == "zero" else "NaN or infinite"
        message = (
            f"The gradients of {figures[worst]:.0%} of the {of} are {what}, so attacks that follow "
            "them see nothing: audit the network before its sigmoid or its rounding, or trust "
            "`square` only."
        )
    return Check(name=name, status=status, message=message, figures=figures)


def repeatable(
    clean: Logits, again: Logits, alone: Logits | None, alone_again: Logits | None
) -> Check:
    """In batches, and one by one: a network that draws once a batch then draws for each image."""
    name = "repeatable"
    if not_finite := _not_finite(name, clean, again):
        return not_finite
    change, share = _change(clean, again, spread=clean.std())
    if alone is not None and alone_again is not None and np.isfinite([alone, alone_again]).all():
        change_alone, share_alone = _change(alone, alone_again, spread=clean.std())
        change, share = max(change, change_alone), max(share, share_alone)
    status = _status(share, LOGIT_CHANGE)
    message = f"The same images scored twice differ by {change:.2g} at most"
    if status == "pass":
        message += "."
    else:
        message += (
            f", {share:.1%} of the spread of the logits: the model draws random numbers, or "
            "remembers. Audit it without that, or averaged over many draws."
        )
    figures = {"largest_change": change, "share_of_spread": share}
    return Check(name=name, status=status, message=message, figures=figures)


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
        return Check(name=name, status="fail", message=message, figures={"scored_alone": 0.0})
    if not_finite := _not_finite(name, clean, shuffled, alone):
        return not_finite
    other, other_share = _change(clean, shuffled, spread=clean.std())
    single, single_share = _change(clean, alone, spread=clean.std())
    share = max(other_share, single_share)
    status = _status(share, LOGIT_CHANGE)
    if status != "pass" and share < APART * repeatable.figures.get("share_of_spread", 0):
        return _skipped(
            name,
            "Scores do not repeat, and differ no more than that among other images: what the batch "
            "does cannot be told.",
        )
    message = f"Scores differ by {other:.2g} at most among other images, by {single:.2g} alone"
    if status == "pass":
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
    return Check(name=name, status=status, message=message, figures=figures)


def eight_bit(judged: Judged) -> Check:
    name = "eight_bit"
    if unjudgeable := judged.unjudgeable(name, "white_box", "eight_bit"):
        return unjudgeable
    drop, kept = judged.drop("white_box"), judged.drop("eight_bit")
    before, after = judged.ap("white_box"), judged.ap("eight_bit")
    lost = 1 - kept / drop if drop > 0 else 0.0
    status = _worst(_status(lost, LOST_TO_ROUNDING), _status(after - before, judged.ap_limits))
    message = (
        f"The attacked images leave AP {before:.3f} on the sample, stored with 8 bits {after:.3f}, "
        f"and keep {1 - lost:.0%} of the fall of the margin"
    )
    if status == "pass":
        message += "."
    else:
        message += (
            ": the attack lives on less than a level of a pixel. Choose a larger epsilon, or audit "
            "the network without what depends on such small changes."
        )
    figures = {"ap": before, "ap_8_bit": after, "margin_drop": drop, "margin_drop_8_bit": kept}
    return Check(name=name, status=status, message=message, figures=figures)


def _status(value: float, limits: tuple[float, float]) -> Status:
    caution, fail = limits
    return "fail" if value > fail else "caution" if value > caution else "pass"


def _worst(*statuses: Status) -> Status:
    return max(statuses, key=SEVERITY.index)


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
    return Check(name=name, status="fail", message=message, figures={"not_finite": float(broken)})


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


def _equal_scores(logits: Logits, images: Pixels) -> float:
    """Share of the distinct images whose logit is also that of another one."""
    distinct = {image.tobytes(): logit for image, logit in zip(images, logits, strict=True)}
    counts = Counter(distinct.values())
    return sum(count for count in counts.values() if count > 1) / len(distinct)


def _described(attack: Attack) -> str:
    if isinstance(attack, PGDAttack | APGDAttack):
        return f"{attack.name} with {attack.steps} steps"
    return attack.name
