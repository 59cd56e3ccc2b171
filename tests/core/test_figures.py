"""The judges: scikit-learn's curves, its weighted AP, and counting."""

import doctest

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

import adap.core.figures.operating
from adap.core.config.attacks import PGDAttack
from adap.core.config.audits import AuditConfig, OperatingPoint
from adap.core.errors import ConfigError, DataError
from adap.core.figures import task as task_figures
from adap.core.figures.operating import (
    ap_at_prevalence,
    negative_weight,
    operating_figures,
    precision_at_k,
    recall_at_precision,
    threshold_at_fpr,
    tpr_at_fpr,
)
from adap.core.rendering.page import render
from adap.core.scores import Scores
from tests.core.pages import Page, report_of

# Quotients that a product would round to the wrong side, such as 0.29 * 100, and the ends.
SHARES = [0.01, 0.05, 0.07, 0.1, 0.29, 0.3, 0.57, 0.58, 0.9, 0.99]


def rankings(*, ties):
    """Some rankings, tiny to small; half of the scores are tied where asked for."""
    rng = np.random.default_rng(0)
    for positives, negatives in [(1, 1), (1, 9), (9, 1), (4, 6), (30, 100), (100, 100), (7, 293)]:
        targets = rng.permutation(np.repeat([1, 0], [positives, negatives]))
        for shift in (-1, 0, 1, 3):
            scores = rng.normal(size=len(targets)) + shift * targets
            yield np.round(scores, 0 if ties else 12), targets


@pytest.mark.parametrize("ties", [False, True])
def test_recall_at_a_precision_is_the_best_point_of_scikit_learns_curve(ties):
    for scores, targets in rankings(ties=ties):
        precision, recall, _ = precision_recall_curve(targets, scores)
        for share in [*SHARES, 1.0]:
            expected = recall[precision >= share].max()  # its last point, recall 0, has precision 1
            assert recall_at_precision(scores, targets, precision=share) == expected


@pytest.mark.parametrize("ties", [False, True])
def test_tpr_at_a_fpr_is_the_best_point_of_scikit_learns_curve(ties):
    for scores, targets in rankings(ties=ties):
        false, true, _ = roc_curve(targets, scores, drop_intermediate=False)
        for share in [*SHARES, 1.0]:
            expected = true[false <= share].max()
            assert tpr_at_fpr(scores, targets, fpr=share) == expected


@pytest.mark.parametrize("ties", [False, True])
def test_the_threshold_is_the_lowest_that_keeps_to_the_rate(ties):
    for scores, targets in rankings(ties=ties):
        negatives = scores[targets == 0]
        for share in SHARES:
            threshold = threshold_at_fpr(scores, targets, fpr=share)
            assert (negatives > threshold).sum() / len(negatives) <= share
            lower = negatives[negatives < threshold]
            if len(lower):
                assert (negatives > lower.max()).sum() / len(negatives) > share
            else:
                assert threshold == negatives.min()
            caught = (scores[targets == 1] > threshold).mean()
            assert caught == tpr_at_fpr(scores, targets, fpr=share)


def test_ap_at_a_prevalence_is_scikit_learns_ap_with_weighted_negatives():
    for scores, targets in rankings(ties=False):
        positives, negatives = (targets == 1).sum(), (targets == 0).sum()
        for share in SHARES:
            weight = np.where(targets == 1, share / positives, (1 - share) / negatives)
            expected = average_precision_score(targets, scores, sample_weight=weight)
            found = ap_at_prevalence(scores, targets, prevalence=share)
            assert found == pytest.approx(expected, rel=1e-12)
        assert ap_at_prevalence(scores, targets, prevalence=1) == 1
        own = ap_at_prevalence(scores, targets, prevalence=positives / len(targets))
        assert own == pytest.approx(average_precision_score(targets, scores), rel=1e-12)


def test_precision_at_k_counts_the_first_k_negatives_first_in_ties():
    for scores, targets in rankings(ties=True):
        ranked = [y for _, y in sorted(zip(-scores, targets, strict=True))]
        for k in range(1, len(ranked) + 1):
            assert precision_at_k(scores, targets, k=k) == sum(ranked[:k]) / k


def test_alarms_are_counted_at_the_threshold_of_the_clean_scores():
    rng = np.random.default_rng(0)
    targets = np.repeat([1, 0], [50, 1000])
    clean = rng.normal(size=1050) + 3 * targets
    worst = clean - 1.5 * (2 * targets - 1)
    found = operating_figures(clean, worst, targets, at=OperatingPoint())
    assert (found.k, found.precision, found.fpr, found.prevalence) == (50, 0.9, 0.01, 0.01)
    # One in a hundred of 1000 negatives alarms, and under attack whatever then is above.
    assert found.clean.alarms.negatives == 10
    for logits, figures in ((clean, found.clean), (worst, found.worst_case)):
        above = [y for logit, y in zip(logits, targets, strict=True) if logit > found.threshold]
        assert figures.alarms.positives == sum(above)
        assert figures.alarms.negatives == len(above) - sum(above)
        assert figures.precision_at_k == precision_at_k(logits, targets, k=50)
        assert figures.recall_at_precision == recall_at_precision(logits, targets, precision=0.9)
        assert figures.tpr_at_fpr == tpr_at_fpr(logits, targets, fpr=0.01)
        assert figures.ap_at_prevalence == ap_at_prevalence(logits, targets, prevalence=0.01)
    assert found.clean.alarms.positives / 50 == found.clean.tpr_at_fpr
    # Frozen, the threshold still finds some positives, among many more false alarms than before.
    assert found.worst_case.alarms.negatives > 100
    assert found.worst_case.alarms.positives / 50 > found.worst_case.tpr_at_fpr


def test_the_figures_are_read_off_at_the_operating_point_that_is_asked_for():
    rng = np.random.default_rng(0)
    targets = np.repeat([1, 0], [150, 850])
    clean = rng.normal(size=1000) + 2 * targets
    worst = clean - targets
    point = OperatingPoint(k=7, precision=0.5, fpr=0.2, prevalence=0.3)
    found = operating_figures(clean, worst, targets, at=point)
    assert (found.k, found.precision, found.fpr, found.prevalence) == (7, 0.5, 0.2, 0.3)
    assert found.threshold == threshold_at_fpr(clean, targets, fpr=0.2)
    assert found.clean.alarms.negatives == 170  # a fifth of 850
    for logits, figures in ((clean, found.clean), (worst, found.worst_case)):
        assert figures.precision_at_k == precision_at_k(logits, targets, k=7)
        assert figures.recall_at_precision == recall_at_precision(logits, targets, precision=0.5)
        assert figures.tpr_at_fpr == tpr_at_fpr(logits, targets, fpr=0.2)
        assert figures.ap_at_prevalence == ap_at_prevalence(logits, targets, prevalence=0.3)
    assert operating_figures(clean, worst, targets, at=OperatingPoint()).k == 100
    assert operating_figures(clean, worst, targets, at=OperatingPoint(k=1000)).k == 1000
    with pytest.raises(ConfigError, match="expected k between 1 and the 1000 examples, got 1001"):
        operating_figures(clean, worst, targets, at=OperatingPoint(k=1001))


def test_the_report_and_its_page_show_intervals_and_figures_of_operation():
    rng = np.random.default_rng(0)
    targets = np.repeat([1, 0], [120, 1080])
    clean = rng.normal(size=1200) + 3 * targets
    hurt = clean - rng.uniform(0, 2, 1200) * (2 * targets - 1)
    scores = Scores([str(i) for i in range(1200)], targets, clean, {"pgd": hurt})
    task = task_figures.figures(
        scores,
        positive=["truck"],
        config=AuditConfig(attacks=[PGDAttack()], budgets=[]),
        resampled=task_figures.resample(scores, resamples=200),
    )
    assert task.operating == operating_figures(clean, hurt, targets, at=OperatingPoint())

    report = report_of(scores).model_copy(update={"tasks": [task]})
    assert type(report).model_validate_json(report.model_dump_json()) == report
    page = Page(render(report, [scores]))
    rows = [row.words for row in page.all("tr")]
    clean_row, pgd_row, worst_row = rows[7:]
    for row, figure in (
        (clean_row, task.clean),
        (pgd_row, task.attacks["pgd"]),
        (worst_row, task.worst_case),
    ):
        assert f"{figure.ap:.4f} {figure.interval.low:.3f} to {figure.interval.high:.3f}" in row
    drop = task.worst_case.drop
    assert f"{drop.value:.4f} {drop.interval.low:.3f} to {drop.interval.high:.3f}" in worst_row
    assert "200 bootstrap resamples" in page.one("main").words

    before, after = task.operating.clean, task.operating.worst_case
    assert rows[:6] == [
        "Figure Clean Worst case",
        f"Precision of the first 100 {before.precision_at_k:.3f} {after.precision_at_k:.3f}",
        "Recall at a precision of 90 % "
        f"{before.recall_at_precision:.3f} {after.recall_at_precision:.3f}",
        f"Recall at 1 % false positives {before.tpr_at_fpr:.3f} {after.tpr_at_fpr:.3f}",
        f"AP where 1 % are positive {before.ap_at_prevalence:.3f} {after.ap_at_prevalence:.3f}",
        "Alarms at the clean threshold "
        + " ".join(
            f"{it.alarms.positives + it.alarms.negatives} "
            f"{it.alarms.positives} of 120 positives, {it.alarms.negatives} false"
            for it in (before, after)
        ),
    ]


@pytest.mark.parametrize("wrong", [0, -0.5, 1.5, float("nan")])
def test_shares_that_are_none_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"got {wrong}"):
        negative_weight(1, 1, prevalence=wrong)
    for figure, name in (
        (recall_at_precision, "precision"),
        (tpr_at_fpr, "fpr"),
        (ap_at_prevalence, "prevalence"),
        (threshold_at_fpr, "fpr"),
    ):
        with pytest.raises(ConfigError, match=f"got {wrong}"):
            figure([1, 0], [1, 0], **{name: wrong})


@pytest.mark.parametrize("k", [0, 3])
def test_k_outside_the_ranking_is_refused(k):
    with pytest.raises(ConfigError, match=f"between 1 and the 2 examples, got {k}"):
        precision_at_k([1, 0], [1, 0], k=k)


def test_scores_that_cannot_be_ranked_are_refused():
    for figure, level in (
        (precision_at_k, {"k": 1}),
        (recall_at_precision, {"precision": 0.5}),
        (tpr_at_fpr, {"fpr": 0.5}),
        (ap_at_prevalence, {"prevalence": 0.5}),
        (threshold_at_fpr, {"fpr": 0.5}),
    ):
        with pytest.raises(DataError, match="got 1 NaN"):
            figure([1, np.nan], [1, 0], **level)
        with pytest.raises(DataError, match="got 0 positives"):
            figure([1, 0], [0, 0], **level)


def test_the_examples_in_the_documentation_are_true():
    assert doctest.testmod(adap.core.figures.operating) == (0, 4)
