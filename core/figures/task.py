"""The figures of one task, from its scores alone; nothing is attacked again."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adap.core.clusters import numbered
from adap.core.config.attacks import Attack
from adap.core.config.audits import CURVE_ATTACK, AuditConfig
from adap.core.errors import DataError
from adap.core.figures.budget import budget_curve
from adap.core.figures.corruptions import corruption_figures
from adap.core.figures.groups import group_figures
from adap.core.figures.intervals import (
    RESAMPLES,
    Resampled,
    percentile_interval,
    resampled_ap,
)
from adap.core.figures.operating import operating_figures
from adap.core.figures.ranking import average_precision, chance_ap, count_ties, floor_ap
from adap.core.figures.smallest import smallest_figures
from adap.core.figures.worst_case import worst_case, worst_corruption
from adap.core.rankings import AtEpsilon, Attacked, Own, Ranking
from adap.core.report import (
    APFigure,
    AttackFigure,
    CertifiedFloor,
    Clusters,
    Difference,
    EpsilonCurve,
    EpsilonPoint,
    SearchedOn,
    TaskReport,
    UniversalFigures,
    WorstCase,
)
from adap.core.scores import Scores

RESAMPLING_SEED = 0


def rankings(scores: Scores) -> dict[Ranking, NDArray[np.float64]]:
    """(N,) logits behind every AP of a task."""
    found: dict[Ranking, NDArray[np.float64]] = {Own.CLEAN: scores.clean}
    found |= {Attacked(key): logits for key, logits in scores.attacked.items()}
    found[Own.WORST_CASE] = worst_case(scores)[0]
    found |= {AtEpsilon(epsilon): logits for epsilon, logits in scores.curve.items()}
    if scores.corrupted:
        found[Own.CORRUPTION_WORST_CASE] = worst_corruption(scores)[0]
    if scores.universal is not None:
        found[Own.UNIVERSAL] = scores.universal.logits
    if scores.bounds is not None:
        # in float64, so an attacked float32 logit may lie beyond by its rounding
        lo, hi = scores.bounds
        found[Own.CERTIFIED_FLOOR] = np.where(scores.targets == 1, lo, hi)
    return found


def resample(
    scores: Scores, *, resamples: int = RESAMPLES, seed: int = RESAMPLING_SEED
) -> dict[Ranking, Resampled]:
    """Bootstrapped APs of every ranking of a task.

    The seed is no part of an audit's configuration: two audits of the same examples see the same
    resamples, so that their difference is paired.
    """
    return resampled_ap(
        rankings(scores),
        scores.targets,
        clusters=scores.clusters,
        resamples=resamples,
        generator=np.random.default_rng(seed),
    )


def figures(
    scores: Scores,
    *,
    positive: Sequence[str],
    config: AuditConfig,
    recovery: Sequence[Attack] = (),
    resampled: Mapping[Ranking, Resampled] | None = None,
) -> TaskReport:
    """The figures of one task. AP ranks negatives first in ties, so it is a lower bound.

    positive: the names of the positive classes.  config: of the audit; its attacks are shown in
    its order.  recovery: those that it goes on by where the gradient hides something; they count
    where it did.  resampled: as from `resample`, where it is known already.
    """
    went_on = [] if scores.hidden is None else recovery
    attacks = [*config.resolved_attacks(), *went_on]
    if {attack.key for attack in attacks} != set(scores.attacked):
        raise DataError(
            f"expected scores under {sorted(attack.key for attack in attacks)}, "
            f"got {sorted(scores.attacked)}"
        )
    targets, signs = scores.targets, 2 * scores.targets - 1
    positives = int(targets.sum())
    worst, won = worst_case(scores)
    logits = rankings(scores)
    resampled = resample(scores) if resampled is None else resampled

    def figure(ranking: Ranking) -> APFigure:
        return APFigure(
            ap=average_precision(logits[ranking], targets),
            interval=percentile_interval(resampled[ranking]),
            tied=count_ties(logits[ranking], targets),
        )

    clean, worst_figure = figure(Own.CLEAN), figure(Own.WORST_CASE)

    def drop(ranking: Ranking, ap: float) -> Difference:
        return Difference(
            value=clean.ap - ap,
            interval=percentile_interval(resampled[Own.CLEAN] - resampled[ranking]),
        )

    def attack_figure(attack: Attack) -> AttackFigure:
        found = figure(Attacked(attack.key))
        return AttackFigure(
            **dict(found),
            attack=attack.as_json(),
            mean_margin_drop=float((signs * (scores.clean - scores.attacked[attack.key])).mean()),
            drop=drop(Attacked(attack.key), found.ap),
        )

    universal = None
    if scores.universal is not None and config.universal is not None:
        shared, shared_figure = scores.universal, figure(Own.UNIVERSAL)
        order = {"linf": np.inf, "l2": 2}[config.threat.norm]
        universal = UniversalFigures(
            **dict(shared_figure),
            size=float(np.linalg.norm(shared.delta.ravel().astype(np.float64), order)),
            searched=shared.searched,
            rounds=config.universal.rounds,
            drop=drop(Own.UNIVERSAL, shared_figure.ap),
        )
    certified = None
    if scores.bounds is not None:
        lo, hi = scores.bounds
        certified = CertifiedFloor(
            **dict(figure(Own.CERTIFIED_FLOOR)),
            method="crown_ibp" if config.certify in ("auto", "off") else config.certify,
            proven_pairs=_proven_pairs(lo[targets == 1], hi[targets == 0]),
        )
    return TaskReport(
        positive=list(positive),
        examples=len(scores),
        positives=positives,
        prevalence=positives / len(scores),
        chance=chance_ap(positives, len(scores)),
        floor=floor_ap(positives, len(scores)),
        clean=clean,
        upside_down=_upside_down(scores, clean, resamples=len(resampled[Own.CLEAN].ap)),
        attacks={attack.key: attack_figure(attack) for attack in attacks},
        worst_case=WorstCase(
            **dict(worst_figure), won=won, drop=drop(Own.WORST_CASE, worst_figure.ap)
        ),
        certified_floor=certified,
        no_certified_floor=scores.no_bounds,
        searched_on=None
        if scores.hidden is None
        else SearchedOn(reason=scores.hidden, attacks=[attack.key for attack in went_on]),
        epsilon_curve=(
            EpsilonCurve(
                attack=CURVE_ATTACK.as_json(),
                points=[
                    EpsilonPoint(**dict(figure(AtEpsilon(epsilon))), epsilon=epsilon)
                    for epsilon in scores.curve
                ],
            )
            if scores.curve
            else None
        ),
        corruptions=(
            corruption_figures(
                scores,
                figure(Own.CORRUPTION_WORST_CASE),
                drop=drop(Own.CORRUPTION_WORST_CASE, figure(Own.CORRUPTION_WORST_CASE).ap),
            )
            if scores.corrupted
            else None
        ),
        smallest_changes=(
            None if scores.smallest is None else smallest_figures(scores.smallest, config.threat)
        ),
        universal=universal,
        budget_curve=budget_curve(scores.clean, worst, targets, budgets=config.budgets),
        groups=(
            None
            if scores.groups is None
            else group_figures(
                scores.clean,
                worst,
                targets,
                scores.groups,
                clusters=scores.clusters,
                resamples=len(resampled[Own.CLEAN].ap),
                generator=np.random.default_rng(RESAMPLING_SEED),
            )
        ),
        resamples=len(resampled[Own.CLEAN].ap),
        clusters=_clusters(scores),
        operating=operating_figures(scores.clean, worst, targets, at=config.operating),
    )


def _upside_down(scores: Scores, clean: APFigure, *, resamples: int) -> APFigure | None:
    """The clean ranking read the other way round, where as it stands it is worse than chance."""
    targets, turned = scores.targets, -scores.clean
    if clean.ap >= chance_ap(int(targets.sum()), len(targets)):
        return None
    found = resampled_ap(
        {Own.CLEAN: turned},
        targets,
        clusters=scores.clusters,
        resamples=resamples,
        generator=np.random.default_rng(RESAMPLING_SEED),
    )
    return APFigure(
        ap=average_precision(turned, targets),
        interval=percentile_interval(found[Own.CLEAN]),
        tied=count_ties(turned, targets),
    )


def _clusters(scores: Scores) -> Clusters | None:
    """How many there are, where some cluster has several examples."""
    of = numbered(scores.clusters, len(scores))
    held = Clusters(
        clusters=len(np.unique(of)), with_positives=len(np.unique(of[scores.targets == 1]))
    )
    return None if held.clusters == len(scores) else held


def _proven_pairs(lo: NDArray[np.float64], hi: NDArray[np.float64]) -> float:
    """Share of the pairs in which the positive's lowest logit is above the negative's highest."""
    return float(np.searchsorted(np.sort(hi), lo, side="left").sum() / (len(lo) * len(hi)))
