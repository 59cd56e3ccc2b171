"""What can be said again of the trust checks without the model."""

import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from adap.client.client import Json
from adap.client.verify.book import Book
from adap.client.verify.scores import Ints, Scores, ap_of

SEVERITY = ("skipped", "pass", "caution", "fail")
OF_CHANCE = ("above_chance", "positive_class")  # checks of the clean AP against chance
CHECKED = {"quick": 48, "full": 128}  # images of each class that trust checks look at
# Of figures that the audit's own attacks may contradict: what would fail a check.
NOISE_FAILS = 0.9
AP_FAILS = 0.05  # or the weight of two positives
# Of a sample's clean AP: its images are scored among others, which may swap neighbours.
OTHER_BATCH = 0.01
WHITE_BOX = ("fgsm", "pgd", "apgd")
BLACK_BOX = ("square", "transfer")
HALF_A_LEVEL = 0.5 / 255  # what storing a pixel as a byte may change
TWENTIETHS = 20  # of the positives that were moved: where the curve of smallest changes has points


def trust_checks(book: Book, report: Json, tasks: Mapping[str, Scores]) -> None:
    """The verdict by the checks, each check by its figures, and what the scores say of it."""
    checks = report["trust"]["checks"]
    worst = max((check["status"] for check in checks), key=SEVERITY.index, default="skipped")
    verdict = {"fail": "not trustworthy", "caution": "caution"}.get(worst, "trustworthy")
    book.same("trust.verdict", report["trust"]["verdict"], verdict)
    statuses = {check["name"]: check["status"] for check in checks}
    threat = report["provenance"]["config"]["threat"]
    steady = {statuses.get(of) for of in ("repeatable", "batch_independent")} <= {"pass", None}
    for check in checks:
        name, status, figures = check["name"], check["status"], check["figures"]
        path = f"trust.{name}"
        # of several tasks the worst result is shown, and the message begins with its name
        named = [task for task in tasks if check["message"].startswith(f"{task}: ")]
        scores = tasks[max(named, key=len) if len(tasks) > 1 and named else next(iter(tasks))]
        rows = _checked_rows(scores, report["provenance"]["config"])
        sample = scores.targets[rows]
        limits = check.get("limits", {})
        if status == "skipped" or not limits:
            reason = "as reported: it was skipped" if status == "skipped" else "needs the model"
            book.taken(path, status, reason)
            continue
        book.same(f"{path}.status", status, _by_limits(figures, limits))
        for figure, recomputed in _derived(name, figures, int(sample.sum()), threat).items():
            if figure in figures:
                book.number(f"{path}.{figure}", figures[figure], recomputed)
        if name == "reaches_floor" and "floor" in figures:
            floor = ap_of(-sample.astype(np.float64), sample)
            book.number(f"{path}.floor", figures["floor"], floor)
        own = report["tasks"][list(tasks).index(max(named, key=len)) if named else 0]
        if name == "universal_no_worse" and own.get("universal") is not None:
            book.number(f"{path}.ap", figures["ap"], own["universal"]["ap"])
            book.number(f"{path}.worst_case_ap", figures["worst_case_ap"], own["worst_case"]["ap"])
        if name in OF_CHANCE:
            book.number(f"{path}.low", figures["low"], own["clean"]["interval"]["low"])
            book.number(f"{path}.chance", figures["chance"], own["chance"])
        if name == "monotone" and "ap_clean" in figures and steady:
            clean = ap_of(scores.clean[rows], sample)
            book.number(f"{path}.ap_clean", figures["ap_clean"], clean, within=OTHER_BATCH)
        contrary = [
            _contrary(name, report, task, of)
            for task, of in zip(report["tasks"], tasks.values(), strict=False)
        ]
        if status == "pass" and any(found is not None for found in contrary):
            fails = any(contrary)
            book.add(
                f"{path} by the audit's attacks", status, "fail" if fails else "no fail", not fails
            )


def _by_limits(figures: Json, limits: Json) -> str:
    """The gravest status that a check's figures have by the limits which it carries."""
    return max(
        (_status(figures[name], limit) for name, limit in limits.items()), key=SEVERITY.index
    )


def _status(value: float, limit: Json) -> str:
    beyond = operator.lt if limit["side"] == "below" else operator.gt
    if limit["fail"] is not None and beyond(value, limit["fail"]):
        return "fail"
    return "caution" if beyond(value, limit["caution"]) else "pass"


def _derived(name: str, figures: Json, positives: int, threat: Json) -> dict[str, float]:
    """The figures of a check that follow from its others."""
    if "not_finite" in figures or set(figures) == {"gradient_attacks"}:
        return {}
    if name == "converged":
        drop, further = figures["margin_drop"], figures["margin_drop_doubled"]
        return {
            "ap_lower": figures["ap"] - figures["ap_doubled"],
            "ap_left": figures["ap"] - figures["ap_lowest"],
            "margin_further": _further(further, drop),
            "weight_of_a_positive": 1 / positives,
        }
    if name == "restarts":
        return {"ap_lower": figures["ap"] - figures["ap_two_starts"]}
    if name == "noise_weaker":
        return {"share": _share(figures["margin_drop_noise"], figures["margin_drop"])}
    if name == "black_box_weaker":
        lower = {
            f"{box}_ap_lower": figures["ap_white_box"] - figures[f"ap_{box}"]
            for box in BLACK_BOX
            if f"ap_{box}" in figures
        }
        lower |= {
            f"{box}_further": _further(figures[f"margin_drop_{box}"], figures["margin_drop"])
            for box in BLACK_BOX
            if f"{box}_further" in figures
        }
        if "square_share" not in figures:
            return lower
        return lower | {
            "square_share": _share(figures["margin_drop_square"], figures["margin_drop"])
        }
    if name == "monotone":
        aps = [figures[f"ap_{point}"] for point in ("clean", "half", "same", "twice")]
        return {"rise": _rise(aps)}
    if name == "reaches_floor":
        floor = figures["floor"]
        return {"share_above_floor": (figures["ap"] - floor) / (1 - floor)}
    if name in OF_CHANCE:
        return {"above": figures["low"] - figures["chance"]}
    if name == "universal_no_worse":
        return {"lower": figures["worst_case_ap"] - figures["ap"]}
    if name == "eight_bit":
        drop, kept = figures["margin_drop"], figures["margin_drop_8_bit"]
        lost = 1 - kept / drop if drop > 0 else 0.0
        # where all pixels may round outwards at once
        outwards = HALF_A_LEVEL / threat["epsilon"] if threat["norm"] == "linf" else 0.0
        return {
            "share_lost": lost,
            "share_gained": -lost - outwards,
            "ap_back": figures["ap_8_bit"] - figures["ap"],
        }
    return {}


def _contrary(name: str, report: Json, task: Json, scores: Scores) -> bool | None:
    """Whether the audit's own attacks, on all examples, fail a check; None where they do not ask.

    They are other attacks on other images than the check's, so a lesser difference says nothing.
    """
    signs, targets = 2 * scores.targets - 1, scores.targets
    limit = max(AP_FAILS, 2 / int(targets.sum()))
    of = {key: value["attack"]["name"] for key, value in task["attacks"].items()}
    logits = {key: scores.attacked[key] for key in of if key in scores.attacked}
    drops = {key: float((signs * (scores.clean - found)).mean()) for key, found in logits.items()}
    white = [key for key in logits if of[key] in WHITE_BOX]
    noise = [key for key in logits if of[key] == "noise"]
    black = [key for key in logits if of[key] in BLACK_BOX]
    if name == "noise_weaker" and noise and white:
        most = max(drops[key] for key in white)
        return _share(max(drops[key] for key in noise), most) > NOISE_FAILS
    if name == "black_box_weaker" and black and white:
        lowest = {key: ap_of(logits[key], targets) for key in (*white, *black)}
        by = min(black, key=lowest.__getitem__)
        stronger = min(lowest[key] for key in white) - lowest[by] > limit
        # more queries than the check has may find what it could not: the report must say so
        warned = any(by in text and "more damage" in text for text in report["warnings"])
        return stronger and not warned
    if name == "monotone" and scores.curve:
        aps = [ap_of(found, targets) for found in (scores.clean, *scores.curve.values())]
        return _rise(aps) > limit
    return None


def _checked_rows(scores: Scores, config: Json) -> Ints:
    """The examples that trust checks look at, evenly spread over each class."""
    standard = config.get("attacks") is None and config.get("preset") == "standard"
    most = CHECKED[config.get("checks") or ("full" if standard else "quick")]
    sides = [np.flatnonzero(scores.targets == target) for target in (0, 1)]
    spread = [
        side[np.linspace(0, len(side) - 1, min(most, len(side))).round().astype(np.int64)]
        for side in sides
    ]
    return np.sort(np.concatenate(spread))


def _share(noise: float, attack: float) -> float:
    """Of the attack's damage that noise does; all of it where the attack does none."""
    return noise / attack if attack > 0 else 1.0


def _further(other: float, attack: float) -> float:
    """Of another's damage, what the attack does not do."""
    return (other - attack) / other if other > 0 else 0.0


def _rise(aps: Sequence[float]) -> float:
    return max(0.0, *(later - before for before, later in pairwise(aps)))
