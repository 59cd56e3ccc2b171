"""L1, l0 and patches. The judges: SciPy's solvers, brute force, closed forms of linear models."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from adap.core.attacks.apgd import APGD
from adap.core.attacks.fgsm import FGSM
from adap.core.attacks.noise import Noise
from adap.core.attacks.pgd import PGD
from adap.core.attacks.threat_model import ThreatModel
from adap.core.errors import ConfigError

EPSILONS = {"l1": 1.5, "l0": 2, "patch": 2}
NORMS = tuple(EPSILONS)
every_norm = pytest.mark.parametrize("norm", NORMS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(seed=0, *, count=5, low=0.0, high=1.0):
    """(count, 2, 4, 4) float64"""
    pixels = np.random.default_rng(seed).uniform(low, high, (count, 2, 4, 4))
    return torch.from_numpy(pixels)


def of(norm):
    return ThreatModel(norm, EPSILONS[norm])


def windows(side, height=4, width=4):
    for top in range(height - side + 1):
        for left in range(width - side + 1):
            mask = np.zeros((height, width), bool)
            mask[top : top + side, left : left + side] = True
            yield mask


def supports(norm):
    """Every set of places that may be changed."""
    if norm == "patch":
        return list(windows(int(EPSILONS["patch"])))
    masks = []
    for places in combinations(range(16), EPSILONS["l0"]):
        mask = np.zeros(16, bool)
        mask[list(places)] = True
        masks.append(mask.reshape(4, 4))
    return masks


def within(x_adv, x, norm):
    delta = (x_adv - x).numpy()
    assert (x_adv.min(), x_adv.max()) >= (0, 0)
    assert x_adv.max() <= 1
    changed = (delta != 0).any(axis=1)
    for i in range(len(x)):
        if norm == "l1":
            assert np.abs(delta[i]).sum() <= EPSILONS["l1"] + 1e-9
        elif norm == "l0":
            assert changed[i].sum() <= EPSILONS["l0"]
        else:
            assert any(not changed[i][~mask].any() for mask in windows(2))


@pytest.mark.parametrize("reach", [0.1, 1.0, 5.0])
def test_the_l1_projection_is_scipys_nearest_point(reach):
    x = (2 * images(0, count=2, low=-0.3, high=0.8)).clamp(0, 1)[:, :1, :2, :]
    far = x + reach * images(1, count=2, low=-1)[:, :1, :2, :]
    found = ThreatModel("l1", 0.7).project(far, x).numpy()
    for ours, z, base in zip(found, far.numpy(), x.numpy(), strict=True):
        z, base = z.ravel(), base.ravel()
        # the changes upwards and downwards apart, so that their sum is linear
        solved = minimize(
            lambda d, z=z, base=base: ((base + d[:8] - d[8:] - z) ** 2).sum(),
            np.zeros(16),
            bounds=[(0, 1 - b) for b in base] + [(0, b) for b in base],
            constraints={"type": "ineq", "fun": lambda d: 0.7 - d.sum()},
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
        )
        np.testing.assert_allclose(
            ((ours.ravel() - z) ** 2).sum(), solved.fun, rtol=1e-6, atol=1e-9
        )
        np.testing.assert_allclose(
            ours.ravel(), base + solved.x[:8] - solved.x[8:], rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("norm", ["l0", "patch"])
def test_the_projection_on_places_is_the_nearest_of_all_that_are_allowed(norm):
    x, far = images(0), images(1, low=-1, high=2)
    found = of(norm).project(far, x).numpy()
    for ours, z, base in zip(found, far.numpy(), x.numpy(), strict=True):
        distances = [
            ((np.where(mask, z.clip(0, 1), base) - z) ** 2).sum() for mask in supports(norm)
        ]
        assert ((ours - z) ** 2).sum() == pytest.approx(min(distances))


@every_norm
def test_what_is_projected_is_allowed_and_stays_where_it_is(norm):
    x = images(0)
    there = of(norm).project(x + images(1, low=-2, high=2), x)
    within(there, x, norm)
    torch.testing.assert_close(of(norm).project(there, x), there, rtol=0, atol=1e-12)
    assert torch.equal(of(norm).project(x, x), x)


@every_norm
def test_random_starts_are_allowed_and_differ(norm):
    x = images(0, count=50)
    start = of(norm).random_start(x, generator=generator())
    within(start, x, norm)
    assert ((start - x).abs().sum(dim=(1, 2, 3)) > 0).all()
    other = of(norm).random_start(x, generator=generator(1))
    assert (start != other).flatten(1).any(dim=1).all()


def test_random_starts_fill_the_l1_ball_evenly():
    x = torch.full((4000, 1, 1, 3), 0.5, dtype=torch.float64)
    start = ThreatModel("l1", 0.4).random_start(x, generator=generator())
    far = (start - x).abs().sum(dim=(1, 2, 3)).numpy()
    # the share of the volume within radius r is (r / epsilon)^d
    np.testing.assert_allclose(np.sort((far / 0.4) ** 3), np.linspace(0, 1, 4000), atol=0.03)
    np.testing.assert_allclose((start - x).mean(dim=0).numpy(), 0, atol=0.01)


def linear_best(w, x, norm):
    """(B,) the highest w . x' that is allowed: by a linear program, or over all sets of places."""
    found = []
    for base in x.numpy():
        gain = np.where(w > 0, w * (1 - base), -w * base)
        if norm == "l1":
            # spend epsilon on the changes, each up to its wall: SciPy's linear program
            room = np.where(w > 0, 1 - base, base).ravel()
            solved = linprog(
                -np.abs(w).ravel(),
                A_ub=np.ones((1, w.size)),
                b_ub=[EPSILONS["l1"]],
                bounds=[(0, r) for r in room],
            )
            best = -solved.fun
        else:
            best = max((gain * mask).sum() for mask in supports(norm))
        found.append((w * base).sum() + best)
    return np.array(found)


@every_norm
@pytest.mark.parametrize(
    ("attack", "tolerance"),
    [(FGSM(), 1e-9), (PGD(20, 0.3), 0.02), (APGD(40), 0.01)],
    ids=["fgsm", "pgd", "apgd"],
)
def test_the_worst_case_of_a_linear_model_is_reached(attack, tolerance, norm):
    w = np.random.default_rng(7).normal(size=(2, 4, 4))
    x = images(3)
    weight = torch.from_numpy(w)

    def loss(x):
        return (x * weight).sum(dim=(1, 2, 3))

    found = attack.perturb(loss, x, threat_model=of(norm), generator=generator())
    within(found, x, norm)
    best, clean = linear_best(w, x, norm), loss(x).numpy()
    reached = (loss(found).numpy() - clean) / (best - clean)
    assert (reached <= 1 + 1e-9).all()
    assert (reached >= 1 - tolerance).all()


@every_norm
def test_a_search_beats_one_step_and_noise_on_a_network(norm):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(2, 8, 3, padding=1),
            torch.nn.Tanh(),
            torch.nn.Flatten(),
            torch.nn.Linear(128, 1),
            torch.nn.Flatten(0),
        ).double()
    x = images(5, count=30)
    mean = {}
    for name, attack in (("noise", Noise()), ("fgsm", FGSM()), ("apgd", APGD(30))):
        found = attack.perturb(network, x, threat_model=of(norm), generator=generator())
        within(found, x, norm)
        mean[name] = float((network(found) - network(x)).detach().mean())
    assert mean["noise"] < mean["fgsm"] < mean["apgd"]


@pytest.mark.parametrize("norm", ["l0", "patch"])
def test_a_search_comes_near_the_best_of_all_places_on_a_network(norm):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(2, 4, 3, padding=1),
            torch.nn.Tanh(),
            torch.nn.Flatten(),
            torch.nn.Linear(64, 1),
            torch.nn.Flatten(0),
        ).double()
    x = images(6, count=3)
    found = APGD(40, restarts=2).perturb(network, x, threat_model=of(norm), generator=generator())
    masks = torch.from_numpy(np.stack(supports(norm)))[:, None]
    for i in range(len(x)):
        # each set of places by itself: ascent from the image and from black and white corners
        base = x[i : i + 1].expand(len(masks), -1, -1, -1)
        best = torch.full((len(masks),), -torch.inf, dtype=torch.float64)
        for start in (base, torch.zeros_like(base), torch.ones_like(base)):
            at = torch.where(masks, start, base)
            for _ in range(30):
                at = at.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(network(at).sum(), at)
                at = torch.where(masks, (at + 0.1 * gradient.sign()).clamp(0, 1), base)
                best = best.maximum(network(at).detach())
        gain = float((best.max() - network(x[i : i + 1])).detach())
        reached = float((network(found[i : i + 1]) - network(x[i : i + 1])).detach())
        assert reached > 0.85 * gain


@every_norm
def test_epsilon_zero_and_a_flat_function_leave_the_image(norm):
    x = images(0)
    nothing = ThreatModel(norm, 0)
    assert torch.equal(nothing.random_start(x, generator=generator()), x)
    assert torch.equal(nothing.furthest(x, images(1, low=-1)), x)
    assert torch.equal(of(norm).step(x, torch.zeros_like(x), x, size=0.1), x)
    assert torch.equal(of(norm).step(x, torch.full_like(x, torch.nan), x, size=0.1), x)


@pytest.mark.parametrize(
    ("norm", "epsilon", "message"),
    [
        ("l0", 0.03, "whole number of pixels for norm l0, got 0.03"),
        ("patch", 2.5, "whole number of pixels along a side of the patch for norm patch, got 2.5"),
        ("l3", 1, "expected norm 'linf', 'l2', 'l1', 'l0', 'patch', got 'l3'"),
    ],
)
def test_an_epsilon_in_another_norms_unit_is_refused(norm, epsilon, message):
    with pytest.raises(ConfigError, match=message):
        ThreatModel(norm, epsilon)
