"""Figures of each group of the examples, and the gap between the groups.

AP depends on prevalence, and groups differ in it: the same scorer has a lower AP where positives
are rarer. So groups are compared by AP carried over to the prevalence of the whole task
(`adap.core.figures.operating.ap_at_prevalence`). Each group is ranked by itself. This module
imports no torch.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adap.core.errors import DataError
from adap.core.figures.intervals import (
    RESAMPLES,
    Resampled,
    percentile_interval,
    resampled_ap,
)
from adap.core.figures.operating import ap_at_prevalence
from adap.core.figures.ranking import average_precision, checked, count_ties
from adap.core.report import APFigure, Difference, GroupFigures, GroupGap, Groups

FEWEST = 2  # positives and negatives: a bootstrap of one example has no spread


def group_figures(
    clean: ArrayLike,
    worst: ArrayLike,
    targets: ArrayLike,
    groups: Sequence[str],
    *,
    clusters: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    generator: np.random.Generator,
) -> Groups:
    """The figures of each group, sorted by name, and the gaps between the best and the worst group.

    clean, worst: (N,) scores.  targets: (N,) in {0, 1}.  groups: N names.  clusters: N names of
    what is drawn whole.

    A group of fewer than FEWEST positives or negatives has no figures, and there is no gap between
    fewer than two groups that have. No example is in two groups, so the interval of a gap is from
    independent resamples of its two groups; where a cluster is in both, from resamples of both
    together. These are the best and the worst of the data at hand
    in every resample: the interval does not know that they were picked for it, and among many
    groups that are equal in truth some gap is to be expected.

    Raises DataError for what cannot be ranked and for groups that are not one an example,
    ConfigError without resamples.
    """
    clean, targets = checked(clean, targets)
    worst, _ = checked(worst, targets)
    if len(groups) != len(targets):
        raise DataError(f"expected {len(targets)} groups, one an example, got {len(groups)}")
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    prevalence = float(targets.mean())

    def figures(group: str) -> GroupFigures:
        own = targets[members[group]]
        positives = int(own.sum())
        if min(positives, len(own) - positives) < FEWEST:
            return GroupFigures(
                group=group,
                examples=len(own),
                positives=positives,
                clean=None,
                worst_case=None,
                clean_at_prevalence=None,
                worst_case_at_prevalence=None,
            )
        before, after = clean[members[group]], worst[members[group]]
        resampled = resampled_ap(
            {"clean": before, "worst_case": after},
            own,
            clusters=_at(clusters, members[group]),
            resamples=resamples,
            generator=generator,
        )
        return GroupFigures(
            group=group,
            examples=len(own),
            positives=positives,
            clean=_figure(before, own, resampled=resampled["clean"]),
            worst_case=_figure(after, own, resampled=resampled["worst_case"]),
            clean_at_prevalence=ap_at_prevalence(before, own, prevalence=prevalence),
            worst_case_at_prevalence=ap_at_prevalence(after, own, prevalence=prevalence),
        )

    def gap(scores: NDArray[np.float64], ap: dict[str, float | None]) -> GroupGap | None:
        found = {group: value for group, value in ap.items() if value is not None}
        if len(found) < 2:
            return None
        best_first = sorted(found, key=lambda group: -found[group])
        best, last = best_first[0], best_first[-1]
        settings: _Drawing = {
            "prevalence": prevalence,
            "resamples": resamples,
            "generator": generator,
        }
        if _share_a_cluster(clusters, members[best], members[last]):
            both = np.array(sorted(members[best] + members[last]))
            among = {group: np.isin(both, members[group]) for group in (best, last)}
            resampled = resampled_ap(
                dict.fromkeys(among, scores[both]),
                targets[both],
                clusters=_at(clusters, both.tolist()),
                among=among,
                **settings,
            )
        else:
            resampled = {
                group: resampled_ap(
                    {"": scores[members[group]]},
                    targets[members[group]],
                    clusters=_at(clusters, members[group]),
                    **settings,
                )[""]
                for group in (best, last)
            }
        return GroupGap(
            best=best,
            worst=last,
            difference=Difference(
                value=found[best] - found[last],
                interval=percentile_interval(resampled[best] - resampled[last]),
            ),
        )

    every = [figures(group) for group in sorted(members)]
    return Groups(
        groups=every,
        clean_gap=gap(clean, {it.group: it.clean_at_prevalence for it in every}),
        worst_case_gap=gap(worst, {it.group: it.worst_case_at_prevalence for it in every}),
    )


class _Drawing(TypedDict):
    prevalence: float
    resamples: int
    generator: np.random.Generator


def _at(clusters: Sequence[str] | None, rows: Sequence[int]) -> list[str] | None:
    return None if clusters is None else [clusters[i] for i in rows]


def _share_a_cluster(
    clusters: Sequence[str] | None, one: Sequence[int], other: Sequence[int]
) -> bool:
    return not set(_at(clusters, one) or ()).isdisjoint(_at(clusters, other) or ())


def _figure(
    scores: NDArray[np.float64], targets: NDArray[np.int64], *, resampled: Resampled
) -> APFigure:
    return APFigure(
        ap=average_precision(scores, targets),
        interval=percentile_interval(resampled),
        tied=count_ties(scores, targets),
    )
