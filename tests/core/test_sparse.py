"""The judges: every place and every colour of tiny images, linear programs for L1, and
scikit-learn's AP on models that hide their gradients."""

import doctest
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from sklearn.metrics import average_precision_score

import adap.core.attacks.sparse
from adap.core.attacks.base import PerImage
from adap.core.attacks.pgd import PGD
from adap.core.attacks.sparse import SparseSearch, alpha_of
from adap.core.attacks.threat_model import ThreatModel
from adap.core.errors import ConfigError

EPSILONS = {"l1": 1.3, "l0": 2, "patch": 2}
every_norm = pytest.mark.parametrize("norm", EPSILONS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, count=5, seed=7):
    pixels = torch.rand(count, *shape, dtype=torch.float64, generator=generator(seed))
    pixels[pixels < 0.2], pixels[pixels > 0.8] = 0, 1  # as drawings have them
    return pixels


def weights(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=generator(1))


def run(attack, loss_fn, x, norm, *, epsilon=None, seed=0):
    threat_model = ThreatModel(norm, EPSILONS[norm] if epsilon is None else epsilon)
    return attack.perturb(loss_fn, x, threat_model=threat_model, generator=generator(seed))


def candidates(x, norm, *, queries, loss_fn, epsilon=None):
    """(queries, B, C, H, W) every image that the model was shown."""
    shown = []

    def watched(x_adv):
        shown.append(x_adv.clone())
        return loss_fn(x_adv)

    run(SparseSearch(queries), watched, x, norm, epsilon=epsilon)
    return torch.stack(shown)


def curved(channels, side):
    hidden, out = weights(8, channels * side**2), weights(8)
    return lambda x: torch.tanh(2 * (x - 0.5).flatten(1) @ hidden.T) @ out


def supports(norm, side):
    """Every set of places that may change, as a list of (row, column)."""
    places = list(itertools.product(range(side), repeat=2))
    if norm == "l0":
        return list(itertools.combinations(places, EPSILONS["l0"]))
    reach = range(side - EPSILONS["patch"] + 1)
    inside = list(itertools.product(range(EPSILONS["patch"]), repeat=2))
    return [[(r + i, c + j) for i, j in inside] for r in reach for c in reach]


@pytest.mark.parametrize(("norm", "channels"), [("l0", 1), ("l0", 2), ("patch", 1)])
def test_the_best_of_all_places_and_all_colours_is_found(norm, channels):
    x, loss_fn = images(channels, 3, 3, count=12), curved(channels, 3)
    best = torch.full((len(x),), -torch.inf, dtype=x.dtype)
    for support in supports(norm, 3):
        rows, columns = zip(*support, strict=True)
        for colours in itertools.product((0.0, 1.0), repeat=channels * len(support)):
            changed = x.clone()
            painted = torch.tensor(colours, dtype=x.dtype).view(channels, -1)
            changed[:, :, list(rows), list(columns)] = painted
            best = torch.maximum(best, loss_fn(changed))
    starts = [loss_fn(run(SparseSearch(120), loss_fn, x, norm, seed=seed)) for seed in range(5)]
    found = torch.stack(starts).amax(dim=0)
    assert (found <= best + 1e-9).all()
    assert (found > best - 1e-9).sum() >= 8  # of 12: a search may end where no one move helps


def test_most_of_a_linear_models_worst_case_in_l1_is_reached():
    w, x = weights(2, 4, 4), images(2, 4, 4, count=10)
    loss_fn = lambda x: (w * x).sum(dim=(1, 2, 3))  # noqa: E731
    gains = loss_fn(run(SparseSearch(600), loss_fn, x, "l1")) - loss_fn(x)
    for image, gain in zip(x, gains, strict=True):
        room = torch.where(w > 0, 1 - image, image).flatten().numpy()
        slopes = w.abs().flatten().numpy()
        solved = linprog(
            -slopes,
            A_ub=np.ones((1, len(slopes))),
            b_ub=[EPSILONS["l1"]],
            bounds=[(0, r) for r in room],
        )
        assert -solved.fun * 0.95 < float(gain) < -solved.fun + 1e-9


@every_norm
@pytest.mark.parametrize("rounded", ["pixels", "logits"])
def test_a_model_that_hides_its_gradients_stops_pgd_and_does_not_stop_the_search(rounded, norm):
    w, x = weights(1, 6, 6).float(), images(1, 6, 6, count=80).float()

    def model(x):
        if rounded == "pixels":
            return (w * (x * 20).round() / 20).sum(dim=(1, 2, 3))
        return ((w * x).sum(dim=(1, 2, 3)) * 20).round() / 20

    logits = (w * x).sum(dim=(1, 2, 3))
    targets = (logits > logits.median()).long()

    def ap(attack):
        x_adv = run(attack, lambda x: (1 - 2 * targets) * model(x), x, norm, epsilon=3)
        return average_precision_score(targets, model(x_adv))

    assert average_precision_score(targets, model(x)) > 0.95
    assert ap(PGD(20, 0.3)) > 0.85
    assert ap(SparseSearch(150)) < 0.5


@every_norm
@pytest.mark.parametrize("shape", [(1, 4, 7), (3, 5, 5)])
def test_what_is_shown_is_an_image_within_the_threat(norm, shape):
    x, loss_fn = images(*shape), lambda x: x.sum(dim=(1, 2, 3))
    shown = candidates(x, norm, queries=80, loss_fn=loss_fn)
    assert len(shown) == 80
    assert ((shown >= 0) & (shown <= 1)).all()
    change = shown - x
    if norm == "l1":
        assert (change.abs().sum(dim=(2, 3, 4)) <= EPSILONS["l1"] + 1e-9).all()
        return
    places = (change != 0).any(dim=2)
    assert (places.sum(dim=(2, 3)) <= {"l0": 2, "patch": 4}[norm]).all()
    if norm == "patch":
        for side in (2, 3):  # from the first changed row to the last, and columns likewise
            lines = places.any(dim=side)
            at = torch.arange(lines.shape[-1])
            last = torch.where(lines, at, -1).amax(dim=-1)
            first = torch.where(lines, at, 99).amin(dim=-1)
            assert (last - first < 2)[lines.any(dim=-1)].all()


@every_norm
def test_l1_and_l0_spend_what_they_have_and_hardly_a_query_shows_the_best_again(norm):
    x = images(1, 6, 6, count=4)
    shown = candidates(x, norm, queries=60, loss_fn=lambda x: torch.zeros(len(x), dtype=x.dtype))
    change = (shown - x).abs().flatten(2)
    if norm == "l1":
        torch.testing.assert_close(change.sum(dim=2), torch.full((60, 4), 1.3, dtype=x.dtype))
    if norm == "l0":
        assert (change > 0).sum(dim=2).float().mean() > 1.9  # an old place may have its colour
    # A patch may be stopped by the edge, and a channel that is first be put first again.
    told = (shown[1:] != shown[0]).flatten(2).any(dim=2).float().mean()
    assert told >= {"l0": 1, "l1": 0.95, "patch": 0.9}[norm]


@every_norm
def test_more_than_an_image_has_leaves_every_pixel_free(norm):
    x, w = images(1, 3, 3), weights(1, 3, 3)
    loss_fn = lambda x: (w * x).sum(dim=(1, 2, 3))  # noqa: E731
    found = loss_fn(run(SparseSearch(300), loss_fn, x, norm, epsilon={"patch": 3}.get(norm, 9)))
    torch.testing.assert_close(found, w.clamp_min(0).sum().expand(len(x)))
    assert run(SparseSearch(3), loss_fn, x, norm, epsilon=0).equal(x)


@every_norm
def test_what_is_found_for_an_image_depends_on_no_other_and_on_the_seed(norm):
    x, loss_fn = images(3, 5, 5), curved(3, 5)
    found = run(SparseSearch(40), loss_fn, x, norm)
    beside = x.clone()
    beside[1:] = images(3, 5, 5, seed=8)[1:]
    assert run(SparseSearch(40), loss_fn, beside, norm)[0].equal(found[0])
    assert not run(SparseSearch(40), loss_fn, x, norm, seed=1).equal(found)


def test_patience_gives_up_on_an_image_and_asks_the_model_less():
    x, shown = images(1, 5, 5), []

    def function(x, each):
        shown.append(len(x))
        return torch.zeros(len(x), dtype=x.dtype)

    run(SparseSearch(100, patience=8), PerImage(function, torch.arange(len(x))), x, "l0")
    assert sum(shown) < 100 * len(x) / 4


def test_the_schedule_is_the_authors():
    marks = [50, 200, 500, 1000, 2000, 4000, 6000, 8000, 10_000]
    for mark, divisor in zip(marks, [2, 4, 5, 6, 8, 10, 12, 15, 20], strict=True):
        assert alpha_of(mark, 10_000) == alpha_of(mark // 10, 1000) == 0.3 / divisor
    assert doctest.testmod(adap.core.attacks.sparse) == (0, 1)


def test_what_it_cannot_search_is_refused():
    with pytest.raises(ConfigError, match="at least 1 query, got 0"):
        SparseSearch(0)
    with pytest.raises(ConfigError, match="sparse search with norm l1 or l0 or patch, got linf"):
        SparseSearch(5).perturb(
            curved(1, 3),
            images(1, 3, 3),
            threat_model=ThreatModel("linf", 0.1),
            generator=generator(),
        )
