"""The judges: scikit-learn's weighted AP, the bootstrap of a group alone, a model that is known."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from adap.core.errors import ConfigError, DataError
from adap.core.figures.groups import group_figures
from adap.core.figures.intervals import percentile_interval, resampled_ap
from adap.core.figures.ranking import average_precision, count_ties
from adap.core.report import Groups
from tests.core.test_intervals import binormal_ap

EXACT = 1e-12  # sums of at most some hundred float64 numbers below 1


def examples(sizes, *, seed=0):
    """Scores, targets and groups, in no order, of {name: (positives, negatives, shift)}."""
    rng = np.random.default_rng(seed)
    targets = np.concatenate([np.repeat([1, 0], [p, n]) for p, n, _ in sizes.values()])
    shifts = np.concatenate([np.full(p + n, shift) for p, n, shift in sizes.values()])
    groups = np.repeat(list(sizes), [p + n for p, n, _ in sizes.values()])
    clean = rng.normal(size=len(targets)) + shifts * targets
    worst = clean - rng.uniform(0, 2, len(targets)) * (2 * targets - 1)
    order = rng.permutation(len(targets))
    return clean[order], worst[order], targets[order], groups[order].tolist()


def figures_of(data, *, resamples=200, seed=0):
    return group_figures(*data, resamples=resamples, generator=np.random.default_rng(seed))


def test_each_group_has_the_ap_of_its_own_examples_and_scikit_learns_at_the_tasks_prevalence():
    data = examples({"night": (20, 180, 1.0), "day": (40, 60, 2.0), "fog": (90, 110, 1.5)})
    clean, worst, targets, groups = data
    found = figures_of(data)
    assert [it.group for it in found.groups] == ["day", "fog", "night"]
    for it in found.groups:
        of = np.array(groups) == it.group
        own = targets[of]
        assert (it.examples, it.positives) == (of.sum(), own.sum())
        prevalence = 150 / 500
        weight = np.where(own == 1, prevalence / own.sum(), (1 - prevalence) / (own == 0).sum())
        for scores, figure, carried in (
            (clean[of], it.clean, it.clean_at_prevalence),
            (worst[of], it.worst_case, it.worst_case_at_prevalence),
        ):
            assert figure.ap == average_precision(scores, own)
            assert figure.interval.low < figure.ap < figure.interval.high
            expected = average_precision_score(own, scores, sample_weight=weight)
            assert carried == pytest.approx(expected, abs=EXACT)


def test_intervals_are_those_of_the_group_alone_and_of_independent_resamples_for_the_gap():
    data = examples({"a": (30, 170, 2.0), "b": (50, 50, 1.0)})
    clean, worst, targets, groups = data
    found = figures_of(data, resamples=100, seed=7)
    # The generator is used in the order of the names, then for the clean gap, best group first.
    generator = np.random.default_rng(7)
    of = {name: np.array(groups) == name for name in "ab"}
    for it in found.groups:
        own = of[it.group]
        ap = resampled_ap(
            {"clean": clean[own], "worst_case": worst[own]},
            targets[own],
            resamples=100,
            generator=generator,
        )
        assert it.clean.interval == percentile_interval(ap["clean"])
        assert it.worst_case.interval == percentile_interval(ap["worst_case"])
    for scores, gap in ((clean, found.clean_gap), (worst, found.worst_case_gap)):
        best, last = (
            resampled_ap(
                {"": scores[of[name]]},
                targets[of[name]],
                prevalence=80 / 300,
                resamples=100,
                generator=generator,
            )[""]
            for name in (gap.best, gap.worst)
        )
        assert gap.difference.interval == percentile_interval(best - last)
        assert abs(np.corrcoef(best.ap, last.ap)[0, 1]) < 0.4  # 4 standard deviations of 100


def test_the_gap_is_between_the_best_and_the_worst_group_at_one_prevalence():
    # By their own AP the order is the other way round: what is common is easily found.
    data = examples({"common": (400, 100, 0.8), "rare": (30, 970, 1.6), "middle": (60, 300, 1.2)})
    found = figures_of(data)
    common, middle, rare = found.groups
    assert common.clean.ap > rare.clean.ap
    assert rare.clean_at_prevalence > middle.clean_at_prevalence > common.clean_at_prevalence
    gap = found.clean_gap
    assert (gap.best, gap.worst) == ("rare", "common")
    assert gap.difference.value == rare.clean_at_prevalence - common.clean_at_prevalence
    assert gap.difference.interval.low < gap.difference.value < gap.difference.interval.high


def test_the_worst_case_has_a_gap_of_its_own():
    clean, _, targets, groups = examples({"a": (50, 150, 3.0), "b": (50, 150, 2.0)})
    of_a = np.array(groups) == "a"
    worst = clean - 3.0 * of_a * (2 * targets - 1)
    found = figures_of((clean, worst, targets, groups))
    assert (found.clean_gap.best, found.clean_gap.worst) == ("a", "b")
    assert (found.worst_case_gap.best, found.worst_case_gap.worst) == ("b", "a")
    assert min(found.clean_gap.difference.value, found.worst_case_gap.difference.value) > 0


def test_the_same_scorer_is_as_good_in_groups_that_differ_only_in_prevalence():
    # The same positives; each negative ten times in one group: at one prevalence nothing differs.
    rng = np.random.default_rng(0)
    positives, negatives = rng.normal(1, 1, 40), rng.normal(0, 1, 60)
    clean = np.concatenate([positives, negatives, positives, np.repeat(negatives, 10)])
    targets = np.repeat([1, 0, 1, 0], [40, 60, 40, 600])
    found = figures_of((clean, clean, targets, ["even"] * 100 + ["rare"] * 640))
    even, rare = found.groups
    assert even.clean.ap > rare.clean.ap + 0.1
    assert even.clean_at_prevalence == pytest.approx(rare.clean_at_prevalence, abs=EXACT)
    assert {found.clean_gap.best, found.clean_gap.worst} == {"even", "rare"}
    interval = found.clean_gap.difference.interval
    assert interval.low < 0 < interval.high


def test_groups_of_too_few_have_counts_but_no_figures():
    data = examples(
        {"one": (1, 50, 1.0), "none": (0, 9, 1.0), "all": (9, 1, 1.0), "two": (2, 2, 1)}
    )
    found = figures_of(data)
    assert [(it.group, it.examples, it.positives) for it in found.groups] == [
        ("all", 10, 9),
        ("none", 9, 0),
        ("one", 51, 1),
        ("two", 4, 2),
    ]
    for it in found.groups[:3]:
        assert it.clean is it.worst_case is None
        assert it.clean_at_prevalence is it.worst_case_at_prevalence is None
    assert found.groups[3].clean is not None
    assert found.clean_gap is found.worst_case_gap is None
    assert Groups.model_validate_json(found.model_dump_json()) == found


def test_groups_that_are_equal_are_still_two():
    clean, targets = np.tile([2.0, 1, 0, -1], 2), np.tile([1, 0, 1, 0], 2)
    gap = figures_of((clean, clean, targets, ["a"] * 4 + ["b"] * 4)).clean_gap
    assert (gap.best, gap.worst, gap.difference.value) == ("a", "b", 0)


def test_ties_are_counted_within_the_group_and_rank_negatives_first():
    clean = np.array([1.0, 1, 0, 0, 1, 0, 1, 0])
    targets = np.array([1, 0, 1, 0, 1, 1, 0, 0])
    found = figures_of((clean, clean, targets, ["a"] * 4 + ["b", "b", "b", "b"]))
    for it, own in zip(found.groups, (slice(4), slice(4, 8)), strict=True):
        assert it.clean.tied == count_ties(clean[own], targets[own]) == 2
        assert it.clean.ap == (1 / 2 + 2 / 4) / 2


@pytest.mark.slow
def test_intervals_of_the_gap_cover_the_true_one_as_often_as_they_say():
    # The true gap is so wide that no sample swaps the groups. The task's prevalence is 1/5.
    truth = binormal_ap(2.5, 0.2) - binormal_ap(1.0, 0.2)
    sizes = {"good": (100, 200, 2.5), "poor": (100, 600, 1.0)}
    covered = 0
    for seed in range(200):
        clean, _, targets, groups = examples(sizes, seed=seed)
        gap = figures_of((clean, clean, targets, groups), seed=seed).clean_gap
        assert gap.best == "good"
        covered += gap.difference.interval.low <= truth <= gap.difference.interval.high
    # Of 200 at 95 % the standard deviation is 1.5 %; percentile intervals fall short a little.
    assert 0.89 <= covered / 200 <= 0.99, covered


def test_the_seed_alone_decides():
    data = examples({"a": (30, 70, 2.0), "b": (30, 70, 1.0)})
    assert figures_of(data, seed=1) == figures_of(data, seed=1)
    assert figures_of(data, seed=1) != figures_of(data, seed=2)


def test_what_cannot_be_grouped_or_ranked_is_refused():
    generator = np.random.default_rng(0)
    with pytest.raises(DataError, match="expected 2 groups, one an example, got 1"):
        group_figures([1, 0], [1, 0], [1, 0], ["a"], generator=generator)
    with pytest.raises(DataError, match="got 1 NaN"):
        group_figures([1, 0], [1, np.nan], [1, 0], ["a", "a"], generator=generator)
    with pytest.raises(DataError, match="got 2 positives among 2"):
        group_figures([1, 0], [1, 0], [1, 1], ["a", "a"], generator=generator)
    with pytest.raises(ConfigError, match="at least 1 resample, got 0"):
        figures_of(examples({"a": (3, 7, 2.0)}), resamples=0)
