"""Figures of operation: precision@k, recall at a precision, alarms at a threshold.

    precision_at_k          of the first k, how many are positives
    recall_at_precision     how many positives can be had at a given purity
    tpr_at_fpr              how many positives can be had for a given share of false alarms
    ap_at_prevalence        AP where positives are rarer, or more common, than here
    negative_weight         what a negative weighs there
    threshold_at_fpr        where to alarm, chosen on the scores at hand
    operating_figures       all of them, clean and in the worst case, as the report shows them

Ties are ranked negatives first. A threshold lets through what scores strictly above it. This
module imports no torch.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adap.core.config.audits import OperatingPoint
from adap.core.errors import ConfigError
from adap.core.figures.ranking import checked
from adap.core.report import Alarms, Operating, OperatingFigures

TOP = 100


def precision_at_k(scores: ArrayLike, targets: ArrayLike, *, k: int) -> float:
    """Share of positives among the k examples of highest score.

    Raises ConfigError for k outside 1..N, DataError for what cannot be ranked.

    >>> precision_at_k([3.0, 2.0, 1.0], [1, 0, 1], k=2)
    0.5
    """
    scores, targets = checked(scores, targets)
    if not 1 <= k <= len(scores):
        raise ConfigError(f"expected k between 1 and the {len(scores)} examples, got {k}")
    return float(targets[np.lexsort((targets, -scores))[:k]].mean())


def recall_at_precision(scores: ArrayLike, targets: ArrayLike, *, precision: float) -> float:
    """The highest recall at which precision is at least this; 0 where it is never reached.

    Raises ConfigError for a precision outside (0, 1], DataError for what cannot be ranked.

    >>> recall_at_precision([4.0, 3.0, 2.0, 1.0], [1, 0, 1, 0], precision=0.6)
    1.0
    """
    _refuse_outside_unit_interval(precision, "a precision")
    found, false_alarms = _found_and_false_alarms(scores, targets)
    pure = np.flatnonzero(found / (found + false_alarms) >= precision)
    return float(found[pure[-1]] / len(found)) if len(pure) else 0.0


def tpr_at_fpr(scores: ArrayLike, targets: ArrayLike, *, fpr: float) -> float:
    """The highest true positive rate at which the false positive rate is at most this.

    Raises ConfigError for a rate outside (0, 1], DataError for what cannot be ranked.

    >>> tpr_at_fpr([4.0, 3.0, 2.0, 1.0], [1, 0, 1, 0], fpr=0.5)
    1.0
    """
    _refuse_outside_unit_interval(fpr, "a false positive rate")
    found, false_alarms = _found_and_false_alarms(scores, targets)
    negatives = np.asarray(targets).size - len(found)
    return float((false_alarms / negatives <= fpr).sum() / len(found))


def ap_at_prevalence(scores: ArrayLike, targets: ArrayLike, *, prevalence: float) -> float:
    """AP with every negative weighted so that positives are this share of the examples.

    The k-th positive, behind f_k negatives of `negative_weight` w, has precision k / (k + w f_k).
    At the data set's own prevalence this is `average_precision`.

    Raises ConfigError for a prevalence outside (0, 1], DataError for what cannot be ranked.
    """
    found, false_alarms = _found_and_false_alarms(scores, targets)
    weight = negative_weight(len(found), np.size(targets) - len(found), prevalence=prevalence)
    return float((found / (found + weight * false_alarms)).mean())


def negative_weight(positives: int, negatives: int, *, prevalence: float) -> float:
    """P (1 - prevalence) / (N prevalence): with it P positives are this share of P + N examples.

    Raises ConfigError for a prevalence outside (0, 1].
    """
    _refuse_outside_unit_interval(prevalence, "a prevalence")
    return positives * (1 - prevalence) / (negatives * prevalence)


def threshold_at_fpr(scores: ArrayLike, targets: ArrayLike, *, fpr: float) -> float:
    """The lowest threshold that at most this share of the negatives scores strictly above.

    Raises ConfigError for a rate outside (0, 1), DataError for what cannot be ranked.

    >>> threshold_at_fpr([4.0, 3.0, 2.0, 1.0], [1, 0, 1, 0], fpr=0.5)
    1.0
    """
    if not 0 < fpr < 1:
        raise ConfigError(f"expected a false positive rate between 0 and 1, got {fpr}")
    scores, targets = checked(scores, targets)
    negatives = -np.sort(-scores[targets == 0])  # best first
    # The same quotients as in a ROC curve: fpr * N rounds 0.29 * 100 to less than 29.
    allowed = np.flatnonzero(np.arange(len(negatives)) / len(negatives) <= fpr)[-1]
    return float(negatives[allowed])


def operating_figures(
    clean: NDArray[np.float64],
    worst: NDArray[np.float64],
    targets: NDArray[np.int64],
    *,
    at: OperatingPoint,
) -> Operating:
    """The figures at an operating point, for (N,) clean and (N,) worst-case logits.

    k is by default TOP, or the number of positives where there are fewer, so that a perfect
    ranking has precision 1 at k. The alarm threshold is chosen on the clean scores and stays there
    under attack, as it would in operation; `tpr_at_fpr` chooses anew.

    Raises ConfigError for a k above N, DataError for what cannot be ranked.
    """
    k = min(TOP, int(targets.sum())) if at.k is None else at.k
    threshold = threshold_at_fpr(clean, targets, fpr=at.fpr)

    def figures(logits: NDArray[np.float64]) -> OperatingFigures:
        alarmed = logits > threshold
        return OperatingFigures(
            precision_at_k=precision_at_k(logits, targets, k=k),
            recall_at_precision=recall_at_precision(logits, targets, precision=at.precision),
            tpr_at_fpr=tpr_at_fpr(logits, targets, fpr=at.fpr),
            ap_at_prevalence=ap_at_prevalence(logits, targets, prevalence=at.prevalence),
            alarms=Alarms(
                positives=int((alarmed & (targets == 1)).sum()),
                negatives=int((alarmed & (targets == 0)).sum()),
            ),
        )

    return Operating(
        k=k,
        precision=at.precision,
        fpr=at.fpr,
        prevalence=at.prevalence,
        threshold=threshold,
        clean=figures(clean),
        worst_case=figures(worst),
    )


def _found_and_false_alarms(
    scores: ArrayLike, targets: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(P,) positives down to each positive, itself included, and (P,) negatives at or above it."""
    scores, targets = checked(scores, targets)
    ranks = np.flatnonzero(targets[np.lexsort((targets, -scores))]) + 1
    found = np.arange(1, len(ranks) + 1)
    return found, ranks - found


def _refuse_outside_unit_interval(value: float, name: str) -> None:
    if not 0 < value <= 1:
        raise ConfigError(f"expected {name} above 0 and at most 1, got {value}")
