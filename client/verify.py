"""Whether the figures of a report come from its scores: all of them computed a second time.

Nothing here is shared with the service. Average precision is scikit-learn's, on ranks in which the
negatives of a tie come first; intervals come from a plain bootstrap of our own and must agree as
closely as two sets of resamples can be expected to. What needs the model is taken as reported: what
the trust checks found, and the intervals of groups.
"""

import hashlib
import json
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from client.client import AdapError, Json
from client.show import LEVELS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TOLERANCE = 1e-9  # the same sums in another order
RESAMPLES = 1000
DRAWS_AT_ONCE = 2**18  # bounds the memory
STANDARD_ERRORS = 4.5  # of two sets of resamples: one interval in 100,000 is off by more
REPORT_VERSION = 2
OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
THRESHOLD = re.compile(r"\s*(.*[^<>=\s])\s*(>=|<=|>|<)\s*([^<>=]+?)\s*")


class NotAReportError(AdapError):
    """The files are not a report and its scores."""


class MismatchError(AdapError):
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
        self._add(figure, reported, recomputed, reported == recomputed)

    def number(self, figure: str, reported: Any, recomputed: float | None) -> None:
        """Figures, which are equal but for rounding; None where there is none."""
        if reported is None or recomputed is None:
            self._add(figure, reported, recomputed, reported is recomputed)
        else:
            close = bool(abs(float(reported) - recomputed) <= TOLERANCE)
            self._add(figure, reported, float(recomputed), close)

    def interval(self, figure: str, reported: Json | None, own: Floats, resamples: int) -> None:
        """An interval, against resampled figures of our own."""
        if reported is None:
            return
        tail = (1 - min(max(reported["level"], 0.0), 1.0)) / 2
        slack = STANDARD_ERRORS * np.sqrt(tail * (1 - tail) * (1 / len(own) + 1 / resamples))
        low, high = np.quantile(own, [tail, 1 - tail])
        # Mirrored, the upper end is a lower one.
        ok = (
            0 < reported["level"] < 1
            and _is_quantile(reported["low"], own, tail, slack)
            and _is_quantile(-reported["high"], -own, tail, slack)
        )
        span = f"{reported['low']:.4f} to {reported['high']:.4f}"
        self._add(f"{figure}.interval", span, f"about {low:.4f} to {high:.4f}", ok)

    def _add(self, figure: str, reported: Any, recomputed: Any, ok: bool) -> None:
        self.lines.append(Line(self.prefix + figure, reported, recomputed, ok))


def _is_quantile(end: float, own: Floats, tail: float, slack: float) -> bool:
    """Whether a share of about `tail` of the resampled figures is below `end`."""
    below = (own < end - TOLERANCE).mean()
    upto = (own <= end + TOLERANCE).mean()
    return bool(own.min() - TOLERANCE <= end and below <= tail + slack and upto >= tail - slack)


def _task(book: _Book, task: Json, scores: "_Scores", config: Json) -> dict[str, float]:
    """All figures of a task; those that thresholds are set on, by their names there."""
    targets = scores.targets
    examples, positives = len(targets), int(targets.sum())
    book.same("examples", task["examples"], examples)
    book.same("positives", task["positives"], positives)
    for name in ("prevalence", "chance"):
        book.number(name, task[name], positives / examples)
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
    ranked += [
        (f"attacks.{key}", value, scores.attacked[key])
        for key, value in task["attacks"].items()
        if key in scores.attacked
    ]
    ranked += [("worst_case", task["worst_case"], worst)]
    ranked += _certified(book, task, scores)
    ranked += _curve(book, task, scores)
    resamples = task["resamples"] or RESAMPLES
    own = _resampled([logits for _, _, logits in ranked], targets)
    ap = {path: _ap(logits, targets) for path, _, logits in ranked}
    for (path, value, logits), resampled in zip(ranked, own, strict=True):
        book.number(f"{path}.ap", value["ap"], ap[path])
        book.interval(path, value["interval"], resampled, resamples)
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
        "chance": positives / examples,
        **{f"{key}_ap": _ap(logits, targets) for key, logits in scores.attacked.items()},
    }
    for side in ("clean", "worst_case"):
        if task[side]["interval"] is not None:
            found[f"{side}_ap_low"] = task[side]["interval"]["low"]
    if "certified_floor" in ap:
        found["certified_floor"] = ap["certified_floor"]
    _budget(book, task, config, scores, worst)
    found |= _operating(book, task, config, {"clean": scores.clean, "worst_case": worst}, targets)
    return found | _groups(book, task, scores, worst)


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


def _budget(book: _Book, task: Json, config: Json, scores: "_Scores", worst: Floats) -> None:
    """Exact for one image and for all that can change. Between them choices among equals differ:
    what is left must not be above that of plain greedy choice, nor below all changed."""
    points, targets = task["budget_curve"], scores.targets
    book.same("budget_curve", [point["images"] for point in points], config["budgets"])
    for role, may in (
        ("hide_positives", targets == 1),
        ("push_negatives", targets == 0),
        ("both", np.ones(len(targets), bool)),
    ):
        reached = np.where(may, worst, scores.clean)
        everything, changeable = _ap(reached, targets), int((reached != scores.clean).sum())
        open_points = [point["images"] for point in points if point["images"] < changeable]
        left = greedy(scores.clean, reached, targets, steps=max(open_points, default=1))
        for point in points:
            images, reported = point["images"], point[role]
            most = left[min(images, len(left) - 1)]
            if images >= changeable:
                expected = everything
            elif images == 1:
                expected = most
            else:
                expected = float(np.clip(reported, everything, max(most, everything)))
            book.number(f"budget_curve.{images}.{role}", reported, expected)


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
    for group in task["groups"]["groups"]:
        name = group["group"]
        inside = groups == name
        path, own = f"groups.{name}", targets[inside]
        book.same(f"{path}.examples", group["examples"], len(own))
        book.same(f"{path}.positives", group["positives"], int(own.sum()))
        ranked = min(own.sum(), len(own) - own.sum()) >= 2
        for side, logits in (("clean", scores.clean[inside]), ("worst_case", worst[inside])):
            ap = _ap(logits, own) if ranked else None
            at = _ap(logits, own, prevalence=float(targets.mean())) if ranked else None
            figure = group[side]
            book.number(f"{path}.{side}.ap", None if figure is None else figure["ap"], ap)
            book.number(f"{path}.{side}_at_prevalence", group[f"{side}_at_prevalence"], at)
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
    return {"group_gap": gaps["worst_case"]} if "worst_case" in gaps else {}


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
        parsed = THRESHOLD.fullmatch(text)
        if parsed is None:
            book.same(f"threshold {text}", "present", "cannot be read")
            continue
        figure, sign, bound = parsed.groups()
        limit = LEVELS.index(bound) if figure == "trust" else float(bound)
        book.number(f"threshold {text}: got", result["got"], found.get(figure, 0.0))
        # Compared as reported: `got` was found equal above, and rounding may decide at the limit.
        passed = figure in found and OPERATORS[sign](result["got"], limit)
        book.same(f"threshold {text}: passed", result["passed"], passed)


# --- the scores and what comes from them ----------------------------------------------------------


@dataclass(frozen=True)
class _Scores:
    """The arrays of one task, each with an entry an example."""

    targets: Ints
    clean: Floats
    attacked: dict[str, Floats]
    curve: dict[float, Floats]
    bounds: Floats | None  # (2, N)
    groups: NDArray[np.str_] | None


def _read(content: bytes) -> Iterator[_Scores]:
    """The tasks of a scores file. Raises ValueError, KeyError or SafetensorError for another."""
    arrays = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    for i, task in enumerate(json.loads(header["__metadata__"]["tasks"])):
        groups = arrays.get(f"{i}.groups")
        scores = _Scores(
            targets=arrays[f"{i}.targets"],
            clean=arrays[f"{i}.clean"],
            attacked={key: arrays[f"{i}.attacked.{key}"] for key in task["attacks"]},
            curve={eps: arrays[f"{i}.curve.{j}"] for j, eps in enumerate(task["epsilons"])},
            bounds=arrays.get(f"{i}.bounds"),
            groups=None if groups is None else np.array(json.loads(groups.tobytes()), np.str_),
        )
        logits = [scores.clean, *scores.attacked.values(), *scores.curve.values()]
        logits += [] if scores.bounds is None else list(scores.bounds)
        lengths = {len(values) for values in (scores.targets, *logits)}
        if len(lengths) > 1 or np.isnan(np.stack(logits)).any():
            raise ValueError("expected a number for each example")
        if set(np.unique(scores.targets)) != {0, 1}:
            raise ValueError("expected positives and negatives")
        yield scores


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


def _resampled(rankings: Sequence[Floats], targets: Ints) -> list[Floats]:
    """(RESAMPLES,) APs of each ranking; all of them see the same resamples."""
    random = np.random.default_rng(0)
    sides = [np.flatnonzero(targets == target) for target in (0, 1)]
    orders = [np.lexsort((targets, -logits)) for logits in rankings]
    places = np.arange(1, len(targets) + 1)
    made: list[list[Floats]] = [[] for _ in rankings]
    rows = max(1, DRAWS_AT_ONCE // len(targets))
    for done in range(0, RESAMPLES, rows):
        count = min(rows, RESAMPLES - done)
        firsts = np.arange(count)[:, None] * len(targets)
        drawn = [side[random.integers(0, len(side), (count, len(side)))] + firsts for side in sides]
        times = np.bincount(np.concatenate(drawn, axis=1).ravel(), minlength=count * len(targets))
        times = times.reshape(count, len(targets))
        for ranking, order in zip(made, orders, strict=True):
            ranked = np.repeat(np.tile(targets[order], count), times[:, order].ravel())
            hits = ranked.reshape(count, len(targets))  # a resample a row, best first
            ranking.append((hits * hits.cumsum(axis=1) / places).sum(axis=1) / targets.sum())
    return [np.concatenate(chunks) for chunks in made]


def greedy(clean: Floats, worst: Floats, targets: Ints, *, steps: int) -> list[float]:
    """AP with 0, 1, 2, … images at their worst, each time the one that costs most AP.

    worst: the logits within the attacker's reach, equal to the clean ones where there is none.
    The list ends early where no further image costs anything.
    """
    logits, left = clean.copy(), [_ap(clean, targets)]
    places = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    for _ in range(steps):
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
        own = precision - after / (after + now_above)
        cost[best_first] = np.where(
            worst[best_first] < positives, moved[after] - moved[k] + own, 0.0
        )
        chosen = int(cost.argmax())
        if cost[chosen] <= TOLERANCE:
            break
        logits[chosen] = worst[chosen]
        left.append(_ap(logits, targets))
    assert all(before >= later for before, later in pairwise(left))
    return left
