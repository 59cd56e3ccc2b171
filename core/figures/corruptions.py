"""The figures of a suite of corruptions, from its scores alone."""

from statistics import fmean

from adap.core.figures.ranking import average_precision
from adap.core.figures.worst_case import worst_corruption
from adap.core.report import (
    APFigure,
    CorruptionFigures,
    CorruptionPoint,
    Difference,
    WorstCase,
)
from adap.core.scores import Scores


def corruption_figures(scores: Scores, worst: APFigure, *, drop: Difference) -> CorruptionFigures:
    """AP kind by kind and severity by severity, and its summaries.

    worst: of the ranking of `worst_corruption`, with its interval; drop: from the clean AP to it.
    The points have no intervals: 75 of them would take longer than the scores of a small network.
    """
    assert scores.corruption_table is not None
    points = [
        CorruptionPoint(
            kind=of.kind, severity=of.severity, ap=average_precision(logits, scores.targets)
        )
        for of, logits in scores.corrupted.items()
    ]
    kinds = dict.fromkeys(point.kind for point in points)
    return CorruptionFigures(
        parameters=scores.corruption_table,
        points=points,
        mean=fmean(point.ap for point in points),
        by_kind={kind: fmean(it.ap for it in points if it.kind == kind) for kind in kinds},
        lowest=min(points, key=lambda point: point.ap),
        worst_case=WorstCase(**dict(worst), won=worst_corruption(scores)[1], drop=drop),
    )
