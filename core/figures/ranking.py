"""Average precision and what must be known beside it: its floor, its ties, its curve.

AP is the mean, over the positives, of the precision at the positive's rank (Section 3.1 of the
paper). Scores are raw logits, ranked in float64: a float32 sigmoid saturates and ties what the
logits keep apart. This module draws no confidence intervals and imports no torch.

Infinite scores are ranked like any others, since a ranking needs only an order; NaN has no place
in an order and is refused.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adap.core.errors import DataError

Ties = Literal["pessimistic", "sklearn"]


def average_precision(
    scores: ArrayLike, targets: ArrayLike, *, ties: Ties = "pessimistic"
) -> float:
    """Mean over the positives of the precision at their rank.

    scores: (N,), higher ranks first.  targets: (N,) in {0, 1}.
    ties: 'pessimistic' ranks the negatives of a tie first. It is the lowest AP over all orders of
    the ties, and it never falls when a positive's score rises or a negative's falls, so the
    worst case over an attack's budget can be taken image by image. 'sklearn' gives every
    positive of a tie the precision at the end of the tie, as scikit-learn does; that rule is not
    monotone (raising a positive can lower AP). For distinct scores the two are equal.

    Raises DataError for NaN, shapes that do not match, targets outside {0, 1} or a single class.

    >>> average_precision([3.0, 2.0, 1.0], [1, 0, 1])  # (1/1 + 2/3) / 2
    0.8333333333333333
    """
    scores, targets = checked(scores, targets)
    if ties == "pessimistic":
        return float(_precision_at_positives(scores, targets).mean())
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # last index of each tie
    found = np.cumsum(targets[order])[ends]  # positives down to each end
    return float(np.diff(found, prepend=0) @ (found / (ends + 1)) / found[-1])


def precision_recall_curve(
    scores: ArrayLike, targets: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(P,) recall and (P,) precision at each positive, best first.

    Negatives come first in a tie. Drawn as steps, each precision reaching back to the recall
    before it, the area under the curve is `average_precision`. Raises DataError as that does.
    """
    scores, targets = checked(scores, targets)
    precision = _precision_at_positives(scores, targets)
    return np.arange(1, len(precision) + 1) / len(precision), precision


def floor_ap(positives: int, examples: int) -> float:
    """AP of the fully inverted ranking, every negative above every positive: no attack does worse.

    The k-th of P positives is then at rank N - P + k, so AP = 1/P * sum_k k / (N - P + k).

    >>> round(floor_ap(1000, 10_000), 4)
    0.0518
    """
    if not 0 < positives <= examples:
        raise DataError(f"expected between 1 and {examples} positives, got {positives}")
    k = np.arange(1, positives + 1)
    return float((k / (examples - positives + k)).mean())


def chance_ap(positives: int, examples: int) -> float:
    """AP to expect of a ranking in random order, of P positives among N examples.

    The image at rank r is a positive with probability P / N, and there are then on average
    (P - 1) / (N - 1) of the others above it, each a positive or not, so
    E[AP] = 1/N * sum_r (1 + (r - 1) (P - 1) / (N - 1)) / r. It lies above the prevalence P / N,
    far above it for few examples, and nears it for many (Bestgen 2015).

    >>> round(chance_ap(8, 64), 4), round(chance_ap(1000, 10_000), 4)
    (0.177, 0.1008)
    """
    if not 0 < positives <= examples:
        raise DataError(f"expected between 1 and {examples} positives, got {positives}")
    if examples == 1:
        return 1.0
    harmonic = float((1 / np.arange(1, examples + 1)).sum())
    share = (positives - 1) / (examples - 1)
    return (harmonic + share * (examples - harmonic)) / examples


def count_ties(scores: ArrayLike, targets: ArrayLike) -> int:
    """How many positives have exactly the score of some negative. Raises DataError as above."""
    scores, targets = checked(scores, targets)
    return int(np.isin(scores[targets == 1], scores[targets == 0]).sum())


def rank_order(scores: ArrayLike, example_ids: Sequence[str]) -> NDArray[np.int64]:
    """(N,) indices of the examples, best first; equal scores in the order of their ids.

    So the order of the input never shows in the ranking. Raises DataError for NaN or lengths that
    do not match.
    """
    scores = _checked_scores(scores)
    if len(example_ids) != len(scores):
        raise DataError(f"expected {len(scores)} example ids, one a score, got {len(example_ids)}")
    by_id = np.array(sorted(range(len(scores)), key=example_ids.__getitem__), dtype=np.int64)
    return by_id[np.argsort(-scores[by_id], kind="stable")]


def _precision_at_positives(
    scores: NDArray[np.float64], targets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(P,) precision at each positive's rank, best first, negatives first among equals."""
    ranked = targets[np.lexsort((targets, -scores))]
    ranks = np.flatnonzero(ranked) + 1
    return np.arange(1, len(ranks) + 1) / ranks


def checked(scores: ArrayLike, targets: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    scores, targets = _checked_scores(scores), np.asarray(targets)
    if targets.shape != scores.shape:
        raise DataError(f"expected {scores.shape} targets, one a score, got {targets.shape}")
    if not np.isin(targets, (0, 1)).all():
        raise DataError(f"expected targets in {{0, 1}}, got {np.unique(targets)[:5].tolist()}")
    positives = int(np.count_nonzero(targets))
    if positives in (0, len(targets)):
        raise DataError(
            f"expected positives and negatives, got {positives} positives "
            f"among {len(targets)} examples"
        )
    return scores, targets.astype(np.int64)


def _checked_scores(scores: ArrayLike) -> NDArray[np.float64]:
    try:
        scores = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected numbers as scores: {error}") from error
    if scores.ndim != 1:
        raise DataError(f"expected scores of shape (N,), got {scores.shape}")
    undefined = int(np.isnan(scores).sum())
    if undefined:
        raise DataError(f"expected scores that can be ranked, got {undefined} NaN")
    return scores
