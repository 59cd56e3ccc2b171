"""The judges: numpy's clip and norm, duality of norms, and the volume of a ball."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adap.core.attacks.threat_model import ThreatModel
from adap.core.errors import ConfigError

NORMS = ("linf", "l2")
ROUNDING = 1e-12  # of float64, over sums of some dozen pixels


def images(seed, *, count=5, low=0.0, high=1.0):
    """(count, 3, 4, 4) float64 pixels in [low, high]."""
    pixels = np.random.default_rng(seed).uniform(low, high, size=(count, 3, 4, 4))
    return torch.from_numpy(pixels)


def distance(x_adv, x, norm):
    """(B,) by numpy."""
    delta = (x_adv - x).flatten(1).numpy()
    return np.linalg.norm(delta, ord={"linf": np.inf, "l2": 2}[norm], axis=1)


LARGEST = {"linf": 1.0, "l2": 3.0}  # in L-inf no pixel can move further, so more is refused


def direction_of(threat_model, gradient):
    """Of a small step from the middle of the box."""
    x = torch.full_like(gradient, 0.5)
    return (threat_model.step(x, gradient, x, size=0.01) - x) / 0.01


def cases(test):
    return given(
        norm=st.sampled_from(NORMS),
        epsilon=st.floats(0, 3),
        reach=st.floats(0.01, 10),
        seed=st.integers(0, 2**32 - 1),
    )(test)


@cases
def test_a_projected_point_is_an_image_within_epsilon_and_projecting_again_moves_nothing(
    norm, epsilon, reach, seed
):
    x, epsilon = images(seed), min(epsilon, LARGEST[norm])
    threat_model = ThreatModel(norm, epsilon)
    x_adv = threat_model.project(x + reach * images(seed + 1, low=-1), x)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (distance(x_adv, x, norm) <= epsilon + ROUNDING).all()
    torch.testing.assert_close(threat_model.project(x_adv, x), x_adv, rtol=0, atol=ROUNDING)


@cases
def test_where_the_box_does_not_bind_the_distance_becomes_the_smaller_of_it_and_epsilon(
    norm, epsilon, reach, seed
):
    # Far from 0 and 1 compared with the reach: scaled down, so that nothing ever touches the box.
    x = images(seed, low=0.45, high=0.55)
    scale = 0.01
    x_adv = x + scale * reach * images(seed + 1, low=-1)
    projected = ThreatModel(norm, scale * epsilon).project(x_adv, x)
    expected = np.minimum(distance(x_adv, x, norm), scale * epsilon)
    np.testing.assert_allclose(distance(projected, x, norm), expected, atol=ROUNDING)


def test_the_linf_projection_is_the_nearest_point_pixel_by_pixel():
    x, far = images(0), images(1, low=-2, high=3)
    low, high = np.maximum(x.numpy() - 0.3, 0), np.minimum(x.numpy() + 0.3, 1)
    projected = ThreatModel("linf", 0.3).project(far, x).numpy()
    np.testing.assert_array_equal(projected, np.clip(far.numpy(), low, high))


@cases
def test_the_projection_is_the_nearest_point_of_the_ball_and_the_box(norm, epsilon, reach, seed):
    # Dark and bright pixels, so that the walls are met.
    x = (2 * images(seed, low=-0.3, high=0.8)).clamp(0, 1)
    far = x + reach * images(seed + 1, low=-1)
    threat_model = ThreatModel(norm, min(epsilon, LARGEST[norm]))
    nearest = threat_model.project(far, x)
    # A point p of a convex set is the nearest to z exactly if (z - p) . (q - p) <= 0 for every
    # q of the set; the q here are random, and the two that go furthest along z - p.
    others = [threat_model.project(images(seed + k, low=-1, high=2), x) for k in range(2, 12)]
    others += [threat_model.project(nearest + k * (far - nearest), x) for k in (0.1, 100)]
    for q in others:
        assert ((far - nearest) * (q - nearest)).sum(dim=(1, 2, 3)).max() <= 1e-9


@pytest.mark.parametrize("norm", NORMS)
def test_epsilon_zero_leaves_the_bits_of_the_image(norm):
    x = images(0).float()
    start = ThreatModel(norm, 0.0).random_start(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(start, x)


def test_random_starts_fill_the_linf_ball_evenly():
    x = torch.full((500, 3, 4, 4), 0.5, dtype=torch.float64)
    start = ThreatModel("linf", 0.2).random_start(x, generator=torch.Generator().manual_seed(0))
    share = np.histogram((start - x).numpy(), bins=10, range=(-0.2, 0.2))[0] / start.numel()
    # 24,000 draws in ten bins: three standard deviations are 0.006.
    np.testing.assert_allclose(share, 0.1, atol=0.006)


def test_random_starts_fill_the_l2_ball_evenly():
    x = torch.full((5000, 1, 1, 3), 0.5, dtype=torch.float64)
    start = ThreatModel("l2", 0.4).random_start(x, generator=torch.Generator().manual_seed(0))
    # The share of the volume within radius r is (r / epsilon)^d.
    share = np.sort((distance(start, x, "l2") / 0.4) ** 3)
    np.testing.assert_allclose(share, np.linspace(0, 1, 5000), atol=0.03)  # Kolmogorov, p < 1e-3
    np.testing.assert_allclose((start - x).mean(dim=0).numpy(), 0, atol=0.01)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_the_steepest_direction_gains_the_dual_norm_of_the_gradient(norm, dual):
    gradient = images(0, low=-1)
    direction = direction_of(ThreatModel(norm, 0.1), gradient)
    np.testing.assert_allclose(distance(direction, 0 * direction, norm), 1)
    gain = (gradient * direction).sum(dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(gain, np.linalg.norm(gradient.flatten(1), ord=dual, axis=1))


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e20, 1e38])
@pytest.mark.parametrize("norm", NORMS)
def test_a_vanishing_or_huge_gradient_keeps_its_direction(norm, scale):
    gradient = images(0, low=-1).float()
    threat_model = ThreatModel(norm, 0.1)
    torch.testing.assert_close(
        direction_of(threat_model, scale * gradient), direction_of(threat_model, gradient)
    )


@pytest.mark.parametrize("norm", NORMS)
def test_nan_and_zero_gradients_move_nothing_and_spoil_no_other_pixel(norm):
    gradient = images(0, low=-1)
    gradient[0] = torch.nan
    gradient[1] = 0
    gradient[2, 0, 0, 0] = torch.nan
    direction = direction_of(ThreatModel(norm, 0.1), gradient)
    assert direction[:2].count_nonzero() == 0
    assert direction[2, 0, 0, 0] == 0
    np.testing.assert_allclose(distance(direction[2:], 0 * direction[2:], norm), 1)


@pytest.mark.parametrize(
    ("norm", "epsilon"),
    [("l3", 0.1), ("l2", -0.1), ("linf", float("nan")), ("l0", 1.5), ("patch", 0.03)],
)
def test_a_threat_that_no_attack_could_honour_is_refused(norm, epsilon):
    with pytest.raises(ConfigError, match=r"expected .*, got"):
        ThreatModel(norm, epsilon)
