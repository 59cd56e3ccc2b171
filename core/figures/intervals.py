"""Confidence intervals: a stratified bootstrap of average precision, paired over score sets.

A resample draws as many positives and as many negatives as there are, each class from itself and
with replacement, so that the prevalence stays what it is (Efron & Tibshirani 1993, chapter 8). It
is a data set like the first, and its AP is `adap.core.figures.ranking.average_precision` of it,
negatives first in ties and copies of one positive at consecutive ranks: never below the floor,
never above 1.

All score sets of the same examples (clean, each attack, worst case; model A, model B) see the same
resamples, so the difference of two is paired: what is hard about an example cancels.

Percentile intervals cover less than they promise when positives are few; how much less is measured
by benchmarks/intervals.py. This module imports no torch.
"""

from collections.abc import Hashable, Iterator, Mapping
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
DRAWS_AT_ONCE = 2**18  # bounds the memory, and fits a processor's cache


def resampled_ap(
    scores: Mapping[Key, ArrayLike],
    targets: ArrayLike,
    *,
    prevalence: float | None = None,
    resamples: int = RESAMPLES,
    generator: np.random.Generator,
) -> dict[Key, NDArray[np.float64]]:
    """(resamples,) APs of each score set; entry i of all of them is of one and the same resample.

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
    return {name: np.concatenate(chunks) for name, chunks in ap.items()}


def percentile_interval(values: NDArray[np.float64], *, level: float = LEVEL) -> Interval:
    """The middle `level` of resampled figures, or of the differences of two such rows.

    Raises ConfigError for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ConfigError(f"expected a level between 0 and 1, got {level}")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high), level=level)


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
