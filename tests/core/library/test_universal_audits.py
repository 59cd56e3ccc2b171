"""One perturbation for all images in an audit. The judges: scikit-learn on the shifted images, what
the library finds alone, and a report that was tampered with."""

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
from adap.core.rendering.card import card

COMMON: dict[str, Any] = {
    "checks": "off",
    "progress": False,
    "attacks": "fgsm",
    "certify": "off",
    "epsilon": 0.1,
    "universal": {"rounds": 10},
}


class Wavy(nn.Module):
    """Of four pixels, no straight line: so that one shift moves images by different amounts."""

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = x.flatten(1).unbind(1)
        return torch.sin(6 * a) + torch.sin(6 * b) + c * d


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (90, 1, 2, 2), dtype=np.uint8)
    logits = Wavy()(torch.from_numpy(images).float() / 255).numpy()
    return images, (logits + random.normal(0, 0.2, 90) > np.quantile(logits, 0.7)).astype(int)


def audited(data: tuple[np.ndarray, np.ndarray], **options: Any) -> adap.Audit:
    return adap.audit(Wavy(), *data, **{**COMMON, **options})


@pytest.fixture(scope="module")
def report(data: tuple[np.ndarray, np.ndarray]) -> adap.Audit:
    return audited(data)


def test_its_ap_is_that_of_the_shifted_images_and_what_the_library_finds_alone(
    report: adap.Audit, data: tuple[np.ndarray, np.ndarray]
) -> None:
    images, targets = data
    figures, found = report.universal, report.scores[0].universal
    assert figures is not None
    assert found is not None
    shifted = Wavy()(torch.from_numpy((images / 255 + found.delta).clip(0, 1)).float()).numpy()
    assert figures.ap == pytest.approx(average_precision_score(targets, shifted), abs=1e-6)
    assert figures.ap < report.clean.ap - 0.1  # there is something to find
    assert figures.drop.value == pytest.approx(report.clean.ap - figures.ap)
    assert figures.size == pytest.approx(np.abs(found.delta).max())
    assert figures.size <= 0.1 * (1 + 1e-6)
    assert (figures.searched, figures.rounds) == (90, 10)
    alone = adap.universal(Wavy(), *data, epsilon=0.1, rounds=10)
    assert np.allclose(alone.delta, found.delta, atol=1e-6)


def test_it_changes_no_other_figure(
    report: adap.Audit, data: tuple[np.ndarray, np.ndarray]
) -> None:
    without = audited(data, universal=None)
    assert without.universal is None
    assert without.task == report.task.model_copy(update={"universal": None})


def test_pieces_and_folders_change_nothing(
    report: adap.Audit, data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    pieces = audited(data, shard_size=17, batch_size=8, folder=tmp_path)
    assert pieces.universal is not None
    assert report.universal is not None
    assert pieces.universal.ap == pytest.approx(report.universal.ap, abs=1e-3)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    audited(data, shard_size=17, batch_size=8, folder=tmp_path, attacks="noise")
    measured = [path for path in tmp_path.glob("*.safetensors") if path not in kept]
    assert len(measured) == 7  # the noise of six pieces, and all scores together
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.parametrize("changed", [{"shard_size": 30}, {"seed": 1}, {"batch_size": 8}])
def test_of_a_network_that_draws_another_audit_takes_over_no_draws_of_the_first(
    changed: dict[str, int], data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    class Drawn(nn.Module):
        """No perturbation moves it: whatever its AP falls by was drawn otherwise."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.randn(len(x)) + 0 * x.sum((1, 2, 3))

    first = {"shard_size": 10, "seed": 0, "batch_size": 64}
    aps = []
    for options in (first, {**first, **changed}):
        asked = {**COMMON, "universal": {"rounds": 2}, "folder": tmp_path, **options}
        with pytest.warns(UserWarning, match="draws random numbers"):
            report = adap.audit(Drawn(), *data, draws=2, **asked)
        assert report.universal is not None
        assert (report.universal.size, report.universal.ap) == (0, report.clean.ap)
        aps.append(report.clean.ap)
    assert aps[0] != aps[1]  # they did draw otherwise


def test_it_is_searched_on_as_many_as_was_asked_half_of_each_side(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    found = audited(data, universal={"images": 20, "rounds": 5}).universal
    assert found is not None
    assert (found.searched, found.rounds) == (20, 5)


def test_the_report_says_so_everywhere_and_is_borne_out(report: adap.Audit, tmp_path: Path) -> None:
    kept = json.loads(report.save(tmp_path / "report.json").read_text())
    content = report.save(tmp_path / "scores.safetensors").read_bytes()
    lines = verify(kept, content)
    assert [line.figure for line in lines if not line.ok] == []
    assert sum("universal." in line.figure for line in lines) >= 8
    for name, value in (("ap", 0.5), ("size", 0.05), ("searched", 7), ("rounds", 3)):
        wrong = json.loads(json.dumps(kept))
        wrong["tasks"][0]["universal"][name] = value
        assert [line for line in verify(wrong, content) if not line.ok], name
    beyond = json.loads(json.dumps(kept))
    beyond["provenance"]["config"]["threat"]["epsilon"] = 0.05
    failed = [line.figure for line in verify(beyond, content) if not line.ok]
    assert "universal.within the threat" in failed
    page = report.save(tmp_path / "page.html").read_text()
    assert "One perturbation for all images" in page
    assert "As found, not proven" in page
    assert "as found, not proven" in card(report.report)
    assert "universal" in repr(report)


@pytest.mark.parametrize(
    ("attacks", "status"), [([adap.PGD(steps=20)], "pass"), ([adap.Noise()], "fail")]
)
def test_attacks_on_each_image_that_lose_less_are_not_trusted(
    attacks: Any, status: str, data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    report = audited(data, attacks=attacks, checks="quick", epsilon=0.15)
    assert report.trust is not None
    assert report.universal is not None
    (check,) = (it for it in report.trust.checks if it.name == "universal_no_worse")
    assert check.status == status
    assert check.figures["lower"] == report.worst_case.ap - report.universal.ap
    assert ("they missed what was there" in check.message) == (status == "fail")
    kept = json.loads(report.save(tmp_path / "report.json").read_text())
    content = report.save(tmp_path / "scores.safetensors").read_bytes()
    assert [line.figure for line in verify(kept, content) if not line.ok] == []


def test_where_none_is_found_none_is_added(
    data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    class Rounded(Wavy):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mul(20).round() + 0 * x.sum((1, 2, 3))

    report = adap.audit(Rounded(), *data, **COMMON)
    assert report.universal is not None
    assert (report.universal.size, report.universal.ap) == (0, report.clean.ap)
    assert "None was found that lowers" in report.save(tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"norm": "l1", "epsilon": 2}, "universal with norm linf or l2, got l1"),
        ({"universal": {"rounds": 0}}, "rounds: expected .* got 0"),
        ({"universal": {"images": 3}}, "images: expected .* got 3"),
        (
            {"universal": None, "require": "universal_ap >= 0.1"},
            "universal_ap needs `universal`, and the audit asks for none",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(
    options: dict[str, Any], said: str, data: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(adap.ConfigError, match=said):
        audited(data, **options)


def test_a_function_has_no_gradients_for_it(data: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(adap.ModelError, match=r"nn.Module for universal=, .*<lambda>"):
        adap.audit(lambda x: x.mean((1, 2, 3)), *data, **{**COMMON, "attacks": "square"})
