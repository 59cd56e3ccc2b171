"""Models that draw random numbers, by their mean: judged by formulas and by scikit-learn."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F

import adap
from adap.core.audit.checks.check import check_audit, planned_passes
from adap.core.audit.drawing import drawing, mean_of, unsteadiness
from adap.core.config.attacks import APGDAttack
from adap.core.config.threats import Threat
from adap.core.errors import ConfigError

CPU = torch.device("cpu")
EPSILON = 0.05


class Noisy(nn.Module):
    """A linear ranker whose logits come with normal noise: its mean is the linear ranker."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        weights = torch.randn(48, generator=torch.Generator().manual_seed(0)) / 7
        self.weights = nn.Parameter(weights)
        self.noise = noise
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return x.flatten(1) @ self.weights + self.noise * torch.randn(len(x))


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (120, 3, 4, 4), generator=generator, dtype=torch.uint8)
    logits = (images.float() / 255).flatten(1) @ Noisy(0).weights
    blurred = logits + 0.2 * torch.randn(120, generator=generator)
    return images, (blurred > blurred.quantile(0.7)).long()


def true_ap(images: Tensor, labels: Tensor) -> float:
    """Of the mean, under its strongest attack, which for a linear ranker is known."""
    x, weights = images.double().flatten(1) / 255, Noisy(0).weights.detach().double()
    signs = 1 - 2 * labels.double()
    moved = (x + EPSILON * signs[:, None] * weights.sign()).clamp(0, 1)
    return float(average_precision_score(labels, (moved @ weights).numpy()))


def audit(model: nn.Module, data: tuple[Tensor, Tensor], **options: object) -> adap.Audit:
    settings: dict[str, Any] = {
        "attacks": [
            {"name": "pgd", "label": f"pgd-{steps}", "steps": steps, "iterate": "last"}
            for steps in range(3, 9)
        ],
        "checks": "off",
        "epsilon": EPSILON,
        "progress": False,
    } | options
    return adap.audit(model, *data, **settings)


def test_scores_and_gradients_are_the_means_over_the_draws() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.rand(5, 3, 4, 4, requires_grad=True)

    def scorer(x: Tensor) -> Tensor:
        logits: Tensor = network(F.dropout(x, 0.5, training=True))
        return logits[:, 0]

    class Scorer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scorer(x)

    mean = mean_of(Scorer(), 7)
    with drawing(CPU, "a test"):
        expected = torch.stack([scorer(x) for _ in range(7)]).mean(dim=0)
    with drawing(CPU, "a test"):
        found = mean(x)
    with drawing(CPU, "a test"), torch.no_grad():
        scored = mean(x)
    weights = torch.arange(5.0)
    (gradient,) = torch.autograd.grad((weights * expected).sum(), x)
    (followed,) = torch.autograd.grad((weights * found).sum(), x)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(scored, expected, atol=1e-6)
    assert torch.allclose(followed, gradient, atol=1e-6)
    assert gradient.abs().max() > 1e-2


def test_what_is_drawn_hangs_on_its_name_alone_and_leaves_no_trace() -> None:
    state = torch.get_rng_state()
    with drawing(CPU, 1, "scores"):
        first = torch.rand(3)
    with drawing(CPU, 1, "scores"):
        again = torch.rand(3)
    with drawing(CPU, 1, "search"):
        other = torch.rand(3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_a_model_that_draws_is_audited_by_its_mean_and_noise_flatters_no_attack(
    data: tuple[Tensor, Tensor],
) -> None:
    true = true_ap(*data)
    model = Noisy(1.0)
    with pytest.warns(UserWarning, match="forward passes") as told:
        report = audit(model, data, draws=256)
    assert report.worst_case.ap == pytest.approx(true, abs=0.03)
    # six searches that end in the same corner: the lowest of six noisy scores would be far lower
    assert report.worst_case.ap == pytest.approx(report.attacks["pgd-3"].ap, abs=1e-6)
    assert "mean over 256 draws" in report.warnings[0]
    assert report.warnings[0] in str(told[0].message)
    with pytest.warns(UserWarning, match="draws=1"):
        noisy = audit(Noisy(1.0), data, draws=1)
    assert abs(noisy.worst_case.ap - true) > 0.05


def test_the_same_audit_of_a_model_that_draws_gives_the_same_figures(
    data: tuple[Tensor, Tensor],
) -> None:
    with pytest.warns(UserWarning, match="mean over 16 draws"):
        first, second = (audit(Noisy(0.3), data) for _ in range(2))
    assert np.array_equal(first.scores[0].clean, second.scores[0].clean)
    assert first.task == second.task


def test_what_an_audit_by_draws_costs_is_said_before_it_starts(
    data: tuple[Tensor, Tensor],
) -> None:
    model = Noisy(0.3)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="passes") as told, pytest.raises(KeyboardInterrupt):
        audit(model, data, progress=stop, draws=4, checks="quick")
    model.images = 0
    with pytest.warns(UserWarning, match="4 draws"):
        audit(model, data, draws=4, checks="quick")
    said = int(str(told[0].message).split("about ")[1].split(" ")[0].replace(",", ""))
    assert said == pytest.approx(model.images, rel=0.1)


@pytest.mark.slow
def test_the_checks_of_a_mean_cost_what_is_planned_and_say_by_how_many_draws(
    data: tuple[Tensor, Tensor],
) -> None:
    model, told = Noisy(0.3), []
    images, targets = data[0].numpy(), data[1].numpy()
    asked: dict[str, Any] = {
        "threat": Threat(epsilon=EPSILON),
        "attacks": [APGDAttack(steps=5)],
        "level": "quick",
    }
    checks = check_audit(
        model,
        images,
        targets,
        surrogate=None,
        seed=0,
        batch_size=64,
        device=CPU,
        on_progress=told.append,
        draws=8,
        **asked,
    )
    planned = planned_passes(targets, surrogate=False, draws=8, **asked)
    assert told[-1] == planned == model.images
    found = {check.name: check for check in checks}
    assert found["repeatable"].status == "caution"
    assert found["repeatable"].figures["draws"] == 8
    spread = (data[0].float() / 255).flatten(1).matmul(model.weights).std().item()
    error = found["repeatable"].figures["error_of_mean"]
    assert error == pytest.approx(0.3 / 8**0.5 / spread, rel=0.3)
    assert "fail" not in {check.status for check in checks}


def test_a_mean_that_is_still_mostly_noise_fails(data: tuple[Tensor, Tensor]) -> None:
    with pytest.warns(UserWarning, match="2 draws"):
        report = audit(Noisy(3.0), data, draws=2, checks="quick")
    assert report.trust is not None
    (repeatable,) = (check for check in report.trust.checks if check.name == "repeatable")
    assert repeatable.status == "fail"
    assert "take more draws" in repeatable.message


def test_a_model_that_repeats_itself_is_scored_once_and_one_that_draws_is_not_bounded(
    data: tuple[Tensor, Tensor],
) -> None:
    assert unsteadiness(Noisy(0.0), data[0].float() / 255) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = audit(Noisy(0.0), data, draws=50)
    assert not any("draws" in warning for warning in report.warnings)
    with pytest.warns(UserWarning, match="draws"):
        report = audit(Noisy(0.1), data, certify="ibp")
    assert report.certified_floor is None
    assert "draws random numbers" in (report.task.no_certified_floor or "")


@pytest.mark.parametrize("draws", [0, -1, 1.5, True, 10_001])
def test_draws_that_are_no_number_of_draws_are_refused(
    draws: object, data: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(ConfigError, match="expected draws as a whole number from 1 to 10000, got"):
        audit(Noisy(0.1), data, draws=draws)


def test_an_attack_on_a_model_that_draws_follows_its_mean(data: tuple[Tensor, Tensor]) -> None:
    """Judged by the mean itself, which is linear: what the attack finds for it is known."""
    images, labels = data
    x = images.float() / 255

    def lowered(**options: Any) -> float:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = Noisy(30)
            x_adv = adap.attack(model, x, labels, adap.PGD(steps=3), epsilon=EPSILON, **options)
            again = adap.attack(model, x, labels, adap.PGD(steps=3), epsilon=EPSILON, **options)
        assert torch.equal(x_adv, again)
        assert len(said) == 2
        assert "The model draws random numbers" in str(said[0].message)
        signs = 2 * labels - 1
        weights = Noisy(0).weights.detach()
        margins = [signs * (of.flatten(1) @ weights) for of in (x, x_adv)]
        return float((margins[0] - margins[1]).mean())

    signs, weights = (1 - 2 * labels).view(-1, 1), Noisy(0).weights.detach()
    furthest = (x.flatten(1) + EPSILON * signs * weights.sign()).clamp(0, 1) - x.flatten(1)
    most = float((signs[:, 0] * (furthest @ weights)).mean())
    # the lowest of noisy scores chooses the iterate: by one draw any of them, the start too
    assert lowered(draws=1) < lowered(draws=100) < 1.001 * most
    with pytest.raises(ConfigError, match="draws as a whole number"):
        adap.attack(Noisy(0), x, labels, draws=0)
