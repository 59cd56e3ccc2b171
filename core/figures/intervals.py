"""Confidence intervals: a stratified bootstrap of average precision, paired over score sets.

A resample draws as many positives and as many negatives as there are, each class from itself and
with replacement, so that the prevalence stays what it is (Efron & Tibshirani 1993, chapter 8). It
is a data set like the first, and its AP is `adap.core.figures.ranking.average_precision` of it,
negatives first in ties and copies of one positive at consecutive ranks: never below the floor,
never above 1.

All score sets of the same examples (clean, each attack, worst case; model A, model B) see the same
resamples, so the difference of two is paired: what is hard about an example cancels.

Percentiles of these alone cover less than they promise when positives are few, and near an AP of 1
far less: the interval of one AP takes examples into account that were not seen (`Resampled`). What
it then covers is measured by benchmarks/intervals.py. This module imports no torch.
"""

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adap.core.errors import ConfigError
from adap.core.figures.operating import negative_weight
from adap.core.figures.ranking import checked
from adap.core.report import Interval

Key = TypeVar("Key", bound=Hashable)

RESAMPLES = 2000
LEVEL = 0.95
# What an unseen negative ranked first counts: times what the AP lacks to 1, as where negatives are
# seen to rank high others may rank higher; and at least, times the root of the number of positives
# up to 1, as among few the unseen positive weighs more. Chosen by benchmarks/intervals.py.
UNSEEN_NEGATIVE, LEAST_UNSEEN_NEGATIVE = 3.5, 0.09
UNSEEN_SEED = 0
# At most so many of an example that is drawn once on average: 0, 1, 2, ...
POISSON = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(12)])
DRAWS_AT_ONCE = 2**18  # bounds the memory, and fits a processor's cache


@dataclass(frozen=True)
class Resampled:
    """(resamples,) APs of one score set, and what each would be with examples that were not seen.

    A resample holds what was seen: near a perfect ranking all of them are perfect, and among few
    examples the worst was not seen yet. So each is given as many unseen examples as it would draw
    of one more of each class: in `low` positives ranked last or negatives ranked first, whichever
    costs more, in `high` positives ranked first. The more was seen, the less they weigh. A
    negative counts in part, see UNSEEN_NEGATIVE.

    Differences are of the APs themselves: what was not seen is the same for both.
    """

    ap: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def __sub__(self, other: "Resampled") -> NDArray[np.float64]:
        """(resamples,) paired differences."""
        return self.ap - other.ap


def resampled_ap(
    scores: Mapping[Key, ArrayLike],
    targets: ArrayLike,
    *,
    prevalence: float | None = None,
    resamples: int = RESAMPLES,
    generator: np.random.Generator,
) -> dict[Key, Resampled]:
    """The APs of each score set; entry i of all of them is of one and the same resample.

    scores: for each key (N,) scores of the same N examples.  targets: (N,) in {0, 1}.
    prevalence: share of positives to which each AP is carried over, as `ap_at_prevalence` does; by
    default it stays what it is.

    Raises ConfigError without resamples and for a prevalence outside (0, 1], DataError for what
    cannot be ranked.

    >>> generator = np.random.default_rng(0)
    >>> ap = resampled_ap({"a": [3, 2, 1, 0], "b": [3, 0, 1, 2]}, [1, 1, 0, 0], generator=generator)
    >>> percentile_interval(ap["a"] - ap["b"])
    Interval(low=0.0, high=0.5833333333333334, level=0.95)
    """
    if resamples < 1:
        raise ConfigError(f"expected at least 1 resample, got {resamples}")
    ranked = {name: _ranked(*checked(logits, targets)) for name, logits in scores.items()}
    targets = np.asarray(targets)
    weight = 1.0  # of a negative
    if prevalence is not None:
        count = int(targets.sum())
        weight = negative_weight(count, len(targets) - count, prevalence=prevalence)
    ap: dict[Key, list[NDArray[np.float64]]] = {name: [] for name in scores}
    for positives, negatives in stratified_counts(
        targets, resamples=resamples, generator=generator
    ):
        for name, (best_positives, best_negatives, above) in ranked.items():
            # `above` counts among the examples; in a resample each weighs as often as drawn.
            # take() keeps rows side by side, which [:, index] does not: several times faster.
            drawn = np.zeros((len(negatives), negatives.shape[1] + 1), np.int32)
            np.cumsum(negatives.take(best_negatives, axis=1), axis=1, out=drawn[:, 1:])
            drawn_above = drawn.take(above, axis=1)  # (R, P)
            copies = positives.take(best_positives, axis=1)
            false_alarms = np.repeat(drawn_above.ravel(), copies.ravel()).reshape(copies.shape)
            k = np.arange(1, positives.shape[1] + 1)
            ap[name].append((k / (k + weight * false_alarms)).mean(axis=1))
    return {
        name: _with_unseen(np.concatenate(ap[name]), above, targets, weight=weight)
        for name, (_, _, above) in ranked.items()
    }


def _with_unseen(
    resampled: NDArray[np.float64],
    above: NDArray[np.int64],
    targets: NDArray[np.int64],
    *,
    weight: float,
) -> Resampled:
    """above: (P,) negatives at or above each positive, best first.  weight: of a negative."""
    positives, negatives = len(above), weight * (len(targets) - len(above))
    k = np.arange(1, positives + 1)

    def ap(first: float) -> float:
        return float((k / (k + weight * (above + first))).mean())

    least = min(LEAST_UNSEEN_NEGATIVE * math.sqrt(positives), 1)
    counts = max(UNSEEN_NEGATIVE * (1 - ap(0)), least)
    random, places = np.random.default_rng(UNSEEN_SEED), np.arange(len(resampled)) + 0.5
    drawn = np.searchsorted(POISSON, random.permuted([places, places], axis=1) / len(resampled))
    share, first = np.minimum(drawn[0] / positives, 1), drawn[1]
    lost = np.array([ap(0) - ap(counts * many) for many in range(first.max() + 1)])
    last = positives / (positives + negatives)  # precision at the end of the ranking
    low = np.minimum(resampled - lost[first], resampled * (1 - share) + last * share)
    floor = float((k / (k + negatives)).mean())
    return Resampled(resampled, np.maximum(low, floor), resampled * (1 - share) + share)


def percentile_interval(
    values: Resampled | NDArray[np.float64], *, level: float = LEVEL
) -> Interval:
    """The middle `level` of a resampled AP with what was not seen, or of plain resampled figures,
    as differences of two APs are.

    Raises ConfigError for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ConfigError(f"expected a level between 0 and 1, got {level}")
    lows, highs = (values.low, values.high) if isinstance(values, Resampled) else (values, values)
    return Interval(
        low=float(np.quantile(lows, (1 - level) / 2)),
        high=float(np.quantile(highs, (1 + level) / 2)),
        level=level,
    )


def stratified_counts(
    targets: NDArray[np.int64], *, resamples: int, generator: np.random.Generator
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """How often each resample holds each positive, (R, P), and each negative, (R, N - P).

    Yields some rows R at a time, `resamples` in all, so that memory is bounded by the number of
    examples; columns are in the order of the examples.
    """
    positives = int(targets.sum())
    rows = max(1, DRAWS_AT_ONCE // len(targets))
    for done in range(0, resamples, rows):
        count = min(rows, resamples - done)
        yield (
            _draw(positives, count, generator),
            _draw(len(targets) - positives, count, generator),
        )


def _draw(size: int, rows: int, generator: np.random.Generator) -> NDArray[np.int32]:
    """(rows, size) counts of `size` draws with replacement, a row each."""
    drawn = generator.integers(0, size, (rows, size), np.int32)
    drawn += np.arange(rows, dtype=np.int32)[:, None] * size  # below DRAWS_AT_ONCE, or one row
    return np.bincount(drawn.ravel(), minlength=rows * size).astype(np.int32).reshape(rows, size)


def _ranked(
    scores: NDArray[np.float64], targets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Positives best first, negatives best first, and (P,) negatives at or above each positive."""
    positives, negatives = scores[targets == 1], scores[targets == 0]
    best_positives, best_negatives = np.argsort(-positives), np.argsort(-negatives)
    above = np.searchsorted(-negatives[best_negatives], -positives[best_positives], side="right")
    return best_positives, best_negatives, above
