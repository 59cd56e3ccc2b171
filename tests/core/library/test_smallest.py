"""Smallest changes. The judges: linear rankers in closed form, and APGD at fixed epsilons."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import adap
from adap.core.attacks.apgd import APGD
from adap.core.attacks.threat_model import ThreatModel


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 4, 4), dtype=np.uint8)
    logits = images.reshape(30, -1) / 255 @ Linear().weight.detach().numpy()
    return images, (logits > np.quantile(logits, 0.6)).astype(int)


def smallest(w: np.ndarray, x: np.ndarray, gap: float, norm: str) -> float:
    """By a linear program (L-inf, L1), or bisection over the closed form (L2)."""
    room, steep = np.where(w > 0, x, 1 - x), np.abs(w)  # downwards
    if norm == "l1":
        solved = linprog(
            np.ones(len(w)), A_ub=-steep[None], b_ub=[-gap], bounds=[(0, r) for r in room]
        )
        return float(solved.fun)
    low, high = 0.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        if norm == "linf":
            gain = (steep * np.minimum(middle, room)).sum()
        else:
            inside, outside = 0.0, 1e6
            for _ in range(80):
                t = (inside + outside) / 2
                length = np.linalg.norm(np.minimum(t * steep, room))
                inside, outside = (t, outside) if length <= middle else (inside, t)
            gain = (steep * np.minimum(inside * steep, room)).sum()
        low, high = (low, middle) if gain >= gap else (middle, high)
    return high


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_smallest_change_of_a_linear_ranker_is_found(
    norm: Any, data: tuple[np.ndarray, np.ndarray]
) -> None:
    found = adap.smallest_changes(Linear(), *data, k=10, norm=norm)
    w = Linear().weight.detach().numpy().astype(float)
    x = data[0].reshape(30, -1) / 255
    logits = x @ w
    order = np.argsort(-logits)
    assert list(found.rows) == sorted(row for row in order[:10] if data[1][row])
    assert found.threshold == pytest.approx(logits[order[10]], abs=1e-6)
    best = [smallest(w, x[row], logits[row] - found.threshold, norm) for row in found.rows]
    np.testing.assert_array_less(np.array(best) * 0.999 - 1e-6, found.sizes.numpy())
    np.testing.assert_allclose(found.sizes.numpy(), best, rtol=0.06, atol=1e-4)


def test_what_is_found_is_out_at_the_distance_that_is_said(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    found = adap.smallest_changes(Linear(), *data)
    assert found.k == data[1].sum()
    clean = torch.from_numpy(data[0][list(found.rows)]).float() / 255
    assert ((found.images >= 0) & (found.images <= 1)).all()
    assert (Linear()(found.images) < found.threshold).all()
    far = (found.images - clean).abs().flatten(1).amax(dim=1)
    torch.testing.assert_close(far, found.sizes)
    shares = [share for _, share in found.curve()]
    assert shares == sorted(shares, reverse=True)
    assert found.kept(0) == 1
    assert shares[-1] == 0
    middle = float(found.sizes.median())
    assert found.kept(middle) == pytest.approx((found.sizes > middle).double().mean())


def test_on_a_network_it_needs_no_more_than_apgd_at_fixed_epsilons(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(128, 1), nn.Flatten(0)
        )
    logits = network(torch.from_numpy(data[0]).float() / 255).detach().numpy()
    targets = (logits > np.quantile(logits, 0.6)).astype(int)
    found = adap.smallest_changes(network, data[0], targets, k=8)
    x = torch.from_numpy(data[0][list(found.rows)]).float() / 255
    for epsilon in np.quantile(found.sizes, [0.2, 0.5, 0.8]):
        attacked = APGD(100).perturb(
            lambda x: -network(x),
            x,
            threat_model=ThreatModel("linf", float(epsilon)),
            generator=torch.Generator().manual_seed(0),
        )
        kept = float((network(attacked) >= found.threshold).double().mean())
        assert found.kept(float(epsilon)) <= kept + 1.5 / len(x)


def test_what_cannot_be_moved_is_infinitely_far(data: tuple[np.ndarray, np.ndarray]) -> None:
    class Blind(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach()) + 0 * x.sum(dim=(1, 2, 3))

    found = adap.smallest_changes(Blind(), *data, k=5)
    assert found.sizes.isinf().all()
    assert found.kept(1.0) == 1
    assert found.curve() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 30}, "k below the number of images, 30, .*, got 30"),
        ({"k": 0}, "k as a whole number of at least 1, got 0"),
        ({"norm": "patch"}, "norm linf or l2 or l1 for smallest changes, got 'patch'"),
        ({"steps": 0}, "steps as a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    options: dict[str, Any], message: str, data: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(adap.ConfigError, match=message):
        adap.smallest_changes(Linear(), *data, **options)


def test_a_positive_at_the_threshold_itself_moves_by_next_to_nothing() -> None:
    images = np.zeros((4, 1, 8, 8), np.uint8)
    images[:, 0, 0, 0] = [200, 100, 100, 10]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with torch.no_grad():
        model[1].weight.fill_(4)
    found = adap.smallest_changes(model, images, np.array([1, 1, 1, 0]), k=2)
    assert found.kept(0.5) == 0
    assert float(found.sizes.min()) < 1e-3
    assert all(found.kept(epsilon) == kept for epsilon, kept in found.curve())
    assert not [text for text in found.warnings if "no change was found" in text]


def test_what_was_not_found_is_said(data: tuple[np.ndarray, np.ndarray]) -> None:
    class Saturated(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(1e4 * super().forward(x))

    found = adap.smallest_changes(Saturated(), *data, k=5)
    never = int(found.sizes.isinf().sum())
    assert never
    assert any(f"for {never} of " in text for text in found.warnings)
