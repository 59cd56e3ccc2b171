"""The scores of a report, and what is computed from them a second time."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load
from sklearn.metrics import average_precision_score

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


def chance_of(positives: int, examples: int) -> float:
    """The expected AP of a random order, summed over the ranks that a positive can have."""
    others = (positives - 1) / max(1, examples - 1)
    return math.fsum((1 + above * others) / (1 + above) for above in range(examples)) / examples


@dataclass(frozen=True)
class Scores:
    """The arrays of one task, each with an entry an example."""

    targets: Ints
    clean: Floats
    attacked: dict[str, Floats]
    curve: dict[float, Floats]
    corrupted: dict[tuple[str, int], Floats]
    corruption_table: str | None
    bounds: Floats | None  # (2, N)
    smallest: Floats | None  # (n,), infinite where no change was found
    universal: Floats | None
    universal_delta: NDArray[np.float32] | None  # (C, H, W)
    universal_searched: int | None
    groups: Names | None
    clusters: Names | None


def read_scores(content: bytes) -> Iterator[Scores]:
    """The tasks of a scores file. Raises ValueError, KeyError or SafetensorError for another."""
    arrays = load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    for i, task in enumerate(json.loads(header["__metadata__"]["tasks"])):
        groups, clusters = (_names(arrays.get(f"{i}.{of}")) for of in ("groups", "clusters"))
        scores = Scores(
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
            universal=arrays.get(f"{i}.universal"),
            universal_delta=arrays.get(f"{i}.universal.delta"),
            universal_searched=task.get("universal"),
            groups=groups,
            clusters=clusters,
        )
        logits = [scores.clean, *scores.attacked.values(), *scores.curve.values()]
        logits += scores.corrupted.values()
        logits += [] if scores.bounds is None else list(scores.bounds)
        logits += [] if scores.universal is None else [scores.universal]
        named = [names for names in (groups, clusters) if names is not None]
        lengths = {len(values) for values in (scores.targets, *logits, *named)}
        if len(lengths) > 1 or np.isnan(np.stack(logits)).any():
            raise ValueError("expected a number for each example")
        if set(np.unique(scores.targets)) != {0, 1}:
            raise ValueError("expected positives and negatives")
        yield scores


def _names(packed: NDArray[np.uint8] | None) -> Names | None:
    return None if packed is None else np.array(json.loads(packed.tobytes()), np.str_)


def ranks_of(logits: Floats, targets: Ints) -> Ints:
    """(N,) distinct ranks, N for the best; in a tie the negatives are better."""
    ranks = np.empty(len(logits), np.int64)
    ranks[np.lexsort((targets, -logits))] = np.arange(len(logits), 0, -1)
    return ranks


def ap_of(logits: Floats, targets: Ints, *, prevalence: float | None = None) -> float:
    """Average precision, with the negatives weighted to a prevalence if one is given."""
    weights = np.ones(len(targets))
    if prevalence is not None:
        positives = targets.sum()
        weights[targets == 0] = (1 / prevalence - 1) * positives / (len(targets) - positives)
    ranks = ranks_of(logits, targets)
    return float(average_precision_score(targets, ranks, sample_weight=weights))


def worst_of(scores: Scores) -> tuple[Floats, dict[str, int]]:
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


def intervals_of(
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
    of = numbers_of(clusters, targets)
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


def numbers_of(clusters: Names | None, targets: Ints) -> Ints:
    if clusters is None:
        return np.arange(len(targets))
    return np.unique(clusters, return_inverse=True)[1].ravel()


def and_unseen(
    resampled: Floats, logits: Floats, targets: Ints, clusters: Names | None
) -> tuple[Floats, Floats]:
    """The resampled APs with what one more example, or cluster, of each class would do that was not
    seen.

    For the lower end positives ranked last or negatives ranked first, which count in part; for the
    upper end positives ranked first.
    """
    random = np.random.default_rng(1)
    of, ap = numbers_of(clusters, targets), ap_of(logits, targets)
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
    floor = ap_of(-targets.astype(np.float64), targets)
    return np.maximum(low, floor), resampled * (1 - share) + share


def greedy(clean: Floats, worst: Floats, targets: Ints, *, steps: int) -> list[float]:
    """AP with 0, 1, 2, … images at their worst, each time the one that costs most AP.

    worst: the logits within the attacker's reach, equal to the clean ones where there is none.
    Of equal costs the image goes first that passes most of the other class once all are changed;
    then positives before negatives, each in the order of the examples.
    The list ends early where there is nothing left to change.
    """
    logits, left = clean.copy(), [ap_of(clean, targets)]
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
        left.append(ap_of(logits, targets))
    assert all(before >= later - TOLERANCE for before, later in pairwise(left))
    return left
