"""The figures of a task, computed again from its scores."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from adap.client.client import Json
from adap.client.verify.book import Book
from adap.client.verify.scores import (
    Bools,
    Floats,
    Ints,
    Scores,
    ap_of,
    chance_of,
    greedy,
    intervals_of,
    numbers_of,
    ranks_of,
    worst_of,
)
from adap.client.verify.trust import TWENTIETHS


def task_figures(book: Book, task: Json, scores: Scores, config: Json) -> dict[str, float]:
    """All figures of a task; those that thresholds are set on, by their names there."""
    targets = scores.targets
    examples, positives = len(targets), int(targets.sum())
    book.same("examples", task["examples"], examples)
    book.same("positives", task["positives"], positives)
    book.number("prevalence", task["prevalence"], positives / examples)
    book.number("chance", task["chance"], chance_of(positives, examples))
    book.number("floor", task["floor"], ap_of(-targets.astype(np.float64), targets))

    book.same("attacks", sorted(task["attacks"]), sorted(scores.attacked))
    if config.get("attacks") is not None:
        asked = {attack.get("label") or attack["name"]: attack for attack in config["attacks"]}
        for key, value in task["attacks"].items():
            book.same(f"attacks.{key}.attack", value["attack"], asked.get(key))
    worst, won = worst_of(scores)
    book.same("worst_case.won", task["worst_case"]["won"], won)

    # path in the report, its value there, the scores it comes from
    ranked: list[tuple[str, Json, Floats]] = [("clean", task["clean"], scores.clean)]
    turned = task.get("upside_down")
    worse = ap_of(scores.clean, targets) < task["chance"]
    book.same("upside_down", "there" if turned else "none", "there" if worse else "none")
    if turned is not None:
        ranked.append(("upside_down", turned, -scores.clean))
    ranked += [
        (f"attacks.{key}", value, scores.attacked[key])
        for key, value in task["attacks"].items()
        if key in scores.attacked
    ]
    ranked += [("worst_case", task["worst_case"], worst)]
    ranked += _certified(book, task, scores)
    ranked += _curve(book, task, scores)
    smallest = _smallest(book, task, config, scores)
    ranked += _universal(book, task, config, scores)
    corruptions = _corruptions(book, task, config, scores)
    ranked += corruptions.ranked
    resamples = book.resamples(task["resamples"])
    clusters = scores.clusters
    book.same("clusters", task.get("clusters"), _clusters(scores))
    own = intervals_of([logits for _, _, logits in ranked], targets, clusters)
    ap = {path: ap_of(logits, targets) for path, _, logits in ranked}
    for (path, value, logits), resampled in zip(ranked, own, strict=True):
        book.number(f"{path}.ap", value["ap"], ap[path])
        book.ap_interval(
            path,
            value["interval"],
            resampled,
            resamples,
            logits=logits,
            targets=targets,
            clusters=clusters,
        )
        tied = np.isin(logits[targets == 1], logits[targets == 0]).sum()
        book.same(f"{path}.tied", value["tied"], int(tied))
        if value.get("drop") is not None:
            book.number(f"{path}.drop.value", value["drop"]["value"], ap["clean"] - ap[path])
            book.interval(f"{path}.drop", value["drop"]["interval"], own[0] - resampled, resamples)
        if "mean_margin_drop" in value:
            margin_drop = ((2 * targets - 1) * (scores.clean - logits)).mean()
            book.number(f"{path}.mean_margin_drop", value["mean_margin_drop"], float(margin_drop))

    found = {
        "clean_ap": ap["clean"],
        "worst_case_ap": ap["worst_case"],
        "drop": ap["clean"] - ap["worst_case"],
        "chance": chance_of(positives, examples),
        **{f"{key}_ap": ap_of(logits, targets) for key, logits in scores.attacked.items()},
    }
    for side in ("clean", "worst_case"):
        if task[side]["interval"] is not None:
            found[f"{side}_ap_low"] = task[side]["interval"]["low"]
    if "universal" in ap:
        found["universal_ap"] = ap["universal"]
    if "certified_floor" in ap:
        found["certified_floor"] = ap["certified_floor"]
    found |= corruptions.figures | smallest
    _budget(book, task, config, scores, worst)
    found |= _operating(book, task, config, {"clean": scores.clean, "worst_case": worst}, targets)
    return found | _groups(book, task, scores, worst)


def _clusters(scores: Scores) -> Json | None:
    of = numbers_of(scores.clusters, scores.targets)
    if len(set(of)) == len(of):
        return None
    return {"clusters": len(set(of)), "with_positives": len(set(of[scores.targets == 1]))}


def _certified(book: Book, task: Json, scores: Scores) -> Iterator[tuple[str, Json, Floats]]:
    floor = task["certified_floor"]
    if floor is None:
        return
    if scores.bounds is None:
        book.same("certified_floor", "present", "no bounds in the scores")
        return
    low, high = scores.bounds
    proven = np.searchsorted(np.sort(high[scores.targets == 0]), low[scores.targets == 1])
    pairs = len(proven) * (len(scores.targets) - len(proven))
    book.number("certified_floor.proven_pairs", floor["proven_pairs"], float(proven.sum() / pairs))
    yield "certified_floor", floor, np.where(scores.targets == 1, low, high)


def _curve(book: Book, task: Json, scores: Scores) -> Iterator[tuple[str, Json, Floats]]:
    points = [] if task["epsilon_curve"] is None else task["epsilon_curve"]["points"]
    book.same("epsilon_curve", [point["epsilon"] for point in points], list(scores.curve))
    for i, point in enumerate(points):
        if point["epsilon"] in scores.curve:
            yield f"epsilon_curve.{i}", point, scores.curve[point["epsilon"]]


def _smallest(book: Book, task: Json, config: Json, scores: Scores) -> dict[str, float]:
    """Smallest changes: the first k follow from the clean logits, the figures from the sizes.

    Answers those that thresholds are set on.
    """
    reported, asked = task.get("smallest_changes"), config.get("smallest_changes")
    kept = scores.smallest
    book.same("smallest_changes", reported is not None, asked is not None)
    book.same("smallest_changes.sizes", reported is not None, kept is not None)
    if reported is None or asked is None or kept is None:
        return {}
    k = int(scores.targets.sum()) if asked["k"] is None else asked["k"]
    book.same("smallest_changes.norm", reported["norm"], config["threat"]["norm"])
    book.same("smallest_changes.k", reported["k"], k)
    ranks = len(scores.targets) + 1 - ranks_of(scores.clean, scores.targets)
    among = int((scores.targets[ranks <= k] == 1).sum())
    book.same("smallest_changes.among", reported["among"], among)
    book.number(
        "smallest_changes.threshold",
        reported["threshold"],
        float(scores.clean[ranks == k + 1].min(initial=np.inf)),
    )
    book.same("smallest_changes.searched", reported["searched"], min(among, asked["positives"]))
    book.same("smallest_changes.sizes of all searched", len(kept), reported["searched"])
    moved = kept[np.isfinite(kept)]
    book.same("smallest_changes.found", reported["found"], len(moved))
    least = float(moved.min()) if len(moved) else math.inf
    for name, value in (("least", least), ("median", np.median(kept) if len(kept) else math.inf)):
        there = reported[name] is not None
        book.same(f"smallest_changes.{name} found", there, bool(np.isfinite(value)))
        if there and np.isfinite(value):
            book.number(f"smallest_changes.{name}", reported[name], float(value))
    book.same(
        "smallest_changes.kept_at_epsilon known",
        reported["kept_at_epsilon"] is not None,
        len(kept) > 0,
    )
    if reported["kept_at_epsilon"] is None or not len(kept):
        return {}
    share = float((kept > config["threat"]["epsilon"]).mean())
    book.number("smallest_changes.kept_at_epsilon", reported["kept_at_epsilon"], share)
    ends = {-(-i * len(moved) // TWENTIETHS) - 1 for i in range(1, TWENTIETHS + 1)}
    at = np.unique(np.sort(moved)[sorted(ends)]) if len(moved) else moved
    book.same("smallest_changes.curve", len(reported["curve"]), len(at))
    for i, (point, epsilon) in enumerate(zip(reported["curve"], at, strict=False)):
        book.number(f"smallest_changes.curve.{i}.epsilon", point["epsilon"], float(epsilon))
        book.number(f"smallest_changes.curve.{i}", point["kept"], float((kept > epsilon).mean()))
    return {
        "smallest_least": least,
        "smallest_median": float(np.median(kept)),
        "smallest_kept": share,
    }


def _universal(
    book: Book, task: Json, config: Json, scores: Scores
) -> Iterator[tuple[str, Json, Floats]]:
    """One perturbation for all images: within the threat, and searched on as many as was asked."""
    reported, asked = task.get("universal"), config.get("universal")
    delta, kept = scores.universal_delta, scores.universal
    book.same("universal", reported is not None, asked is not None)
    book.same("universal.scores", reported is not None, kept is not None and delta is not None)
    if reported is None or asked is None or kept is None or delta is None:
        return
    threat = config["threat"]
    size = np.linalg.norm(delta.ravel().astype(float), 2 if threat["norm"] == "l2" else np.inf)
    book.number("universal.size", reported["size"], float(size))
    book.same("universal.within the threat", bool(size <= threat["epsilon"] * (1 + 1e-6)), True)
    sides = [int((scores.targets == target).sum()) for target in (0, 1)]
    searched = sum(min(asked["images"] // 2, side) for side in sides)
    book.same("universal.searched", reported["searched"], searched)
    book.same("universal.searched on", scores.universal_searched, searched)
    book.same("universal.rounds", reported["rounds"], asked["rounds"])
    yield "universal", reported, kept


@dataclass(frozen=True)
class _Corruptions:
    ranked: list[tuple[str, Json, Floats]]
    figures: dict[str, float]


def _corruptions(book: Book, task: Json, config: Json, scores: Scores) -> _Corruptions:
    """The worst case over them, whose interval is checked as any other's; and the points' figures.

    Their names in thresholds begin with `corruption_`.
    """
    reported = task["corruptions"]
    named = [] if reported is None else reported["points"]
    keys = [(point["kind"], point["severity"]) for point in named]
    asked = config.get("corruptions")
    if asked is not None:
        of = [(kind, severity) for kind in asked["kinds"] for severity in asked["severities"]]
        book.same("corruptions.points", keys, of)
    book.same("corruptions", [list(key) for key in keys], [list(key) for key in scores.corrupted])
    if reported is None or set(keys) != set(scores.corrupted):
        return _Corruptions([], {})
    book.same("corruptions.parameters", reported["parameters"], scores.corruption_table)
    ap = {key: ap_of(logits, scores.targets) for key, logits in scores.corrupted.items()}
    for point, key in zip(named, keys, strict=True):
        book.number(f"corruptions.{key[0]}.{key[1]}.ap", point["ap"], ap[key])
    kinds = list(dict.fromkeys(kind for kind, _ in keys))
    book.same("corruptions.by_kind", list(reported["by_kind"]), kinds)
    for kind in kinds:
        own = [value for (of, _), value in ap.items() if of == kind]
        book.number(
            f"corruptions.by_kind.{kind}", reported["by_kind"].get(kind, math.nan), fmean(own)
        )
    mean, lowest = fmean(ap.values()), min(ap, key=ap.__getitem__)
    book.number("corruptions.mean", reported["mean"], mean)
    least = reported["lowest"]
    book.same("corruptions.lowest", [least["kind"], least["severity"]], list(lowest))
    book.number("corruptions.lowest.ap", least["ap"], ap[lowest])
    by_key = {f"{kind} {severity}": each for (kind, severity), each in scores.corrupted.items()}
    worst, won = worst_of(replace(scores, attacked=by_key))
    by_kind = {"clean": won.pop("clean")} | dict.fromkeys(kinds, 0)
    for name, count in won.items():
        by_kind[name.split()[0]] += count
    book.same("corruptions.worst_case.won", reported["worst_case"]["won"], by_kind)
    figures = {
        "corruption_mean_ap": mean,
        "corruption_lowest_ap": ap[lowest],
        "corruption_worst_case_ap": ap_of(worst, scores.targets),
    }
    return _Corruptions([("corruptions.worst_case", reported["worst_case"], worst)], figures)


def _budget(book: Book, task: Json, config: Json, scores: Scores, worst: Floats) -> None:
    points, targets = task["budget_curve"], scores.targets
    book.same("budget_curve", [point["images"] for point in points], config["budgets"])
    most = max((point["images"] for point in points), default=0)
    left = {
        role: greedy(scores.clean, np.where(may, worst, scores.clean), targets, steps=most)
        for role, may in (
            ("hide_positives", targets == 1),
            ("push_negatives", targets == 0),
            ("both", np.ones(len(targets), bool)),
        )
    }
    for point in points:
        images = point["images"]
        ap = {role: aps[min(images, len(aps) - 1)] for role, aps in left.items()}
        ap["both"] = min(ap.values())  # who may change both may change either alone
        for role, value in ap.items():
            book.number(f"budget_curve.{images}.{role}", point[role], value)


def _operating(
    book: Book, task: Json, config: Json, sides: Mapping[str, Floats], targets: Ints
) -> dict[str, float]:
    reported = task["operating"]
    if reported is None:
        return {}
    asked = config.get("operating", {})
    for name in ("precision", "fpr", "prevalence"):
        book.number(f"operating.{name}", reported[name], asked.get(name, reported[name]))
    k = asked.get("k")
    k = min(100, int(targets.sum())) if k is None else k
    book.same("operating.k", reported["k"], k)
    negatives = sides["clean"][targets == 0]
    levels = np.unique(negatives)
    above = len(negatives) - np.searchsorted(np.sort(negatives), levels, side="right")
    threshold = float(levels[above / len(negatives) <= reported["fpr"]].min())
    book.number("operating.threshold", reported["threshold"], threshold)
    found = {}
    for side, logits in sides.items():
        ranks = ranks_of(logits, targets)
        precision, recall, _ = precision_recall_curve(targets, ranks)
        fpr, tpr, _ = roc_curve(targets, ranks, drop_intermediate=False)
        figures = {
            "precision_at_k": float(targets[ranks > len(targets) - k].mean()),
            "recall_at_precision": float(recall[precision >= reported["precision"]].max()),
            "tpr_at_fpr": float(tpr[fpr <= reported["fpr"]].max()),
            "ap_at_prevalence": ap_of(logits, targets, prevalence=reported["prevalence"]),
        }
        for name, value in figures.items():
            book.number(f"operating.{side}.{name}", reported[side][name], value)
            found[f"{side}_{name}"] = value
        alarms = {
            name: int((logits[targets == target] > threshold).sum())
            for name, target in (("positives", 1), ("negatives", 0))
        }
        book.same(f"operating.{side}.alarms", reported[side]["alarms"], alarms)
    return found


def _groups(book: Book, task: Json, scores: Scores, worst: Floats) -> dict[str, float]:
    if task["groups"] is None:
        return {}
    groups, targets = scores.groups, scores.targets
    if groups is None:
        book.same("groups", "present", "no groups in the scores")
        return {}
    names = [group["group"] for group in task["groups"]["groups"]]
    book.same("groups", sorted(names), sorted(set(groups)))
    comparable: dict[str, dict[str, float]] = {"clean": {}, "worst_case": {}}
    resamples = book.resamples(task["resamples"])
    for group in task["groups"]["groups"]:
        name = group["group"]
        inside = groups == name
        path, own = f"groups.{name}", targets[inside]
        book.same(f"{path}.examples", group["examples"], len(own))
        book.same(f"{path}.positives", group["positives"], int(own.sum()))
        ranked = min(own.sum(), len(own) - own.sum()) >= 2
        sides = {"clean": scores.clean[inside], "worst_case": worst[inside]}
        within = None if scores.clusters is None else scores.clusters[inside]
        again = intervals_of(list(sides.values()), own, within) if ranked else [own, own]
        for (side, logits), resampled in zip(sides.items(), again, strict=True):
            ap = ap_of(logits, own) if ranked else None
            at = ap_of(logits, own, prevalence=float(targets.mean())) if ranked else None
            figure = group[side]
            book.number(f"{path}.{side}.ap", None if figure is None else figure["ap"], ap)
            book.number(f"{path}.{side}_at_prevalence", group[f"{side}_at_prevalence"], at)
            if figure is not None and ranked:
                book.ap_interval(
                    f"{path}.{side}",
                    figure["interval"],
                    resampled,
                    resamples,
                    logits=logits,
                    targets=own,
                    clusters=within,
                )
                tied = np.isin(logits[own == 1], logits[own == 0]).sum()
                book.same(f"{path}.{side}.tied", figure["tied"], int(tied))
            if at is not None:
                comparable[side][name] = at
    gaps = {}
    for side, figures in comparable.items():
        gap = task["groups"][f"{side}_gap"]
        if gap is None:
            book.same(f"groups.{side}_gap", gap, None if len(figures) < 2 else "present")
            continue
        book.number(f"groups.{side}_gap.best", figures.get(gap["best"]), max(figures.values()))
        book.number(f"groups.{side}_gap.worst", figures.get(gap["worst"]), min(figures.values()))
        gaps[side] = max(figures.values()) - min(figures.values())
        book.number(f"groups.{side}_gap", gap["difference"]["value"], gaps[side])
        logits = scores.clean if side == "clean" else worst
        if not {gap["best"], gap["worst"]} <= figures.keys():
            continue
        ends = [groups == gap["best"], groups == gap["worst"]]
        best, last = _apart(logits, scores, ends, prevalence=float(targets.mean()))
        book.interval(f"groups.{side}_gap", gap["difference"]["interval"], best - last, resamples)
    return {"group_gap": gaps["worst_case"]} if "worst_case" in gaps else {}


def _apart(
    logits: Floats, scores: Scores, ends: Sequence[Bools], *, prevalence: float
) -> list[Floats]:
    """Resampled APs of two groups: together where a cluster is in both, otherwise each by itself,
    as no example is in both."""
    names, targets = scores.clusters, scores.targets
    if names is not None and set(names[ends[0]]) & set(names[ends[1]]):
        both = ends[0] | ends[1]
        return intervals_of(
            [logits[both]] * 2,
            targets[both],
            names[both],
            prevalence=prevalence,
            seed=1,
            parts=[end[both] for end in ends],
        )
    return [
        intervals_of(
            [logits[end]],
            targets[end],
            None if names is None else names[end],
            prevalence=prevalence,
            seed=seed,
        )[0]
        for seed, end in enumerate(ends, start=1)
    ]
