"""Confidence intervals: a stratified bootstrap of average precision, paired over score sets.

A resample draws as many positives and as many negatives as there are, each class from itself and
with replacement, so that the prevalence stays what it is (Efron & Tibshirani 1993, chapter 8). It
is a data set like the first, and its AP is `adap.core.figures.ranking.average_precision` of it,
negatives first in ties and copies of one positive at consecutive ranks: never below the floor,
never above 1.

Examples of one cluster (a patient, a drive) are no independent draws, so where there are clusters
these are drawn, each with all its examples: as many of those that hold a positive as there are, and
as many of those that hold none (Davison & Hinkley 1997, section 3.8; Field & Welsh 2007: of the
schemes for clustered data the one that draws whole clusters needs no model of what is shared). So
no resample lacks positives; one that lacks negatives is drawn again. The sides' counts then vary,
and negatives are weighted so that the prevalence stays what it is. Clusters of one example each
are the bootstrap above, to the bit.

All score sets of the same examples (clean, each attack, worst case; model A, model B) see the same
resamples, so the difference of two is paired: what is hard about an example cancels.

Percentiles of these alone cover less than they promise when positives are few, and near an AP of 1
far less: the interval of one AP takes examples into account that were not seen (`Resampled`). What
it then covers is measured by benchmarks/intervals.py. This module imports no torch.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adap.core.clusters import numbered
from adap.core.errors import ConfigError
from adap.core.figures.operating import negative_weight
from adap.core.figures.ranking import checked
from adap.core.report import Interval

Key = TypeVar("Key", bound=Hashable)

RESAMPLES = 2000
LEVEL = 0.95
# What an unseen negative ranked first counts: times what the AP lacks to 1, as where negatives are
# seen to rank high others may rank higher; and at least, times the root of the number of positives
# up to 1, as among few the unseen positive weighs more. Chosen by benchmarks/intervals.py. Of the
# negatives of an unseen cluster few rank as high as its highest: the root of their number.
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
    negative counts in part, see UNSEEN_NEGATIVE. Of clusters one more of each kind is unseen, with
    as many examples as those that were seen have on average.

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
    clusters: Sequence[str] | None = None,
    prevalence: float | None = None,
    resamples: int = RESAMPLES,
    generator: np.random.Generator,
    among: Mapping[Key, NDArray[np.bool_]] | None = None,
) -> dict[Key, Resampled]:
    """The APs of each score set; entry i of all of them is of one and the same resample.

    scores: for each key (N,) scores of the same N examples.  targets: (N,) in {0, 1}.
    clusters: N names, of what is drawn whole; by default each example by itself.
    among: for each key (N,) the examples that are ranked, by default all; of clusters alone.
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
    given = {name: checked(logits, targets) for name, logits in scores.items()}
    targets = np.asarray(targets)
    of = numbered(clusters, len(targets))
    every = np.ones(len(targets), bool)
    inside = {name: every if among is None else among[name] for name in scores}
    ranked = {
        name: _ranked(*given[name], of, inside[name], prevalence=prevalence) for name in scores
    }
    ap: dict[Key, list[NDArray[np.float64]]] = {name: [] for name in scores}
    for positives, negatives in stratified_counts(
        targets,
        resamples=resamples,
        generator=generator,
        clusters=clusters,
        among=list(inside.values()),
    ):
        for name, ranking in ranked.items():
            ap[name].append(ranking.resampled(positives, negatives))
    return {name: _with_unseen(np.concatenate(ap[name]), ranked[name]) for name in scores}


@dataclass(frozen=True)
class _Ranked:
    """A ranking to be resampled.

    positives, negatives: (P,) and (N,) places among those of their class, best first.
    above: (P,) negatives at or above each positive.  weight: of a negative.
    positive_clusters, negative_clusters: those that hold a positive, and a negative.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    above: NDArray[np.int64]
    weight: float
    positive_clusters: int
    negative_clusters: int

    def resampled(
        self, positives: NDArray[np.int32], negatives: NDArray[np.int32]
    ) -> NDArray[np.float64]:
        """(R,) APs, by how often each resample holds each example of either class."""
        # `above` counts among the examples; in a resample each weighs as often as drawn.
        # take() keeps rows side by side, which [:, index] does not: several times faster.
        drawn = np.zeros((len(negatives), len(self.negatives) + 1), np.int32)
        np.cumsum(negatives.take(self.negatives, axis=1), axis=1, out=drawn[:, 1:])
        drawn_above = drawn.take(self.above, axis=1)  # (R, P)
        copies = positives.take(self.positives, axis=1)
        sizes = copies.sum(axis=1, dtype=np.int64)
        # of clusters the sides' counts vary; 1 where they do not
        ratio = sizes * len(self.negatives) / (drawn[:, -1] * np.int64(len(self.positives)))
        weight = (self.weight * ratio)[:, None]
        k = np.arange(1, sizes.max() + 1)
        false_alarms = np.repeat(drawn_above.ravel(), copies.ravel())
        ap: NDArray[np.float64]
        if (sizes == len(k)).all():
            ap = (k / (k + weight * false_alarms.reshape(-1, len(k)))).mean(axis=1)
            return ap
        there = k <= sizes[:, None]
        padded = np.zeros(there.shape, np.int32)
        padded[there] = false_alarms
        ap = (k / (k + weight * padded)).sum(axis=1, where=there) / sizes
        return ap


def _with_unseen(resampled: NDArray[np.float64], ranked: _Ranked) -> Resampled:
    positives, weight, above = len(ranked.positives), ranked.weight, ranked.above
    negatives = weight * len(ranked.negatives)
    clusters = ranked.positive_clusters
    k = np.arange(1, positives + 1)

    def ap(first: float) -> float:
        return float((k / (k + weight * (above + first))).mean())

    least = min(LEAST_UNSEEN_NEGATIVE * math.sqrt(clusters), 1)
    size = len(ranked.negatives) / ranked.negative_clusters
    counts = max(UNSEEN_NEGATIVE * (1 - ap(0)), least) * math.sqrt(size)
    random, places = np.random.default_rng(UNSEEN_SEED), np.arange(len(resampled)) + 0.5
    drawn = np.searchsorted(POISSON, random.permuted([places, places], axis=1) / len(resampled))
    share, first = np.minimum(drawn[0] / clusters, 1), drawn[1]
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
    targets: NDArray[np.int64],
    *,
    resamples: int,
    generator: np.random.Generator,
    clusters: Sequence[str] | None = None,
    among: Sequence[NDArray[np.bool_]] = (),
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """How often each resample holds each positive, (R, P), and each negative, (R, N - P).

    Yields some rows R at a time, `resamples` in all, so that memory is bounded by the number of
    examples; columns are in the order of the examples.
    clusters: N names, of what is drawn whole.  among: (N,) each, parts of the examples of which
    every resample holds both sides.
    """
    of = numbered(clusters, len(targets))
    size = int(of.max()) + 1
    holds = np.zeros(size, bool)  # a positive
    holds[of[targets == 1]] = True
    strata = np.flatnonzero(holds), np.flatnonzero(~holds)
    sides = [
        held
        for part in among
        for side in (1, 0)
        if (held := part & (targets == side)).any()  # of none there is none to draw
    ]
    rows = max(1, DRAWS_AT_ONCE // len(targets))
    for done in range(0, resamples, rows):
        count = min(rows, resamples - done)
        if size == len(targets):  # the strata are the sides
            positives, negatives = strata
            yield (
                _draw(len(positives), count, generator),
                _draw(len(negatives), count, generator),
            )
            continue
        drawn = _of_strata(strata, size, count, generator)
        while len(lacking := _lacking(drawn, of, sides)):
            drawn[lacking] = _of_strata(strata, size, len(lacking), generator)
        yield drawn.take(of[targets == 1], axis=1), drawn.take(of[targets == 0], axis=1)


def _of_strata(
    strata: Sequence[NDArray[np.int64]], size: int, rows: int, generator: np.random.Generator
) -> NDArray[np.int32]:
    """(rows, size) counts of draws with replacement, as many of each stratum as it has."""
    drawn = np.zeros((rows, size), np.int32)
    for members in strata:
        if len(members):
            drawn[:, members] = _draw(len(members), rows, generator)
    return drawn


def _lacking(
    drawn: NDArray[np.int32], of: NDArray[np.int64], sides: Sequence[NDArray[np.bool_]]
) -> NDArray[np.int64]:
    """The rows that hold no example of some side."""
    lacks = np.zeros(len(drawn), bool)
    for side in sides:
        lacks |= ~drawn[:, np.unique(of[side])].any(axis=1)
    return np.flatnonzero(lacks)


def _draw(size: int, rows: int, generator: np.random.Generator) -> NDArray[np.int32]:
    """(rows, size) counts of `size` draws with replacement, a row each."""
    drawn = generator.integers(0, size, (rows, size), np.int32)
    drawn += np.arange(rows, dtype=np.int32)[:, None] * size  # below DRAWS_AT_ONCE, or one row
    return np.bincount(drawn.ravel(), minlength=rows * size).astype(np.int32).reshape(rows, size)


def _ranked(
    scores: NDArray[np.float64],
    targets: NDArray[np.int64],
    of: NDArray[np.int64],
    inside: NDArray[np.bool_],
    *,
    prevalence: float | None,
) -> _Ranked:
    """The ranking of the examples inside; of: (N,) their clusters by number."""
    places = [np.flatnonzero(inside[targets == side]) for side in (0, 1)]
    negatives, positives = (scores[(targets == side) & inside] for side in (0, 1))
    best_positives, best_negatives = np.argsort(-positives), np.argsort(-negatives)
    above = np.searchsorted(-negatives[best_negatives], -positives[best_positives], side="right")
    held = [len(np.unique(of[(targets == side) & inside])) for side in (0, 1)]
    weight = 1.0
    if prevalence is not None:
        weight = negative_weight(len(positives), len(negatives), prevalence=prevalence)
    return _Ranked(
        positives=places[1][best_positives],
        negatives=places[0][best_negatives],
        above=above,
        weight=weight,
        positive_clusters=held[1],
        negative_clusters=held[0],
    )
