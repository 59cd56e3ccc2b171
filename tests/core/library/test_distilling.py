"""A surrogate of a black box. The judges: scikit-learn's regression behind the black box, its own
count of what it was shown, and scikit-learn's AP."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import nn

import adap
from adap.core.rendering.card import card


class Box:
    """Scores of a fitted regression, and how many images it was asked about."""

    def __init__(self, fitted: LogisticRegression) -> None:
        self.fitted = fitted
        self.shown: list[bytes] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.shown += [image.tobytes() for image in images]
        return self.fitted.decision_function(images.reshape(len(images), -1))


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32), (labels == 8).astype(int)


@pytest.fixture(scope="module")
def fitted(digits: tuple[np.ndarray, np.ndarray]) -> LogisticRegression:
    images, targets = digits
    return LogisticRegression(C=0.1).fit(images[:700].reshape(700, -1), targets[:700])


@pytest.fixture(scope="module")
def distilled(digits, fitted) -> tuple[Box, adap.Distilled]:
    box = Box(fitted)
    return box, adap.distil(box, digits[0][700:900], queries=500, epochs=20, epsilon=0.1)


@pytest.mark.slow
def test_the_budget_is_what_the_black_box_was_shown(distilled) -> None:
    box, found = distilled
    assert found.queries == len(box.shown) == 500
    assert found.held_out >= 19


def test_the_surrogate_ranks_as_the_black_box_does_and_leans_as_it_does(
    digits, fitted, distilled
) -> None:
    _, found = distilled
    x = torch.from_numpy(digits[0][900:1000]).requires_grad_()
    scores = found(x)
    true = fitted.decision_function(digits[0][900:1000].reshape(100, -1))
    assert np.corrcoef(scores.detach(), true)[0, 1] > 0.95
    assert found.correlation > 0.95
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    leaning = nn.functional.cosine_similarity(
        gradient.flatten(1), torch.from_numpy(fitted.coef_).float()
    )
    assert leaning.mean() > 0.7  # chance is 0


def test_an_audit_of_the_black_box_attacks_by_it_and_says_how_it_was_made(
    digits, fitted, distilled
) -> None:
    _, found = distilled
    x, targets = digits[0][1000:1300], digits[1][1000:1300]
    report = adap.audit(
        Box(fitted),
        *(x, targets),
        epsilon=0.1,
        attacks=["noise", adap.Transfer()],
        surrogate=found,
        checks="off",
        progress=False,
    )
    weight = fitted.coef_.reshape(8, 8)
    moved = x - 0.1 * (2 * targets - 1)[:, None, None, None] * np.sign(weight)
    best = fitted.decision_function(moved.clip(0, 1).reshape(len(x), -1))
    least = average_precision_score(targets, best)
    noise, transfer = (report.attacks[name].ap for name in ("noise", "transfer"))
    assert least - 1e-9 <= transfer < least + 0.5 * (noise - least)
    said = [text for text in report.report.warnings if "distilled" in text]
    assert said == found.decided()
    assert "500 queries" in said[0]
    assert "distilled from a black box by 500 queries" in card(report.report)


def test_the_same_seed_asks_the_same_images_so_that_kept_answers_serve(digits, fitted) -> None:
    first, second, other = Box(fitted), Box(fitted), Box(fitted)
    for box, seed in ((first, 1), (second, 1), (other, 2)):
        adap.distil(box, digits[0][:40], queries=90, epochs=2, seed=seed)
    assert first.shown == second.shown
    assert first.shown != other.shown


def test_a_network_of_ones_own_learns_and_nothing_random_outside_is_drawn(digits, fitted) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    before, state = network[1].weight.detach().clone(), torch.get_rng_state()
    found = adap.distil(Box(fitted), digits[0][:64], queries=80, network=network, epochs=5)
    assert found.network is network
    assert not network[1].weight.equal(before)
    assert not found.training
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(
    ("model", "count", "options", "error", "said"),
    [
        (len, 64, {"queries": 10}, adap.ConfigError, "queries as a whole .* 64, got 10"),
        (len, 20, {"queries": 100}, adap.DataError, "at least 32 images to ask about, got 20"),
        (nn.Flatten(), 64, {"queries": 100}, adap.ModelError, "a function .* got Flatten"),
        (
            len,
            64,
            {"queries": 100, "network": len},
            adap.ModelError,
            "network= as an nn.Module, got builtin",
        ),
        (
            len,
            64,
            {"queries": 100, "network": nn.Sequential(nn.Flatten(), nn.Linear(64, 2))},
            adap.ModelError,
            r"one score an image, .* got \(2, 2\) of 2 images",
        ),
        (
            len,
            64,
            {"queries": 100, "network": nn.Sequential(nn.Flatten(), nn.Linear(7, 1))},
            adap.ModelError,
            r"that takes images of \(1, 8, 8\), got ",
        ),
        (
            lambda x: np.zeros(len(x)),
            64,
            {"queries": 100},
            adap.ModelError,
            "answers that differ, got 0 for each image",
        ),
        (
            lambda x: np.full(len(x), np.nan) if len(x) > 20 else x.mean((1, 2, 3)),
            64,
            {"queries": 100},
            adap.ModelError,
            "not finite",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_in_a_sentence(
    digits, model, count, options, error, said
) -> None:
    with pytest.raises(error, match=said):
        adap.distil(model, digits[0][:count], **options)
