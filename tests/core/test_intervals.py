"""The judges: scikit-learn on every resample written out, and a model whose AP is known."""

import doctest

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.metrics import average_precision_score

import adap.core.figures.intervals
from adap.core.config.attacks import PGDAttack
from adap.core.config.audits import AuditConfig
from adap.core.errors import ConfigError, DataError
from adap.core.figures import task as task_figures
from adap.core.figures.intervals import percentile_interval, resampled_ap, stratified_counts
from adap.core.figures.ranking import average_precision, floor_ap
from adap.core.scores import Scores
from benchmarks.intervals import KINDS, coverage, true_ap
from tests.core.test_audit import brute_force_ap

EXACT = 1e-12  # sums of at most some hundred float64 numbers below 1


def ranking(positives, negatives, *, seed=0, shift=1.5):
    """Distinct normal scores, in no order, positives higher by `shift`."""
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.repeat([1, 0], [positives, negatives]))
    return rng.normal(size=len(targets)) + shift * targets, targets


def counts_of(targets, *, resamples, seed):
    """(resamples, N) how often each resample holds each example."""
    counts = np.empty((resamples, len(targets)), int)
    generator = np.random.default_rng(seed)
    chunks = list(stratified_counts(targets, resamples=resamples, generator=generator))
    counts[:, targets == 1] = np.concatenate([positives for positives, _ in chunks])
    counts[:, targets == 0] = np.concatenate([negatives for _, negatives in chunks])
    return counts


def sklearn_on_copies(scores, targets, counts, *, prevalence=None):
    """AP of the examples copied out `counts` times, copies kept apart but side by side; weighted
    so that positives are the share `prevalence`."""
    index = np.repeat(np.arange(len(targets)), counts)
    best_first = targets[index[np.argsort(-scores[index], kind="stable")]]
    weight = None
    if prevalence is not None:
        shares = np.array([1 - prevalence, prevalence]) / np.bincount(best_first)
        weight = shares[best_first]
    return average_precision_score(best_first, -np.arange(len(best_first)), sample_weight=weight)


@pytest.mark.slow
@pytest.mark.parametrize(("positives", "negatives"), [(7, 33), (40, 3), (60, 2000)])
def test_every_resample_has_the_ap_that_scikit_learn_gives_it(positives, negatives):
    scores, targets = ranking(positives, negatives)
    other = scores + np.random.default_rng(1).normal(size=len(scores))
    # 2060 examples come in three pieces, the last a short one.
    ap = resampled_ap(
        {"one": scores, "other": other},
        targets,
        resamples=300,
        generator=np.random.default_rng(5),
    )
    counts = counts_of(targets, resamples=300, seed=5)
    for name, logits in (("one", scores), ("other", other)):
        expected = [sklearn_on_copies(logits, targets, row) for row in counts]
        np.testing.assert_allclose(ap[name].ap, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("prevalence", [0.001, 0.05, 0.5, 1])
def test_every_resample_is_carried_over_to_a_prevalence_as_scikit_learn_weights_it(prevalence):
    scores, targets = ranking(12, 48)
    ap = resampled_ap(
        {"": scores},
        targets,
        prevalence=prevalence,
        resamples=100,
        generator=np.random.default_rng(5),
    )
    expected = [
        sklearn_on_copies(scores, targets, row, prevalence=prevalence)
        for row in counts_of(targets, resamples=100, seed=5)
    ]
    np.testing.assert_allclose(ap[""].ap, expected, rtol=0, atol=EXACT)


def test_at_its_own_prevalence_nothing_changes():
    scores, targets = ranking(12, 48)
    own, stated = (
        resampled_ap({"": scores}, targets, prevalence=share, generator=np.random.default_rng(5))[
            ""
        ].ap
        for share in (None, 12 / 60)
    )
    np.testing.assert_allclose(own, stated, rtol=0, atol=EXACT)
    assert len(own) == 2000  # unless told otherwise


@pytest.mark.slow
def test_where_no_positive_is_doubled_it_is_scikit_learns_weighted_ap():
    # scikit-learn lets copies of a positive share the precision of the last; single ones agree.
    scores, targets = ranking(3, 17)
    ap = resampled_ap({"": scores}, targets, resamples=300, generator=np.random.default_rng(5))
    counts = counts_of(targets, resamples=300, seed=5)
    single = np.flatnonzero((counts[:, targets == 1] == 1).all(axis=1))
    assert len(single) > 30  # 3! / 3^3 of 300 are 67
    assert counts[single].max() > 2  # of the negatives
    expected = [average_precision_score(targets, scores, sample_weight=counts[i]) for i in single]
    np.testing.assert_allclose(ap[""].ap[single], expected, rtol=0, atol=EXACT)
    shared = [average_precision_score(targets, scores, sample_weight=row) for row in counts]
    assert (ap[""].ap <= np.array(shared) + EXACT).all()


def test_ties_rank_negatives_first_in_every_resample():
    scores, targets = ranking(12, 28)
    scores = scores.round()  # five or six different scores
    ap = resampled_ap({"": scores}, targets, resamples=100, generator=np.random.default_rng(0))
    for value, row in zip(ap[""].ap, counts_of(targets, resamples=100, seed=0), strict=True):
        copies = np.repeat(np.arange(40), row)
        assert value == pytest.approx(brute_force_ap(scores[copies], targets[copies]), abs=EXACT)


def test_each_class_is_drawn_from_itself_with_replacement():
    targets = ranking(10, 90)[1]
    counts = counts_of(targets, resamples=5000, seed=0)
    assert (counts[:, targets == 1].sum(axis=1) == 10).all()
    assert (counts[:, targets == 0].sum(axis=1) == 90).all()
    # Multinomial: a count has mean 1 and variance 1 - 1/n; 5000 of them leave an error of 0.014
    # and 0.02 standard deviations, and 5 of those are allowed.
    for size, drawn in ((10, counts[:, targets == 1]), (90, counts[:, targets == 0])):
        np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.07)
        np.testing.assert_allclose(drawn.var(axis=0), 1 - 1 / size, atol=0.15)
    assert len(np.unique(counts, axis=0)) == 5000, "a resample came twice"


def test_the_seed_alone_decides():
    scores, targets = ranking(10, 90)

    def drawn(seed):
        generator = np.random.default_rng(seed)
        return resampled_ap({"": scores}, targets, resamples=50, generator=generator)[""].ap

    np.testing.assert_array_equal(drawn(0), drawn(0))
    assert (drawn(0) != drawn(1)).any()


def test_an_inverted_ranking_stays_at_its_floor_and_a_perfect_one_at_1():
    targets = np.repeat([1, 0], [5, 45])
    perfect = -np.arange(50.0)
    ap = resampled_ap(
        {"perfect": perfect, "inverted": -perfect, "constant": np.zeros(50)},
        targets,
        resamples=200,
        generator=np.random.default_rng(0),
    )
    np.testing.assert_array_equal(ap["perfect"].ap, 1)
    np.testing.assert_allclose(ap["inverted"].ap, floor_ap(5, 50), rtol=EXACT)
    np.testing.assert_allclose(ap["constant"].ap, floor_ap(5, 50), rtol=EXACT)


def binormal_ap(shift, prevalence):
    """AP of infinitely many examples: positives N(shift, 1), negatives N(0, 1)."""

    def precision_times_density(s):
        found = prevalence * norm.sf(s - shift)
        return norm.pdf(s - shift) * found / (found + (1 - prevalence) * norm.sf(s))

    return quad(precision_times_density, -8, 12, limit=400)[0]


@pytest.mark.slow
def test_intervals_cover_the_true_ap_and_the_true_difference_as_often_as_they_say():
    # Two models that see the same example with errors of correlation 0.8.
    better, worse, trials = 2.0, 1.5, 300
    truth = {"better": binormal_ap(better, 0.1), "worse": binormal_ap(worse, 0.1)}
    truth["difference"] = truth["better"] - truth["worse"]
    targets = np.repeat([1, 0], [200, 1800])
    covered = dict.fromkeys(truth, 0)
    rng = np.random.default_rng(0)
    for _ in range(trials):
        shared, own, others = rng.normal(size=(3, 2000))
        errors = np.sqrt(0.8) * shared + np.sqrt(0.2) * np.array([own, others])
        ap = resampled_ap(
            {"better": better * targets + errors[0], "worse": worse * targets + errors[1]},
            targets,
            resamples=300,
            generator=rng,
        )
        ap["difference"] = ap["better"] - ap["worse"]
        for name, value in truth.items():
            interval = percentile_interval(ap[name])
            covered[name] += interval.low <= value <= interval.high
    # Of 300 at 95 % the standard deviation is 1.3 %. Not paired, differences would be covered
    # always: their intervals would be more than twice as wide.
    for name, count in covered.items():
        assert count / trials >= 0.91, (name, count)
    assert covered["difference"] / trials <= 0.985


@pytest.mark.parametrize(
    ("positives", "kind", "ap", "widest"),
    [
        (20, "normal", 0.9843, 0.21),
        (50, "normal", 0.995, 0.15),
        (20, "heavy-tailed", 0.6, 0.5),
        (50, "rounded", 0.9, 0.25),
    ],
)
def test_intervals_cover_near_a_perfect_ranking_and_among_heavy_tails(positives, kind, ap, widest):
    ours, plain = coverage(
        KINDS[kind], ap=ap, positives=positives, prevalence=0.1, trials=120, resamples=200
    )
    # Of 120 at 95 % the standard deviation is 2 %, of 4 % it is 1.8 %.
    assert ours.held >= 0.9
    assert max(ours.above, ours.below) <= 0.085
    assert ours.width <= widest
    if ap > 0.9:
        assert plain.held < 0.85  # what the unseen examples are for


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_true_ap_by_integration_is_that_of_very_many_examples(kind):
    rng, shift = np.random.default_rng(0), 2.0
    targets = (np.arange(400_000) < 40_000).astype(int)
    drawn = [kind.positives(shift).draw(40_000, rng), kind.negatives.draw(360_000, rng)]
    scores = np.concatenate(drawn)
    if kind.step:
        scores = np.round(scores / kind.step) * kind.step
    found = average_precision(scores, targets)
    assert true_ap(kind, shift, 0.1) == pytest.approx(found, abs=0.01)


@pytest.mark.slow
def test_an_audit_puts_intervals_around_its_figures_and_a_paired_one_around_the_drop():
    clean, targets = ranking(60, 140)
    hurt = clean - np.random.default_rng(1).uniform(0, 2, 200) * (2 * targets - 1)
    scores = Scores([str(i) for i in range(200)], targets, clean, {"pgd": hurt})

    def figures(seed):
        return task_figures.figures(
            scores,
            positive=["truck"],
            config=AuditConfig(attacks=[PGDAttack()]),
            resampled=task_figures.resample(scores, seed=seed, resamples=250),
        )

    task = figures(3)
    assert figures(3) == task
    assert figures(4).clean.interval != task.clean.interval
    assert task.resamples == 250

    counts = counts_of(targets, resamples=250, seed=3)
    before = np.array([sklearn_on_copies(clean, targets, row) for row in counts])
    after = np.array([sklearn_on_copies(hurt, targets, row) for row in counts])
    # Every image is hurt, so the worst case is the attack itself.
    for figure, resampled, value in (
        (task.clean, before, task.clean.ap),
        (task.attacks["pgd"], after, task.attacks["pgd"].ap),
        (task.worst_case, after, task.worst_case.ap),
        (task.worst_case.drop, before - after, task.clean.ap - task.worst_case.ap),
    ):
        interval = figure.interval
        low, high = np.percentile(resampled, [2.5, 97.5])
        if figure is task.worst_case.drop:
            assert (interval.low, interval.high) == pytest.approx((low, high), abs=EXACT)
        else:  # what was not seen makes it wider, by less than 4 of 60 positives
            assert low - 4 / 60 - 0.1 < interval.low < low
            assert high < interval.high < high + 4 / 60
        assert interval.level == 0.95
        assert interval.low < value < interval.high
    assert task.worst_case.drop.value == task.clean.ap - task.worst_case.ap


def test_the_drop_to_the_worst_case_is_never_negative():
    # AP never rises when margins fall, in whatever resample.
    for seed in range(20):
        clean, targets = ranking(5, 25, seed=seed)
        rng = np.random.default_rng(seed)
        attacked = {"pgd": clean + rng.normal(size=30)}
        scores = Scores([str(i) for i in range(30)], targets, clean, attacked)
        task = task_figures.figures(
            scores,
            positive=["truck"],
            config=AuditConfig(attacks=[PGDAttack()]),
            resampled=task_figures.resample(scores, resamples=100),
        )
        assert task.worst_case.drop.interval.low >= -EXACT


def test_what_cannot_be_resampled_is_refused():
    generator = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="at least 1 resample, got 0"):
        resampled_ap({"": [1, 0]}, [1, 0], resamples=0, generator=generator)
    with pytest.raises(DataError, match="got 1 NaN"):
        resampled_ap({"": [1, np.nan]}, [1, 0], generator=generator)
    with pytest.raises(DataError, match="got 2 positives among 2"):
        resampled_ap({"": [1, 0]}, [1, 1], generator=generator)
    for share in (0, 1.5):
        with pytest.raises(ConfigError, match=f"above 0 and at most 1, got {share}"):
            resampled_ap({"": [1, 0]}, [1, 0], prevalence=share, generator=generator)
    for level in (0, 1, 95):
        with pytest.raises(ConfigError, match=f"between 0 and 1, got {level}"):
            percentile_interval(np.zeros(3), level=level)


def test_the_example_in_the_documentation_is_true():
    assert doctest.testmod(adap.core.figures.intervals) == (0, 3)
