"""Intervals of examples in clusters: scikit-learn on copies, a known population, today's bits."""

import numpy as np
import pytest

from adap.core.figures.groups import group_figures
from adap.core.figures.intervals import percentile_interval, resampled_ap, stratified_counts
from adap.core.figures.ranking import average_precision
from adap.core.training.splitting import held_out_of
from tests.core.test_intervals import EXACT, ranking, sklearn_on_copies


def population(clusters, *, of_one, rng, share=0.2, shared=0.9):
    """Scores, targets and names: what a cluster shares is most of the error of its examples."""
    of = np.repeat(np.arange(clusters), of_one)
    targets = (of < share * clusters).astype(int)
    own = np.sqrt(1 - shared) * rng.normal(size=len(of))
    scores = 1.5 * targets + own + np.sqrt(shared) * rng.normal(size=clusters)[of]
    return scores, targets, [str(i) for i in of]


@pytest.mark.parametrize("names", [list("aabbccddeeff"), list("aaaabbbcccdd")])
def test_every_resample_is_of_whole_clusters_and_has_scikit_learns_ap(names):
    scores, _ = ranking(4, 8)
    targets = np.array([1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0])
    drawn = {"resamples": 200, "clusters": names}
    found = resampled_ap({"": scores}, targets, generator=np.random.default_rng(3), **drawn)[""]
    counts = np.empty((200, 12), int)
    pairs = stratified_counts(
        targets, generator=np.random.default_rng(3), among=[np.ones(12, bool)], **drawn
    )
    (positives, negatives), *none = pairs
    assert not none
    counts[:, targets == 1], counts[:, targets == 0] = positives, negatives
    for name in set(names):
        of = counts[:, np.array(names) == name]
        assert (of == of[:, :1]).all()
    holding = {name for name, target in zip(names, targets, strict=True) if target}
    first = [names.index(name) for name in sorted(holding)]
    assert (counts[:, first].sum(axis=1) == len(holding)).all()
    expected = [sklearn_on_copies(scores, targets, row, prevalence=4 / 12) for row in counts]
    np.testing.assert_allclose(found.ap, expected, rtol=0, atol=EXACT)


def test_a_resample_without_negatives_is_drawn_again():
    targets, names = np.array([1, 1, 1, 0, 1]), list("aabbc")
    pairs = list(
        stratified_counts(
            targets,
            resamples=500,
            generator=np.random.default_rng(0),
            clusters=names,
            among=[np.ones(5, bool)],
        )
    )
    negatives = np.concatenate([drawn for _, drawn in pairs])
    assert (negatives > 0).all()
    assert negatives.max() == 3


def test_clusters_of_one_example_each_are_todays_bootstrap_to_the_bit():
    scores, targets = ranking(20, 80)
    names = [f"patient {i}" for i in np.random.default_rng(1).permutation(100)]
    alone, plain = (
        resampled_ap(
            {"": scores},
            targets,
            clusters=clusters,
            resamples=300,
            generator=np.random.default_rng(0),
        )[""]
        for clusters in (names, None)
    )
    for figure in ("ap", "low", "high"):
        np.testing.assert_array_equal(getattr(alone, figure), getattr(plain, figure))


@pytest.mark.slow
def test_where_clusters_share_their_errors_only_drawing_them_whole_covers():
    truth = average_precision(*population(20_000, of_one=5, rng=np.random.default_rng(9))[:2])
    rng, trials = np.random.default_rng(0), 100
    held = {"clusters": 0, "examples": 0}
    for _ in range(trials):
        scores, targets, names = population(150, of_one=8, rng=rng)
        for kind, clusters in (("clusters", names), ("examples", None)):
            ap = resampled_ap(
                {"": scores}, targets, clusters=clusters, resamples=200, generator=rng
            )[""]
            interval = percentile_interval(ap)
            held[kind] += interval.low <= truth <= interval.high
    # Of 100 at 95 % the standard deviation is 2.2.
    assert held["clusters"] >= 90
    assert held["examples"] <= 75


def test_a_gap_between_groups_that_share_clusters_is_of_resamples_of_both_together():
    scores, targets, names = population(60, of_one=8, rng=np.random.default_rng(2), shared=0.8)
    groups = ["left", "right"] * 240
    widths = {}
    for kind, clusters in (
        ("shared", names),
        ("apart", [*map("".join, zip(names, groups, strict=True))]),
    ):
        found = group_figures(
            scores,
            scores,
            targets,
            groups,
            clusters=clusters,
            resamples=400,
            generator=np.random.default_rng(0),
        )
        interval = found.clean_gap.difference.interval
        widths[kind] = interval.high - interval.low
    # what a cluster shares is in both groups, and cancels
    assert widths["shared"] < 0.8 * widths["apart"]


def test_what_is_held_out_is_whole_clusters_of_each_class():
    targets = np.repeat([1, 0, 1], [30, 60, 10])
    names = [str(i) for i in np.arange(100) // 5]
    matrix = np.stack([1 - targets, targets], axis=1)
    held_out = held_out_of(
        matrix, names=["negatives", "positives"], fraction=0.25, seed=0, clusters=names
    )
    for name in set(names):
        assert len(set(held_out[np.array(names) == name])) == 1
    assert (held_out[targets == 1].sum(), held_out[targets == 0].sum()) == (10, 15)
    alone = held_out_of(
        matrix,
        names=["negatives", "positives"],
        fraction=0.25,
        seed=0,
        clusters=[f"c{i}" for i in range(100)],
    )
    plain = held_out_of(matrix, names=["negatives", "positives"], fraction=0.25, seed=0)
    assert (alone == plain).all()
