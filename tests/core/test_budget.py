"""The judges: every set of images tried out, and AP computed anew after every change."""

import doctest
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import adap.core.figures.budget
from adap.core.errors import ConfigError, DataError
from adap.core.figures.budget import budget_curve, greedy_changes
from adap.core.figures.ranking import average_precision, floor_ap

ROUNDING = 1e-12  # AP of at most a few hundred examples, summed in another order
ROLES = ("hide_positives", "push_negatives", "both")


@st.composite
def attacked(draw, max_size=14):
    """Clean and worst-case scores on few levels, so that both tie, and targets of both classes."""
    clean = np.array(draw(st.lists(st.integers(-4, 4), min_size=2, max_size=max_size)), float)
    drops = st.lists(st.integers(0, 5), min_size=len(clean), max_size=len(clean))
    targets = np.array(draw(st.lists(st.integers(0, 1), min_size=len(clean), max_size=len(clean))))
    assume(0 < targets.sum() < len(targets))
    return clean, clean - (2 * targets - 1) * np.array(draw(drops)), targets


def random_attack(rng, *, examples):
    """The same with real scores, or whole ones; a tenth of the images does not move."""
    positives = int(np.clip(rng.choice([0.2, 0.5, 0.8]) * examples, 1, examples - 1))
    targets = rng.permutation(np.repeat([1, 0], [positives, examples - positives]))
    clean = rng.normal(size=examples) + rng.choice([0, 1, 2, 3]) * targets
    drop = rng.exponential(rng.choice([0.5, 1, 3]), examples) * (rng.random(examples) < 0.9)
    worst = clean - (2 * targets - 1) * drop
    if rng.random() < 1 / 3:
        clean, worst = clean.round(), worst.round()
    return clean, worst, targets


def allowed(clean, worst, targets, role):
    """The worst-case scores of the images that the role may change, the clean ones of others."""
    may_change = {"hide_positives": targets == 1, "push_negatives": targets == 0}
    return np.where(may_change.get(role, True), worst, clean)


def least_ap(clean, reached, targets, *, images):
    """The optimum, by trying every set of so many images (or of all, if fewer can change)."""
    changeable = np.flatnonzero(clean != reached)
    least = 1.0
    for chosen in combinations(changeable, min(images, len(changeable))):
        scores = clean.copy()
        scores[list(chosen)] = reached[list(chosen)]
        least = min(least, average_precision(scores, targets))
    return least


@given(attacked(), st.sampled_from(ROLES))
def test_every_step_changes_the_image_that_lowers_ap_most(attack, role):
    clean, _, targets = attack
    reached = allowed(*attack, role)
    changes, ap = greedy_changes(clean, reached, targets, images=len(clean))
    assert sorted(changes) == np.flatnonzero(clean != reached).tolist()
    scores = clean.copy()
    assert ap[0] == average_precision(scores, targets)
    for step, image in enumerate(changes):
        after = []
        for other in changes[step:]:
            tried = scores.copy()
            tried[other] = reached[other]
            after.append(average_precision(tried, targets))
        scores[image] = reached[image]
        assert ap[step + 1] == average_precision(scores, targets)
        assert ap[step + 1] <= min(after) + ROUNDING


def test_every_step_is_right_among_hundreds_of_distinct_scores_too():
    rng = np.random.default_rng(0)
    for positives in (3, 60, 297):
        targets = rng.permutation(np.repeat([1, 0], [positives, 300 - positives]))
        clean = rng.normal(size=300) + 2 * targets
        worst = clean - rng.uniform(0, 3, 300) * (2 * targets - 1)
        changes, ap = greedy_changes(clean, worst, targets, images=12)
        scores = clean.copy()
        for step, image in enumerate(changes):
            after = []
            for other in set(range(300)) - set(changes[:step].tolist()):
                tried = scores.copy()
                tried[other] = worst[other]
                after.append(average_precision(tried, targets))
            scores[image] = worst[image]
            assert ap[step + 1] == average_precision(scores, targets)
            assert ap[step + 1] <= min(after) + ROUNDING


@given(attacked())
def test_one_image_leaves_the_optimum_and_all_of_them_the_worst_case(attack):
    clean, worst, targets = attack
    one, every, more = budget_curve(clean, worst, targets, budgets=[1, len(clean), 10**9])
    for role in ROLES:
        reached = allowed(*attack, role)
        least = least_ap(clean, reached, targets, images=1)
        assert getattr(one, role) == pytest.approx(least, abs=ROUNDING)
        assert getattr(every, role) == average_precision(reached, targets)
        assert getattr(more, role) == getattr(every, role)
    assert (one.images, every.images, more.images) == (1, len(clean), 10**9)


@given(attacked(max_size=40))
def test_more_images_or_more_freedom_never_leave_more_ap(attack):
    curve = budget_curve(*attack, budgets=range(1, len(attack[0]) + 1))
    for role in ROLES:
        left = [average_precision(attack[0], attack[2])] + [getattr(point, role) for point in curve]
        assert (np.diff(left) <= 0).all()  # not even by rounding
    assert all(point.both <= min(point.hide_positives, point.push_negatives) for point in curve)


@settings(max_examples=30)
@given(attacked(max_size=8))
def test_greedy_is_never_below_the_optimum(attack):
    clean, _, targets = attack
    curve = budget_curve(*attack, budgets=[2, 3])
    for point in curve:
        for role in ROLES:
            reached = allowed(*attack, role)
            least = least_ap(clean, reached, targets, images=point.images)
            assert getattr(point, role) >= least - ROUNDING


def test_greedy_is_mostly_the_optimum():
    # benchmarks/budget.py measures the same shares on many more rankings.
    rng = np.random.default_rng(0)
    attacks = [random_attack(rng, examples=int(rng.integers(5, 10))) for _ in range(60)]
    for role, share in (("hide_positives", 0.97), ("push_negatives", 0.97), ("both", 0.92)):
        for images in (2, 3):
            optimal = [
                getattr(budget_curve(*attack, budgets=[images])[0], role)
                <= least_ap(attack[0], allowed(*attack, role), attack[2], images=images) + ROUNDING
                for attack in attacks
            ]
            assert np.mean(optimal) >= share, (role, images, np.mean(optimal))


def test_one_image_can_ruin_ap():
    # Figure 1 of the paper at its sharpest: a single positive, and one of 1000 negatives passes it.
    targets = np.repeat([1, 0], [1, 1000])
    clean = np.linspace(1, 0, 1001)
    worst = clean.copy()
    worst[1000] = 2
    assert budget_curve(clean, worst, targets, budgets=[1])[0].both == average_precision(
        worst, targets
    )
    assert average_precision(clean, targets) == 1
    assert average_precision(worst, targets) == 0.5


def test_positives_that_fall_to_the_bottom_are_hidden_from_the_top():
    # The rest keeps its false alarms, and moves up: least is left where those with fewest are gone.
    rng = np.random.default_rng(0)
    targets = np.repeat([1, 0], [12, 40])
    clean = rng.normal(size=52) + targets
    best_first = np.flatnonzero(targets)[np.argsort(-clean[:12])]
    for images in (1, 5, 11, 12):
        bottom = np.where(np.isin(np.arange(52), best_first[:images]), -9.0, clean)
        point, *_ = budget_curve(clean, np.where(targets, -9.0, clean), targets, budgets=[images])
        assert point.hide_positives == average_precision(bottom, targets)
    assert point.hide_positives == floor_ap(12, 52)


def test_where_no_image_alone_does_harm_the_first_is_one_that_can_do_it_with_another():
    # Only the fourth and the fifth image can meet: 3 -> 1.5 and 0 -> 2.
    targets = np.array([1, 1, 1, 1, 0, 0, 0])
    clean = np.array([9.0, 8, 7, 3, 0, -1, -2])
    worst = np.array([8.5, 7.5, 6.5, 1.5, 2, -0.5, -1.5])
    one, two = budget_curve(clean, worst, targets, budgets=[1, 2])
    assert one.both == 1
    assert two.both == average_precision(worst, targets) == (3 + 4 / 5) / 4
    assert set(greedy_changes(clean, worst, targets, images=2)[0]) == {3, 4}


def test_whoever_may_change_both_does_at_least_the_harm_of_either():
    # Pushing the first negative over both positives leaves 7/12, and then 1/2. Hiding both is best.
    targets = np.array([1, 1, 0, 0])
    clean, worst = np.array([3.0, 2, 1, 0]), np.array([-1.0, -2, 5, 1])
    assert greedy_changes(clean, worst, targets, images=2)[1][-1] == 1 / 2
    one, two = budget_curve(clean, worst, targets, budgets=[1, 2])
    assert one.both == one.push_negatives == (1 / 2 + 2 / 3) / 2
    assert two.both == two.hide_positives == floor_ap(2, 4)


def test_infinite_scores_and_images_that_cannot_change_have_their_place():
    targets = np.array([1, 0, 1, 0])
    clean = np.array([np.inf, 1, 0, -np.inf])
    worst = np.array([-np.inf, np.inf, 0, np.inf])
    one, four = budget_curve(clean, worst, targets, budgets=[1, 4])
    assert one.hide_positives == average_precision([-np.inf, 1, 0, -np.inf], targets)
    assert one.push_negatives == average_precision([np.inf, 1, 0, np.inf], targets)
    assert four.both == average_precision(worst, targets)
    same = budget_curve(clean, clean, targets, budgets=[3])[0]
    assert same.hide_positives == same.push_negatives == same.both == (1 + 2 / 3) / 2
    assert budget_curve(clean, worst, targets, budgets=[]) == []


def test_what_is_no_budget_or_no_worst_case_is_refused():
    with pytest.raises(ConfigError, match="at least 1 image, got 0"):
        budget_curve([1, 0], [0, 1], [1, 0], budgets=[2, 0])
    with pytest.raises(DataError, match="got 2 on the other side"):
        budget_curve([1, 0, 0, 0], [2, -1, 1, 0], [1, 0, 0, 0], budgets=[1])
    with pytest.raises(DataError, match="got 1 NaN"):
        budget_curve([1, 0], [np.nan, 1], [1, 0], budgets=[1])
    with pytest.raises(DataError, match=r"expected \(3,\) targets, one a score, got \(2,\)"):
        budget_curve([1, 0], [0, 1, 2], [1, 0], budgets=[1])
    with pytest.raises(DataError, match="got 0 positives"):
        budget_curve([1, 0], [1, 0], [0, 0], budgets=[1])


def test_the_example_in_the_documentation_is_true():
    assert doctest.testmod(adap.core.figures.budget) == (0, 2)
