"""Audits in L1, l0 and with a patch. The judges: linear rankers, whose worst case is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

import adap
from adap.client.verify.reports import verify

SIDE = 6


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(SIDE * SIDE, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 1, SIDE, SIDE), dtype=np.uint8)
    logits = images.reshape(60, -1) / 255 @ Linear().weight.detach().numpy()
    return images, (logits + rng.normal(0, 0.5, 60) > np.quantile(logits, 0.7)).astype(int)


def worst_logits(images: np.ndarray, targets: np.ndarray, norm: str, epsilon: int) -> np.ndarray:
    """Each positive at its lowest and each negative at its highest."""
    w = Linear().weight.detach().numpy().astype(float).reshape(SIDE, SIDE)
    found = []
    for image, target in zip(images[:, 0] / 255, targets, strict=True):
        up = -w if target else w  # what the attacker wants to rise
        gain = np.where(up > 0, up * (1 - image), -up * image)
        if norm == "l0":
            best = np.sort(gain.ravel())[-epsilon:].sum()
        elif norm == "patch":
            best = max(
                gain[i : i + epsilon, j : j + epsilon].sum()
                for i in range(SIDE - epsilon + 1)
                for j in range(SIDE - epsilon + 1)
            )
        else:
            room = np.where(up > 0, 1 - image, image).ravel()
            order = np.argsort(-np.abs(up).ravel())
            before = np.cumsum(room[order]) - room[order]
            used = np.clip(epsilon - before, 0, room[order])
            best = (np.abs(up).ravel()[order] * used).sum()
        found.append((w * image).sum() + (-best if target else best))
    return np.array(found)


COMMON: dict[str, Any] = {"checks": "off", "progress": False}


@pytest.mark.parametrize(("norm", "epsilon"), [("l1", 1), ("l0", 2), ("patch", 2)])
def test_the_worst_ap_of_a_linear_ranker_is_found(
    norm: Any, epsilon: int, data: tuple[np.ndarray, np.ndarray]
) -> None:
    report = adap.audit(Linear(), *data, norm=norm, epsilon=epsilon, attacks="fgsm", **COMMON)
    expected = average_precision_score(data[1], worst_logits(*data, norm, epsilon))
    assert report.worst_case.ap == pytest.approx(expected, abs=1e-6)
    assert report.worst_case.ap < report.clean.ap - 0.05
    assert report.certified_floor is None
    why = report.task.no_certified_floor
    assert why is not None
    assert f"nothing is proven of {norm}" in why


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [("l1", 1), ("l0", 2), ("patch", 2)])
def test_checks_of_an_honest_ranker_pass_and_its_report_is_borne_out(
    norm: Any, epsilon: int, data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    report = adap.audit(
        Linear(), *data, norm=norm, epsilon=epsilon, preset="quick", checks="quick", progress=False
    )
    assert report.trust is not None
    found = {check.name: check.status for check in report.trust.checks}
    assert {name for name, status in found.items() if status == "fail"} == set()
    for name in (
        "units",
        "reaches_floor",
        "noise_weaker",
        "gradient_predicts",
        "monotone",
        "black_box_weaker",
    ):
        assert found[name] == "pass", name
    kept = json.loads(report.save(tmp_path / "report.json").read_text())
    content = report.save(tmp_path / "scores.safetensors").read_bytes()
    assert [line.figure for line in verify(kept, content) if not line.ok] == []
    page = report.save(tmp_path / "page.html").read_text()
    said = {"l1": "L1, epsilon 1", "l0": "2 pixels, changed", "patch": "a patch of 2 x 2 pixels"}
    assert said[norm] in page


def test_a_network_that_hides_its_gradients_is_not_trusted_with_a_patch(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    class Hiding(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x * 8).round() / 8)

    report = adap.audit(
        Hiding(), *data, norm="patch", epsilon=2, preset="quick", checks="quick", progress=False
    )
    assert report.trust is not None
    assert report.trust.verdict == "not trustworthy"


@pytest.mark.parametrize(("norm", "epsilon"), [("l1", 1), ("l0", 2), ("patch", 2)])
def test_a_ranker_without_gradients_is_searched_close_to_its_worst_case(
    norm: Any, epsilon: int, data: tuple[np.ndarray, np.ndarray]
) -> None:
    w = Linear().weight.detach().numpy()

    def answers(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1) @ w

    report = adap.audit(
        answers,
        *data,
        norm=norm,
        epsilon=epsilon,
        attacks=adap.Square(queries=200),
        progress=False,
        checks="quick",
    )
    expected = average_precision_score(data[1], worst_logits(*data, norm, epsilon))
    assert expected - 1e-9 <= report.worst_case.ap <= expected + 0.03
    assert report.worst_case.ap < report.clean.ap - 0.05
    assert report.trust is not None
    found = {check.name: check for check in report.trust.checks}
    assert found["converged"].status == "caution"
    assert "only `square`, `transfer` and noise" in found["converged"].message


def test_the_curve_of_counted_pixels_has_whole_numbers(data: tuple[np.ndarray, np.ndarray]) -> None:
    report = adap.audit(Linear(), *data, norm="l0", epsilon=2, progress=False, checks="off")
    curve = report.task.epsilon_curve
    assert curve is not None
    assert [point.epsilon for point in curve.points] == [1, 2, 3, 4]
    assert list(report.attacks) == ["pgd", "apgd", "square"]  # of `standard`, without transfer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "patch", "epsilon": 7}, "a patch of at most 6 pixels a side, .* 6x6, got 7"),
        ({"norm": "l0", "epsilon": 37}, "l0 epsilon of at most 36 pixels, .* 6x6 has, got 37"),
        ({"norm": "l0"}, "a whole number of pixels for norm l0, got 0.031"),
        ({"norm": "patch", "epsilon": 1.5}, "a side of the patch for norm patch, got 1.5"),
        (
            {"norm": "l1", "epsilon": 1, "certify": "crown_ibp"},
            "certify auto or off with norm l1, .*, got crown_ibp",
        ),
        (
            {"norm": "l0", "epsilon": 2, "attacks": adap.PGD(step_size=2.0)},
            "a step_size of at most 1, as pixels are in .*, got 2",
        ),
        (
            {"norm": "patch", "epsilon": 2, "epsilons": [1, 2.5]},
            "a whole number of pixels along a side of the patch for norm patch, got 2.5",
        ),
        ({"norm": "l7"}, "expected one of linf, l2, l1, l0, patch, got 'l7'"),
    ],
)
def test_what_no_norm_knows_is_refused_before_any_attack(
    options: dict[str, Any], message: str, data: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(adap.ConfigError, match=message):
        adap.audit(Linear(), *data, **{**COMMON, **options})


@pytest.mark.parametrize(("norm", "epsilon"), [("l1", 1), ("l0", 2), ("patch", 2)])
def test_one_call_attacks_images_in_every_norm(
    norm: Any, epsilon: int, data: tuple[np.ndarray, np.ndarray]
) -> None:
    images, targets = data
    x = images[:10].astype(np.float32) / 255
    found = adap.attack(Linear(), x, targets[:10], "apgd", norm=norm, epsilon=epsilon)
    w = Linear().weight.detach().numpy()
    margins = (2 * targets[:10] - 1) * (found.reshape(10, -1) @ w)
    best = (2 * targets[:10] - 1) * worst_logits(images[:10], targets[:10], norm, epsilon)
    np.testing.assert_allclose(margins, best, atol=0.03)
    with pytest.raises(adap.ConfigError, match="patch of at most 6 pixels"):
        adap.attack(Linear(), x, targets[:10], norm="patch", epsilon=9)
