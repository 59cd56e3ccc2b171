"""The judges: scikit-learn, the formula written out, and every order of the ties on small sets."""

import doctest
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

import adap.core.figures.ranking
from adap.core.errors import DataError
from adap.core.figures.ranking import (
    average_precision,
    chance_ap,
    count_ties,
    floor_ap,
    precision_recall_curve,
    rank_order,
)

# Both sum the same fractions in float64, in different orders.
ROUNDING = 1e-12


@st.composite
def rankings(draw, *, distinct, max_size=40):
    """Scores and targets with both classes; few levels where ties are wanted."""
    level = st.integers(-1000, 1000) if distinct else st.integers(-2, 2)
    scores = draw(st.lists(level, min_size=2, max_size=max_size, unique=distinct))
    targets = draw(st.lists(st.integers(0, 1), min_size=len(scores), max_size=len(scores)))
    assume(0 < sum(targets) < len(targets))
    return np.array(scores, dtype=float), np.array(targets)


@given(rankings(distinct=True))
def test_both_tie_rules_agree_with_scikit_learn_on_distinct_scores(ranking):
    scores, targets = ranking
    expected = average_precision_score(targets, scores)
    assert average_precision(scores, targets) == pytest.approx(expected, rel=ROUNDING)
    assert average_precision(scores, targets, ties="sklearn") == pytest.approx(
        expected, rel=ROUNDING
    )


@given(rankings(distinct=False))
def test_the_sklearn_rule_agrees_with_scikit_learn_on_tied_scores(ranking):
    scores, targets = ranking
    assert average_precision(scores, targets, ties="sklearn") == pytest.approx(
        average_precision_score(targets, scores), rel=ROUNDING
    )


def precision_at_each_positive(ranked_targets):
    """AP of one order, straight from its definition."""
    found, total = 0, 0.0
    for rank, target in enumerate(ranked_targets, start=1):
        if target:
            found += 1
            total += found / rank
    return total / found


@given(rankings(distinct=False, max_size=6))
def test_the_pessimistic_rule_is_the_lowest_ap_over_all_orders_of_the_ties(ranking):
    scores, targets = ranking
    lowest = min(
        precision_at_each_positive(targets[list(order)])
        for order in permutations(range(len(scores)))
        if (np.diff(scores[list(order)]) <= 0).all()
    )
    assert average_precision(scores, targets) == pytest.approx(lowest, rel=ROUNDING)


@pytest.mark.slow
@given(rankings(distinct=False), st.randoms(use_true_random=False))
def test_ap_ignores_the_order_of_the_examples_and_strictly_increasing_maps(ranking, random):
    scores, targets = ranking
    order = random.sample(range(len(scores)), len(scores))
    for ties in ("pessimistic", "sklearn"):
        expected = average_precision(scores, targets, ties=ties)
        assert average_precision(scores[order], targets[order], ties=ties) == expected
        assert average_precision(np.exp(scores) - 7, targets, ties=ties) == expected


@given(rankings(distinct=False), st.data())
def test_pessimistic_ap_never_falls_when_a_positive_rises_or_a_negative_falls(ranking, data):
    scores, targets = ranking
    changed = scores.copy()
    example = data.draw(st.integers(0, len(scores) - 1))
    step = data.draw(st.sampled_from([0.5, 1.0, 2.0]))  # into a gap, into the next tie, beyond
    changed[example] += step if targets[example] else -step
    before, after = average_precision(scores, targets), average_precision(changed, targets)
    assert after >= before - ROUNDING


def test_scikit_learns_tie_rule_is_not_monotone_which_is_why_it_is_not_the_default():
    targets = [0, 1, 1]
    before, after = [1, 0, 0], [1, 1, 0]  # one positive rises and joins the negative
    assert average_precision(before, targets, ties="sklearn") == 2 / 3
    assert average_precision(after, targets, ties="sklearn") == (1 / 2 + 2 / 3) / 2
    assert average_precision(before, targets) == average_precision(after, targets)


def test_ap_is_computed_on_raw_scores_that_a_float32_sigmoid_would_tie():
    # From logit 17 on a float32 sigmoid is exactly 1.
    logits = np.array([20.0, 30.0, 25.0, 40.0])
    targets = np.array([0, 1, 0, 1])
    saturated = (1 / (1 + np.exp(-logits.astype(np.float32)))).astype(np.float32)
    assert average_precision(logits, targets) == 1.0
    assert average_precision(saturated, targets) == floor_ap(2, 4)
    assert (count_ties(logits, targets), count_ties(saturated, targets)) == (0, 2)


@pytest.mark.parametrize(("positives", "examples"), [(1, 1), (1, 5), (2, 4), (3, 8), (5, 5)])
def test_chance_is_the_mean_ap_over_all_orders(positives, examples):
    """Judged by scikit-learn on every way to place the positives."""
    found = []
    for places in combinations(range(examples), positives):
        targets = np.isin(np.arange(examples), places).astype(int)
        found.append(average_precision_score(targets, -np.arange(examples)))
    assert chance_ap(positives, examples) == pytest.approx(np.mean(found))


def test_chance_nears_the_prevalence_of_many_images_from_above():
    above = [chance_ap(n // 10, n) - 0.1 for n in (20, 100, 1_000, 100_000)]
    assert above == sorted(above, reverse=True)
    assert 0 < above[-1] < 2e-4 < 0.1 < above[0]


@pytest.mark.parametrize(("positives", "examples"), [(1, 2), (3, 7), (5, 5), (1000, 10_000)])
def test_the_floor_is_the_ap_of_the_inverted_ranking(positives, examples):
    inverted = [0] * (examples - positives) + [1] * positives
    assert floor_ap(positives, examples) == pytest.approx(
        precision_at_each_positive(inverted), rel=ROUNDING
    )


@given(rankings(distinct=False))
def test_no_ranking_is_below_the_floor_and_the_inverted_one_reaches_it(ranking):
    scores, targets = ranking
    floor = floor_ap(int(targets.sum()), len(targets))
    assert average_precision(scores, targets) >= floor - ROUNDING
    assert average_precision(-targets.astype(float), targets) == pytest.approx(floor, rel=ROUNDING)
    assert average_precision(np.zeros(len(targets)), targets) == pytest.approx(floor, rel=ROUNDING)


@pytest.mark.parametrize(("positives", "examples"), [(0, 3), (4, 3), (-1, 3)])
def test_the_floor_refuses_impossible_counts(positives, examples):
    with pytest.raises(DataError, match=rf"1 and {examples} positives, got {positives}"):
        floor_ap(positives, examples)


@given(rankings(distinct=False))
def test_ties_are_the_positives_that_share_their_score_with_a_negative(ranking):
    scores, targets = ranking
    expected = sum(
        any(scores[i] == scores[j] for j in np.flatnonzero(targets == 0))
        for i in np.flatnonzero(targets)
    )
    assert count_ties(scores, targets) == expected


@given(rankings(distinct=False))
def test_the_area_under_the_precision_recall_steps_is_ap(ranking):
    scores, targets = ranking
    recall, precision = precision_recall_curve(scores, targets)
    assert recall[-1] == 1
    assert (np.diff(recall) > 0).all()
    area = np.diff(recall, prepend=0) @ precision
    assert area == pytest.approx(average_precision(scores, targets), rel=ROUNDING)


def test_rank_order_puts_the_best_first_and_equals_in_the_order_of_their_ids():
    ids = ["d", "b", "ab", "c", "a"]
    assert [ids[i] for i in rank_order([1, 2, 1, np.inf, 1], ids)] == ["c", "b", "a", "ab", "d"]


@given(st.lists(st.integers(0, 3), max_size=20), st.randoms(use_true_random=False))
def test_rank_order_does_not_depend_on_the_order_of_the_input(scores, random):
    examples = list(enumerate(scores))
    ids = [f"{i:02}" for i in range(len(scores))]
    expected = [ids[i] for i in rank_order(scores, ids)]
    assert expected == [ids[i] for i, _ in sorted(examples, key=lambda item: (-item[1], item[0]))]
    shuffled = random.sample(examples, len(examples))
    names = [ids[i] for i, _ in shuffled]
    assert [names[i] for i in rank_order([score for _, score in shuffled], names)] == expected


def test_infinite_scores_are_ranked_like_any_others():
    targets = [1, 0, 1, 0]
    assert average_precision([np.inf, 1, 0, -np.inf], targets) == (1 + 2 / 3) / 2
    assert average_precision([-np.inf, 1, np.inf, np.inf], targets) == (1 / 2 + 2 / 4) / 2
    tied = average_precision([np.inf, np.inf, 0, -np.inf], targets, ties="sklearn")
    assert tied == (1 / 2 + 2 / 3) / 2


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        ([1.0, np.nan], [0, 1], "got 1 NaN"),
        ([1.0, 2.0], [1, 1], "got 2 positives among 2"),
        ([1.0, 2.0], [0, 0], "got 0 positives among 2"),
        ([], [], "got 0 positives among 0"),
        ([1.0, 2.0], [0, 1, 1], r"expected \(2,\) targets, one a score, got \(3,\)"),
        ([[1.0], [2.0]], [[0], [1]], r"shape \(N,\), got \(2, 1\)"),
        ([1.0, 2.0], [-1, 1], r"in \{0, 1\}, got \[-1, 1\]"),
        ([1.0, 2.0], [0.5, 1], r"in \{0, 1\}, got \[0.5, 1.0\]"),
        (["high", "low"], [0, 1], "expected numbers"),
    ],
)
@pytest.mark.parametrize("function", [average_precision, precision_recall_curve, count_ties])
def test_what_cannot_be_ranked_is_refused_with_a_sentence(function, scores, targets, message):
    with pytest.raises(DataError, match=message):
        function(scores, targets)


def test_rank_order_refuses_nan_and_a_missing_id():
    with pytest.raises(DataError, match="got 1 NaN"):
        rank_order([np.nan], ["a"])
    with pytest.raises(DataError, match="expected 2 example ids, one a score, got 1"):
        rank_order([1, 2], ["a"])


def test_the_examples_in_the_documentation_are_true():
    assert doctest.testmod(adap.core.figures.ranking) == (0, 3)
