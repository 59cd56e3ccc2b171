"""One perturbation for all images. The judges: every perturbation of a grid, and scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

import adap
from adap.core.attacks.universal import Batch, universal_perturbation


class Bent(nn.Module):
    """Of two pixels, with a product: so that one shift moves images by different amounts."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.flatten(1).unbind(1)
        return 2 * first - second + 3 * first * second - 2 * second**2


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (80, 1, 1, 2), dtype=np.uint8)
    logits = Bent()(torch.from_numpy(images).float() / 255).numpy()
    return images, (logits + np.random.default_rng(1).normal(0, 0.3, 80) > 0.6).astype(int)


def shifted(images: np.ndarray, delta: np.ndarray) -> np.ndarray:
    x = torch.from_numpy((images / 255 + delta).clip(0, 1)).float()
    logits: np.ndarray = Bent()(x).numpy()
    return logits


def weighted(images: np.ndarray, targets: np.ndarray) -> list[Batch]:
    """One batch, whose losses are the mean logit of the negatives minus that of the positives."""
    weight = torch.tensor(1 - 2 * targets).float()
    for side in (0, 1):
        weight[targets == side] /= int((targets == side).sum())
    return [(torch.from_numpy(images).float() / 255, lambda x: weight * Bent()(x))]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_perturbation_of_a_grid_closes_the_classes_further(
    norm: Any, data: tuple[np.ndarray, np.ndarray]
) -> None:
    images, targets = data
    epsilon = 0.2
    found = universal_perturbation(
        lambda: weighted(images, targets), norm=norm, epsilon=epsilon, rounds=30
    )

    def gap(delta: np.ndarray) -> float:
        logits = shifted(images, delta.reshape(1, 1, 2))
        return float(logits[targets == 1].mean() - logits[targets == 0].mean())

    steps = np.linspace(-epsilon, epsilon, 41)
    grid = [np.array([a, b]) for a in steps for b in steps]
    inside = [it for it in grid if norm == "linf" or np.linalg.norm(it) <= epsilon]
    least, clean = min(map(gap, inside)), gap(np.zeros(2))
    reached = gap(found.numpy())
    size = np.linalg.norm(found.numpy().ravel(), ord={"linf": np.inf, "l2": 2}[norm])
    assert size <= epsilon + 1e-6
    assert least < clean - 0.05  # there is something to find
    assert clean - reached >= 0.97 * (clean - least)


def test_of_what_was_tried_the_one_that_is_judged_best_is_taken(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    seen: list[float] = []

    def last(losses: torch.Tensor) -> float:
        seen.append(float(losses.sum()))
        return len(seen)

    moved, least = (
        universal_perturbation(
            lambda: weighted(*data), norm="linf", epsilon=0.2, rounds=5, judge=judge
        )
        for judge in (last, lambda losses: -float(losses.sum()))
    )
    assert len(seen) == 6
    (only,) = weighted(*data)
    assert float(only[1]((only[0] + moved).clamp(0, 1)).sum()) == pytest.approx(seen[-1])
    assert float(least.abs().max()) == 0  # each step raises the sum: the start has the lowest


def test_its_ap_is_scikit_learns_of_the_shifted_images_whatever_the_batches(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    images, targets = data
    found = adap.universal(Bent(), images, targets, epsilon=0.2)
    expected = average_precision_score(targets, shifted(images, found.delta.numpy()))
    assert found.ap == pytest.approx(expected, abs=1e-6)
    clean = average_precision_score(targets, shifted(images, np.zeros(1)))
    assert found.clean_ap == pytest.approx(clean, abs=1e-6)
    parts = adap.universal(Bent(), images, targets, epsilon=0.2, batch_size=7)
    torch.testing.assert_close(parts.delta, found.delta)


def test_images_one_by_one_lose_no_less(data: tuple[np.ndarray, np.ndarray]) -> None:
    together = adap.universal(Bent(), *data, epsilon=0.1)
    each = adap.audit(Bent(), *data, epsilon=0.1, preset="quick", checks="off", progress=False)
    assert each.worst_case.ap <= together.ap


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l0", "epsilon": 1}, "norm linf or l2 for one perturbation .*, got 'l0'"),
        ({"rounds": 0}, "rounds as a whole number of at least 1, got 0"),
        ({"epsilon": 8}, "L-inf epsilon of at most 1, .* got 8"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    options: dict[str, Any], message: str, data: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(adap.ConfigError, match=message):
        adap.universal(Bent(), *data, **options)
