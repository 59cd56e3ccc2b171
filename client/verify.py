"""Whether the figures of a report come from its scores: all of them computed a second time.

Nothing here is shared with the service. Average precision is scikit-learn's, on ranks in which the
negatives of a tie come first; intervals come from a plain bootstrap of our own and must agree as
closely as two sets of resamples can be expected to.

The trust checks attack a sample anew, and what they found cannot be had without the model. What
can: that a verdict follows from its checks, a check's status from its figures by the limits that it
carries, and these figures from each other; what the sample's clean scores say; and whether the
audit's own attacks contradict a check that passed. A line says of each check that is left what it
takes.
"""

import hashlib
import json
import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from adap.client.client import ClientError, Json
from adap.client.show import LEVELS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Names = NDArray[np.str_]

TOLERANCE = 1e-9  # the same sums in another order
# What an unseen negative ranked first counts: times what AP lacks to 1, and at least times the root
# of the number of positives, up to 1; of clusters of these, and times the root of the negatives of
# one.
UNSEEN_NEGATIVE, LEAST_UNSEEN_NEGATIVE = 3.5, 0.09
EQUAL_COST = 1e-12  # of AP, as where it is chosen which image to change
RESAMPLES = 1000
LEAST_RESAMPLES, MOST_RESAMPLES = 100, 1_000_000  # of intervals that can be judged
DRAWS_AT_ONCE = 2**18  # bounds the memory
STANDARD_ERRORS = 4.5  # of two sets of resamples: one interval in 100,000 is off by more
REPORT_VERSION = 2
OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
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
TWENTIETHS = 20  # of the positives that were moved: where the curve of smallest changes has points
SIGN = re.compile(r"(>=|<=|>|<)[^<>=]*\Z")  # the last one; no character is looked at twice


class NotAReportError(ClientError):
    """The files are not a report and its scores."""


class MismatchError(ClientError):
    """A report says what its scores do not."""


@dataclass(frozen=True)
class Line:
    """One figure: as the report has it, as it comes out here, and whether that is the same."""

    figure: str
    reported: Any
    recomputed: Any
    ok: bool


def verify(report: Json, content: bytes) -> list[Line]:
    """Every figure of a report against the bytes of its scores file.

    A file that cannot be read is a line that is not ok. Raises NotAReportError for a report that
    is none.
    """
    version = report.get("version")
    if version != REPORT_VERSION:
        raise NotAReportError(f"Expected a report of version {REPORT_VERSION}, got {version!r}.")
    book = _Book()
    try:
        provenance = report["provenance"]
        config = provenance["config"]
        book.same("scores_sha256", provenance["scores_sha256"], hashlib.sha256(content).hexdigest())
        text = json.dumps(config, sort_keys=True, separators=(",", ":"))
        config_sha256 = hashlib.sha256(text.encode()).hexdigest()
        book.same("config_sha256", provenance["config_sha256"], config_sha256)
        book.same("seed", provenance["seed"], config["seed"])
        try:
            tasks = list(_read(content))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            book.lines.append(Line("scores file", "readable", f"{error}", False))
            return book.lines
        book.same("tasks", len(report["tasks"]), len(tasks))
        names = ["+".join(task["positive"]) for task in report["tasks"]]
        found = {}
        for name, task, scores in zip(names, report["tasks"], tasks, strict=False):
            book.prefix = f"{name}: " if len(names) > 1 else ""
            found[name] = _task(book, task, scores, config)
        book.prefix = ""
        _mean(book, report, list(found.values()))
        if report["trust"] is not None:
            _trust(book, report, dict(zip(names, tasks, strict=False)))
        _thresholds(book, report, found)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise NotAReportError(
            f"Expected the JSON of a report and the scores behind it, got {error!r} on the way."
        ) from error
    return book.lines


# --- what is compared -----------------------------------------------------------------------------


@dataclass
class _Book:
    """The lines so far."""

    lines: list[Line] = field(default_factory=list)
    prefix: str = ""

    def same(self, figure: str, reported: Any, recomputed: Any) -> None:
        """Words and counts, which are equal or not."""
        self.add(figure, reported, recomputed, reported == recomputed)

    def number(
        self, figure: str, reported: Any, recomputed: float | None, *, within: float = TOLERANCE
    ) -> None:
        """Figures, which are equal but for rounding; None where there is none."""
        if reported is None or recomputed is None:
            self.add(figure, reported, recomputed, reported is recomputed)
        else:
            close = bool(abs(float(reported) - recomputed) <= within)
            self.add(figure, reported, float(recomputed), close)

    def resamples(self, reported: Any) -> int:
        """How many an interval rests on; too few would make every interval pass."""
        if reported is None:
            return RESAMPLES
        if type(reported) is int and LEAST_RESAMPLES <= reported <= MOST_RESAMPLES:
            return reported
        self.add("resamples", reported, f"{LEAST_RESAMPLES} to {MOST_RESAMPLES}", False)
        return RESAMPLES

    def interval(self, figure: str, reported: Json | None, own: Floats, resamples: int) -> None:
        """An interval, against resampled figures of our own."""
        if reported is None:
            return
        self._ends(figure, reported, own, own, resamples)

    def _ends(
        self, figure: str, reported: Json, lows: Floats, highs: Floats, resamples: int
    ) -> None:
        """The lower end against the first figures, the upper one against the second."""
        tail = (1 - min(max(reported["level"], 0.0), 1.0)) / 2
        slack = STANDARD_ERRORS * np.sqrt(tail * (1 - tail) * (1 / len(lows) + 1 / resamples))
        low, high = np.quantile(lows, tail), np.quantile(highs, 1 - tail)
        # Mirrored, the upper end is a lower one.
        ok = (
            0 < reported["level"] < 1
            and _is_quantile(reported["low"], lows, tail, slack)
            and _is_quantile(-reported["high"], -highs, tail, slack)
        )
        span = f"{reported['low']:.4f} to {reported['high']:.4f}"
        self.add(f"{figure}.interval", span, f"about {low:.4f} to {high:.4f}", ok)

    def ap_interval(
        self,
        figure: str,
        reported: Json | None,
        own: Floats,
        resamples: int,
        *,
        logits: Floats,
        targets: Ints,
        clusters: Names | None,
    ) -> None:
        """The interval of an AP, against resampled APs of our own with unseen examples added."""
        if reported is None:
            return
        low, high = _with_unseen(own, logits, targets, clusters)
        self._ends(figure, reported, low, high, resamples)

    def taken(self, figure: str, reported: Any, why: str) -> None:
        """What cannot be computed here, and why."""
        self.add(figure, reported, f"({why})", True)

    def add(self, figure: str, reported: Any, recomputed: Any, ok: bool) -> None:
        named = _visible(self.prefix + figure)  # a report may hold any text
        self.lines.append(Line(named, _visible(reported), _visible(recomputed), ok))


def _visible(value: Any) -> Any:
    """Text without what a terminal would obey: such characters are written out."""
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in value)


def _is_quantile(end: float, own: Floats, tail: float, slack: float) -> bool:
    """Whether a share of about `tail` of the resampled figures is below `end`."""
    below = (own < end - TOLERANCE).mean()
    upto = (own <= end + TOLERANCE).mean()
    return bool(own.min() - TOLERANCE <= end and below <= tail + slack and upto >= tail - slack)


def _chance(positives: int, examples: int) -> float:
    """The expected AP of a random order, summed over the ranks that a positive can have."""
    others = (positives - 1) / max(1, examples - 1)
    return math.fsum((1 + above * others) / (1 + above) for above in range(examples)) / examples


def _task(book: _Book, task: Json, scores: "_Scores", config: Json) -> dict[str, float]:
    """All figures of a task; those that thresholds are set on, by their names there."""
    targets = scores.targets
    examples, positives = len(targets), int(targets.sum())
    book.same("examples", task["examples"], examples)
    book.same("positives", task["positives"], positives)
    book.number("prevalence", task["prevalence"], positives / examples)
    book.number("chance", task["chance"], _chance(positives, examples))
    book.number("floor", task["floor"], _ap(-targets.astype(np.float64), targets))

    book.same("attacks", sorted(task["attacks"]), sorted(scores.attacked))
    if config.get("attacks") is not None:
        asked = {attack.get("label") or attack["name"]: attack for attack in config["attacks"]}
        for key, value in task["attacks"].items():
            book.same(f"attacks.{key}.attack", value["attack"], asked.get(key))
    worst, won = _worst(scores)
    book.same("worst_case.won", task["worst_case"]["won"], won)

    # path in the report, its value there, the scores it comes from
    ranked: list[tuple[str, Json, Floats]] = [("clean", task["clean"], scores.clean)]
    turned = task.get("upside_down")
    worse = _ap(scores.clean, targets) < task["chance"]
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
    _smallest(book, task, config, scores)
    corruptions = _corruptions(book, task, config, scores)
    ranked += corruptions.ranked
    resamples = book.resamples(task["resamples"])
    clusters = scores.clusters
    book.same("clusters", task.get("clusters"), _clusters(scores))
    own = _resampled([logits for _, _, logits in ranked], targets, clusters)
    ap = {path: _ap(logits, targets) for path, _, logits in ranked}
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
        "chance": _chance(positives, examples),
        **{f"{key}_ap": _ap(logits, targets) for key, logits in scores.attacked.items()},
    }
    for side in ("clean", "worst_case"):
        if task[side]["interval"] is not None:
            found[f"{side}_ap_low"] = task[side]["interval"]["low"]
    if "certified_floor" in ap:
        found["certified_floor"] = ap["certified_floor"]
    found |= corruptions.figures
    _budget(book, task, config, scores, worst)
    found |= _operating(book, task, config, {"clean": scores.clean, "worst_case": worst}, targets)
    return found | _groups(book, task, scores, worst)


def _clusters(scores: "_Scores") -> Json | None:
    of = _numbers(scores.clusters, scores.targets)
    if len(set(of)) == len(of):
        return None
    return {"clusters": len(set(of)), "with_positives": len(set(of[scores.targets == 1]))}


def _certified(book: _Book, task: Json, scores: "_Scores") -> Iterator[tuple[str, Json, Floats]]:
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


def _curve(book: _Book, task: Json, scores: "_Scores") -> Iterator[tuple[str, Json, Floats]]:
    points = [] if task["epsilon_curve"] is None else task["epsilon_curve"]["points"]
    book.same("epsilon_curve", [point["epsilon"] for point in points], list(scores.curve))
    for i, point in enumerate(points):
        if point["epsilon"] in scores.curve:
            yield f"epsilon_curve.{i}", point, scores.curve[point["epsilon"]]


def _smallest(book: _Book, task: Json, config: Json, scores: "_Scores") -> None:
    """Smallest changes: the first k follow from the clean logits, the figures from the sizes."""
    reported, asked = task.get("smallest_changes"), config.get("smallest_changes")
    kept = scores.smallest
    book.same("smallest_changes", reported is not None, asked is not None)
    book.same("smallest_changes.sizes", reported is not None, kept is not None)
    if reported is None or asked is None or kept is None:
        return
    k = int(scores.targets.sum()) if asked["k"] is None else asked["k"]
    book.same("smallest_changes.norm", reported["norm"], config["threat"]["norm"])
    book.same("smallest_changes.k", reported["k"], k)
    ranks = len(scores.targets) + 1 - _ranks(scores.clean, scores.targets)
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
    for name, value in (
        ("least", moved.min() if len(moved) else np.inf),
        ("median", np.median(kept) if len(kept) else np.inf),
    ):
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
        return
    share = float((kept > config["threat"]["epsilon"]).mean())
    book.number("smallest_changes.kept_at_epsilon", reported["kept_at_epsilon"], share)
    ends = {-(-i * len(moved) // TWENTIETHS) - 1 for i in range(1, TWENTIETHS + 1)}
    at = np.unique(np.sort(moved)[sorted(ends)]) if len(moved) else moved
    book.same("smallest_changes.curve", len(reported["curve"]), len(at))
    for i, (point, epsilon) in enumerate(zip(reported["curve"], at, strict=False)):
        book.number(f"smallest_changes.curve.{i}.epsilon", point["epsilon"], float(epsilon))
        book.number(f"smallest_changes.curve.{i}", point["kept"], float((kept > epsilon).mean()))


@dataclass(frozen=True)
class _Corruptions:
    ranked: list[tuple[str, Json, Floats]]
    figures: dict[str, float]


def _corruptions(book: _Book, task: Json, config: Json, scores: "_Scores") -> _Corruptions:
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
    ap = {key: _ap(logits, scores.targets) for key, logits in scores.corrupted.items()}
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
    worst, won = _worst(replace(scores, attacked=by_key))
    by_kind = {"clean": won.pop("clean")} | dict.fromkeys(kinds, 0)
    for name, count in won.items():
        by_kind[name.split()[0]] += count
    book.same("corruptions.worst_case.won", reported["worst_case"]["won"], by_kind)
    figures = {
        "corruption_mean_ap": mean,
        "corruption_lowest_ap": ap[lowest],
        "corruption_worst_case_ap": _ap(worst, scores.targets),
    }
    return _Corruptions([("corruptions.worst_case", reported["worst_case"], worst)], figures)


def _budget(book: _Book, task: Json, config: Json, scores: "_Scores", worst: Floats) -> None:
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
    book: _Book, task: Json, config: Json, sides: Mapping[str, Floats], targets: Ints
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
        ranks = _ranks(logits, targets)
        precision, recall, _ = precision_recall_curve(targets, ranks)
        fpr, tpr, _ = roc_curve(targets, ranks, drop_intermediate=False)
        figures = {
            "precision_at_k": float(targets[ranks > len(targets) - k].mean()),
            "recall_at_precision": float(recall[precision >= reported["precision"]].max()),
            "tpr_at_fpr": float(tpr[fpr <= reported["fpr"]].max()),
            "ap_at_prevalence": _ap(logits, targets, prevalence=reported["prevalence"]),
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


def _groups(book: _Book, task: Json, scores: "_Scores", worst: Floats) -> dict[str, float]:
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
        again = _resampled(list(sides.values()), own, within) if ranked else [own, own]
        for (side, logits), resampled in zip(sides.items(), again, strict=True):
            ap = _ap(logits, own) if ranked else None
            at = _ap(logits, own, prevalence=float(targets.mean())) if ranked else None
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
    logits: Floats, scores: "_Scores", ends: Sequence[Bools], *, prevalence: float
) -> list[Floats]:
    """Resampled APs of two groups: together where a cluster is in both, otherwise each by itself,
    as no example is in both."""
    names, targets = scores.clusters, scores.targets
    if names is not None and set(names[ends[0]]) & set(names[ends[1]]):
        both = ends[0] | ends[1]
        return _resampled(
            [logits[both]] * 2,
            targets[both],
            names[both],
            prevalence=prevalence,
            seed=1,
            parts=[end[both] for end in ends],
        )
    return [
        _resampled(
            [logits[end]],
            targets[end],
            None if names is None else names[end],
            prevalence=prevalence,
            seed=seed,
        )[0]
        for seed, end in enumerate(ends, start=1)
    ]


def _mean(book: _Book, report: Json, tasks: Sequence[dict[str, float]]) -> None:
    for name, value in report["mean"].items():
        figure = name if name == "certified_floor" else f"{name}_ap"
        of_tasks = [task[figure] for task in tasks]
        book.number(f"mean.{name}", value, sum(of_tasks) / len(of_tasks))


def _thresholds(book: _Book, report: Json, tasks: Mapping[str, dict[str, float]]) -> None:
    first, *others = tasks.values()
    found = {
        name: sum(task[name] for task in tasks.values()) / len(tasks)
        for name in first
        if all(name in other for other in others)
    }
    found |= {f"{task}.{name}": own[name] for task, own in tasks.items() for name in own}
    if report["trust"] is not None:
        found["trust"] = LEVELS.index(report["trust"]["verdict"])
    asked = report["provenance"]["config"].get("thresholds", [])
    results = report["thresholds"]
    book.same("thresholds", [result["threshold"] for result in results], asked)
    for result in results:
        text = result["threshold"]
        parsed = SIGN.search(text)
        figure = text[: parsed.start()].strip() if parsed else ""
        limit = _bound(text[parsed.end(1) :].strip(), figure) if parsed else None
        if parsed is None or limit is None or not figure or figure[-1] in "<>=":
            book.same(f"threshold {text}", "present", "cannot be read")
            continue
        sign = parsed[1]
        book.number(f"threshold {text}: got", result["got"], found.get(figure, 0.0))
        # Compared as reported: `got` was found equal above, and rounding may decide at the limit.
        passed = figure in found and OPERATORS[sign](result["got"], limit)
        book.same(f"threshold {text}: passed", result["passed"], passed)


def _bound(text: str, figure: str) -> float | None:
    """The number that a figure is compared with, or the place of the level for trust."""
    try:
        return LEVELS.index(text) if figure == "trust" else float(text)
    except ValueError:
        return None


# --- trust ----------------------------------------------------------------------------------------


def _trust(book: _Book, report: Json, tasks: Mapping[str, "_Scores"]) -> None:
    """The verdict by the checks, each check by its figures, and what the scores say of it."""
    checks = report["trust"]["checks"]
    worst = max((check["status"] for check in checks), key=SEVERITY.index, default="skipped")
    verdict = {"fail": "not trustworthy", "caution": "caution"}.get(worst, "trustworthy")
    book.same("trust.verdict", report["trust"]["verdict"], verdict)
    statuses = {check["name"]: check["status"] for check in checks}
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
        for figure, recomputed in _derived(name, figures, int(sample.sum())).items():
            if figure in figures:
                book.number(f"{path}.{figure}", figures[figure], recomputed)
        if name == "reaches_floor" and "floor" in figures:
            floor = _ap(-sample.astype(np.float64), sample)
            book.number(f"{path}.floor", figures["floor"], floor)
        if name in OF_CHANCE:
            own = report["tasks"][list(tasks).index(max(named, key=len)) if named else 0]
            book.number(f"{path}.low", figures["low"], own["clean"]["interval"]["low"])
            book.number(f"{path}.chance", figures["chance"], own["chance"])
        if name == "monotone" and "ap_clean" in figures and steady:
            clean = _ap(scores.clean[rows], sample)
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


def _derived(name: str, figures: Json, positives: int) -> dict[str, float]:
    """The figures of a check that follow from its others."""
    if "not_finite" in figures:
        return {}
    if name == "converged":
        drop, further = figures["margin_drop"], figures["margin_drop_doubled"]
        return {
            "ap_lower": figures["ap"] - figures["ap_doubled"],
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
    if name == "eight_bit":
        drop, kept = figures["margin_drop"], figures["margin_drop_8_bit"]
        return {
            "share_lost": 1 - kept / drop if drop > 0 else 0.0,
            "ap_back": figures["ap_8_bit"] - figures["ap"],
        }
    return {}


def _contrary(name: str, report: Json, task: Json, scores: "_Scores") -> bool | None:
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
        lowest = {key: _ap(logits[key], targets) for key in (*white, *black)}
        by = min(black, key=lowest.__getitem__)
        stronger = min(lowest[key] for key in white) - lowest[by] > limit
        # more queries than the check has may find what it could not: the report must say so
        warned = any(by in text and "more damage" in text for text in report["warnings"])
        return stronger and not warned
    if name == "monotone" and scores.curve:
        aps = [_ap(found, targets) for found in (scores.clean, *scores.curve.values())]
        return _rise(aps) > limit
    return None


def _checked_rows(scores: "_Scores", config: Json) -> Ints:
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


# --- the scores and what comes from them ----------------------------------------------------------


@dataclass(frozen=True)
class _Scores:
    """The arrays of one task, each with an entry an example."""

    targets: Ints
    clean: Floats
    attacked: dict[str, Floats]
    curve: dict[float, Floats]
    corrupted: dict[tuple[str, int], Floats]
    corruption_table: str | None
    bounds: Floats | None  # (2, N)
    smallest: Floats | None  # (n,), infinite where no change was found
    groups: Names | None
    clusters: Names | None


def _read(content: bytes) -> Iterator[_Scores]:
    """The tasks of a scores file. Raises ValueError, KeyError or SafetensorError for another."""
    arrays = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    for i, task in enumerate(json.loads(header["__metadata__"]["tasks"])):
        groups, clusters = (_names(arrays.get(f"{i}.{of}")) for of in ("groups", "clusters"))
        scores = _Scores(
            targets=arrays[f"{i}.targets"],
            clean=arrays[f"{i}.clean"],
            attacked={key: arrays[f"{i}.attacked.{key}"] for key in task["attacks"]},
            curve={eps: arrays[f"{i}.curve.{j}"] for j, eps in enumerate(task["epsilons"])},
            corrupted={
                (kind, severity): arrays[f"{i}.corrupted.{kind}.{severity}"]
                for kind, severity in task["corruptions"]
            },
            corruption_table=task["corruption_table"],
            bounds=arrays.get(f"{i}.bounds"),
            smallest=arrays.get(f"{i}.smallest"),
            groups=groups,
            clusters=clusters,
        )
        logits = [scores.clean, *scores.attacked.values(), *scores.curve.values()]
        logits += scores.corrupted.values()
        logits += [] if scores.bounds is None else list(scores.bounds)
        named = [names for names in (groups, clusters) if names is not None]
        lengths = {len(values) for values in (scores.targets, *logits, *named)}
        if len(lengths) > 1 or np.isnan(np.stack(logits)).any():
            raise ValueError("expected a number for each example")
        if set(np.unique(scores.targets)) != {0, 1}:
            raise ValueError("expected positives and negatives")
        yield scores


def _names(packed: NDArray[np.uint8] | None) -> Names | None:
    return None if packed is None else np.array(json.loads(packed.tobytes()), np.str_)


def _ranks(logits: Floats, targets: Ints) -> Ints:
    """(N,) distinct ranks, N for the best; in a tie the negatives are better."""
    ranks = np.empty(len(logits), np.int64)
    ranks[np.lexsort((targets, -logits))] = np.arange(len(logits), 0, -1)
    return ranks


def _ap(logits: Floats, targets: Ints, *, prevalence: float | None = None) -> float:
    """Average precision, with the negatives weighted to a prevalence if one is given."""
    weights = np.ones(len(targets))
    if prevalence is not None:
        positives = targets.sum()
        weights[targets == 0] = (1 / prevalence - 1) * positives / (len(targets) - positives)
    ranks = _ranks(logits, targets)
    return float(average_precision_score(targets, ranks, sample_weight=weights))


def _worst(scores: _Scores) -> tuple[Floats, dict[str, int]]:
    """Image by image the lowest margin, and who reached it first: clean, then attacks in order."""
    signs = 2 * scores.targets - 1
    lowest, by = scores.clean * signs, np.full(len(signs), "clean", dtype=object)
    for key, logits in scores.attacked.items():
        lower = logits * signs < lowest
        lowest, by[lower] = np.where(lower, logits * signs, lowest), key
    names = ["clean", *scores.attacked]
    return lowest * signs, {name: int((by == name).sum()) for name in names}


def _drawn(of: Ints, targets: Ints, parts: Sequence[Bools], seed: int) -> Iterator[Ints]:
    """(rows, N) how often each resample holds each example, RESAMPLES rows in all.

    of: (N,) clusters by number. Those that hold positives are drawn from themselves, and so are the
    others; a resample in which a part lacks a side is drawn again.
    """
    random = np.random.default_rng(seed)
    size = int(of.max()) + 1
    first = np.unique(of[targets == 1])
    strata = [first, np.setdiff1d(of, first)]
    sides = [part & (targets == target) for part in parts for target in (0, 1)]

    def draw(rows: int) -> Ints:
        start = np.arange(rows)[:, None] * size
        drawn = [
            stratum[random.integers(0, len(stratum), (rows, len(stratum)))] + start
            for stratum in strata
            if len(stratum)
        ]
        counts = np.bincount(np.concatenate(drawn, axis=1).ravel(), minlength=rows * size)
        return counts.reshape(rows, size)[:, of]

    rows = max(1, DRAWS_AT_ONCE // len(targets))
    for done in range(0, RESAMPLES, rows):
        times = draw(min(rows, RESAMPLES - done))
        while (bad := ~np.all([times[:, side].any(axis=1) for side in sides], axis=0)).any():
            times[bad] = draw(int(bad.sum()))
        yield times


def _resampled(
    rankings: Sequence[Floats],
    targets: Ints,
    clusters: Names | None,
    *,
    prevalence: float | None = None,
    seed: int = 0,
    parts: Sequence[Bools] | None = None,
) -> list[Floats]:
    """(RESAMPLES,) APs of each ranking, carried over to a prevalence or at its own; all of them
    see the same resamples.

    clusters: of what is drawn whole.  parts: of each ranking the examples that it ranks.
    """
    of = _numbers(clusters, targets)
    if parts is None:
        parts = [np.ones(len(targets), bool)] * len(rankings)
    orders = []
    for logits, part in zip(rankings, parts, strict=True):
        order = np.lexsort((targets, -logits))
        orders.append(order[part[order]])
    made: list[list[Floats]] = [[] for _ in rankings]
    for times in _drawn(of, targets, parts, seed):
        for aps, order in zip(made, orders, strict=True):
            own, copies = targets[order], times[:, order]
            share = float(own.mean()) if prevalence is None else prevalence
            positives, size = copies @ own, copies.sum(axis=1)
            weight = (1 / share - 1) * positives / (size - positives)  # of a negative
            # The resamples one after another, each best first.
            hits = np.repeat(np.tile(own, len(copies)), copies.ravel())
            starts = size.cumsum() - size
            found = hits.cumsum() - np.repeat(positives.cumsum() - positives, size)
            misses = np.arange(1, len(hits) + 1) - np.repeat(starts, size) - found
            precision = found / np.maximum(found + np.repeat(weight, size) * misses, TOLERANCE)
            aps.append(np.add.reduceat(hits * precision, starts) / positives)
    return [np.concatenate(aps) for aps in made]


def _numbers(clusters: Names | None, targets: Ints) -> Ints:
    if clusters is None:
        return np.arange(len(targets))
    return np.unique(clusters, return_inverse=True)[1].ravel()


def _with_unseen(
    resampled: Floats, logits: Floats, targets: Ints, clusters: Names | None
) -> tuple[Floats, Floats]:
    """The resampled APs with what one more example, or cluster, of each class would do that was not
    seen.

    For the lower end positives ranked last or negatives ranked first, which count in part; for the
    upper end positives ranked first.
    """
    random = np.random.default_rng(1)
    of, ap = _numbers(clusters, targets), _ap(logits, targets)
    units = len(np.unique(of[targets == 1]))
    share = np.minimum(random.poisson(1, len(resampled)) / units, 1)
    first = random.poisson(1, len(resampled))
    least = min(LEAST_UNSEEN_NEGATIVE * float(np.sqrt(units)), 1.0)
    size = (targets == 0).sum() / len(np.unique(of[targets == 0]))
    weight = max(UNSEEN_NEGATIVE * (1 - ap), least) * np.sqrt(size)
    best_first = targets[np.lexsort((targets, -logits))]
    found = best_first.cumsum()[best_first == 1]
    ranks = np.flatnonzero(best_first) + 1
    lost = np.array([ap - (found / (ranks + weight * i)).mean() for i in range(first.max() + 1)])
    low = np.minimum(resampled - lost[first], resampled * (1 - share) + targets.mean() * share)
    floor = _ap(-targets.astype(np.float64), targets)
    return np.maximum(low, floor), resampled * (1 - share) + share


def greedy(clean: Floats, worst: Floats, targets: Ints, *, steps: int) -> list[float]:
    """AP with 0, 1, 2, … images at their worst, each time the one that costs most AP.

    worst: the logits within the attacker's reach, equal to the clean ones where there is none.
    Of equal costs the image goes first that passes most of the other class once all are changed;
    then positives before negatives, each in the order of the examples.
    The list ends early where there is nothing left to change.
    """
    logits, left = clean.copy(), [_ap(clean, targets)]
    places = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    reach = np.zeros(len(targets), np.int64)
    for own, sign in ((1, 1), (0, -1)):
        for side, scores in ((1, worst), (-1, clean)):
            others, mine = np.sort(sign * scores[targets != own]), sign * scores[targets == own]
            reach[targets == own] += side * (len(others) - np.searchsorted(others, mine))
    order = np.concatenate(places)
    for _ in range(min(steps, int((worst != clean).sum()))):
        cost = np.zeros(len(targets))
        best_first = places[0][np.argsort(-logits[places[0]])]
        positives, negatives = logits[best_first], np.sort(logits[places[1]])
        k = np.arange(1, len(positives) + 1)
        above = len(negatives) - np.searchsorted(negatives, positives)
        precision = k / (k + above)

        def upto(losses: Floats) -> Floats:
            return np.concatenate([[0.0], np.cumsum(losses)])

        def better(than: Floats, positives: Floats = positives) -> Ints:
            """How many positives score strictly higher."""
            return np.searchsorted(-positives, -than)

        # A negative that rises costs every positive it passes, or ties with, one rank.
        passed = upto(precision - k / (k + above + 1))
        start, end = better(worst[places[1]]), better(logits[places[1]])
        cost[places[1]] = passed[end] - passed[start]
        # A positive that falls is one hit less for those it falls behind.
        moved = upto(precision - (k - 1) / np.maximum(k - 1 + above, 1))
        after = np.maximum(better(worst[best_first]), k)  # itself and those above its new place
        now_above = len(negatives) - np.searchsorted(negatives, worst[best_first])
        own_loss = precision - after / (after + now_above)
        cost[best_first] = moved[after] - moved[k] + own_loss
        open_ = order[logits[order] != worst[order]]
        equal = open_[cost[open_] >= cost[open_].max() - EQUAL_COST]
        chosen = equal[reach[equal].argmax()]
        logits[chosen] = worst[chosen]
        left.append(_ap(logits, targets))
    assert all(before >= later - TOLERANCE for before, later in pairwise(left))
    return left
