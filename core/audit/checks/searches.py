"""Whether the attacks searched far enough: steps, restarts, noise, and search without gradients."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from adap.core.audit.checks.judging import (
    SEVERITY,
    Judged,
    check_of,
    refused_numbers,
    skipping,
    status_of,
)
from adap.core.audit.checks.limits import (
    ABOVE_FLOOR,
    BLACK_BOX_WINS,
    BORROWED_MARGIN,
    MARGIN_CHANGE,
    NOISE_SHARE,
    SQUARE_SHARE,
    VAGUE,
)
from adap.core.audit.checks.planned import CURVE, GradientAttack, Run, examined_attack
from adap.core.config.attacks import APGDAttack, Attack, FGSMAttack, PGDAttack, SquareAttack
from adap.core.config.threats import COUNTED_NORMS, Norm, Threat
from adap.core.report import Check, Limit, Status


def converged(judged: Judged, attacks: Sequence[Attack], runs: Mapping[str, Run]) -> Check:
    name = "converged"
    if judged.found and "white_box" not in judged.found:
        message = (
            "The model is a function without gradients, so only `square`, `transfer` and noise can "
            "attack it: whoever has its weights may do more, and the figures hold for an attacker "
            "who has not."
        )
        limits = {"gradient_attacks": Limit(caution=1, side="below")}
        return check_of(name, message, {"gradient_attacks": 0.0}, limits)
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
    ends = {
        "ap_lower": judged.ap_limit,
        "ap_left": judged.left_limit,
        "margin_further": MARGIN_CHANGE,
    }
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
    elif status_of(figures, ends) != "pass":
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
    return check_of(name, message, figures, limits)


def restarts(judged: Judged, attacks: Sequence[Attack]) -> Check:
    name = "restarts"
    if "white_box" in judged.found and "restart" not in judged.found:
        return skipping(name, "FGSM starts at the image itself, so there is nothing to restart.")
    if unjudgeable := judged.unjudgeable(name, "white_box", "restart"):
        return unjudgeable
    one, two = judged.ap("white_box"), judged.ap("white_box", "restart")
    examined = examined_attack(attacks)
    restarts = 1 if isinstance(examined, FGSMAttack) else examined.restarts
    limit = judged.ap_limit
    if restarts > 1:  # the audit took the better one itself, and a third is not known
        limit = limit.model_copy(update={"fail": None})
    figures = {"ap": one, "ap_two_starts": two, "ap_lower": one - two}
    limits = {"ap_lower": limit}
    matters = limit.status(one - two) != "pass"
    message = (
        f"One start leaves AP {one:.3f} on the sample, the better of two {two:.3f}"
        f"{'' if restarts == 1 else f' (the audit has {restarts})'}"
        f"{': where the search starts matters, add restarts.' if matters else '.'}"
    )
    if "borrowed" in judged.found:
        if not_finite := refused_numbers(name, judged.margins("borrowed")):
            return not_finite
        own, borrowed = judged.lowest(*judged.white_box), judged.margins("borrowed")
        far = borrowed < own - BORROWED_MARGIN * judged.clean.std()
        lower = judged.ap_of(own) - judged.ap_of(np.where(far, borrowed, own))
        figures["borrowed_ap_lower"] = lower
        figures["borrowed_wins"] = float(far.mean())
        limits["borrowed_ap_lower"] = judged.ap_limit.model_copy(
            update={"caution": judged.left_limit.caution}
        )
        if limits["borrowed_ap_lower"].status(lower) != "pass":
            message += (
                " A search that starts from what helped against other images is far stronger than "
                f"all that start beside the image on {figures['borrowed_wins']:.0%} of the images, "
                f"which makes AP {lower:.3f} lower: there the gradient leads into a dead end, as "
                "where a part is clipped. Trust `square` with many queries."
            )
    return check_of(name, message, figures, limits)


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
    return check_of(name, message, figures, {"share_above_floor": ABOVE_FLOOR})


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
    return check_of(name, message, figures, {"share": NOISE_SHARE})


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
        statuses[box] = status_of(figures, of_box)
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
    return check_of(name, message, figures, limits)


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
    return check_of(name, message, figures, {"rise": judged.ap_limit})


def _described(attack: Attack) -> str:
    if isinstance(attack, PGDAttack | APGDAttack):
        return f"{attack.name} with {attack.steps} steps"
    return attack.name
