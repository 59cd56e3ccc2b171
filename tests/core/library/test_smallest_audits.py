"""Smallest changes in an audit. The judges: a linear ranker, whose smallest change is known, and
`adap.smallest_changes` of the same model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import adap
from adap.client.verify.reports import verify
from adap.core.rendering.card import card

SIDE, K = 6, 15
COMMON: dict[str, Any] = {"checks": "off", "progress": False, "attacks": "fgsm", "certify": "off"}


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(SIDE * SIDE, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """No pixel is near black or white, so that the smallest change has a closed form."""
    rng = np.random.default_rng(0)
    images = rng.integers(80, 176, (60, 1, SIDE, SIDE), dtype=np.uint8)
    logits = images.reshape(60, -1) / 255 @ Linear().weight.detach().numpy()
    return images, (logits + rng.normal(0, 0.3, 60) > np.quantile(logits, 0.7)).astype(int)


def audited(data: tuple[np.ndarray, np.ndarray], **options: Any) -> adap.Audit:
    asked = {"smallest_changes": {"k": K}, "epsilon": 0.02, **COMMON, **options}
    return adap.audit(Linear(), *data, **asked)


@pytest.fixture(scope="module")
def report(data: tuple[np.ndarray, np.ndarray]) -> adap.Audit:
    return audited(data)


def expected(data: tuple[np.ndarray, np.ndarray], dual: float) -> np.ndarray:
    """Of each positive among the first k: its height above the next image over the slope."""
    w = Linear().weight.detach().numpy().astype(float)
    logits = data[0].reshape(60, -1) / 255 @ w
    order = np.argsort(-logits)
    inside = [row for row in order[:K] if data[1][row] == 1]
    return np.sort((logits[inside] - logits[order[K]]) / np.linalg.norm(w, dual))


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_of_a_linear_ranker_the_smallest_changes_are_those_there_are(
    norm: Any, dual: float, data: tuple[np.ndarray, np.ndarray]
) -> None:
    found = audited(data, norm=norm, epsilon=0.02 if norm == "linf" else 0.1).smallest_changes
    least = expected(data, dual)
    assert found is not None
    assert (found.k, found.among, found.searched, found.found) == (K, *[len(least)] * 3)
    assert found.median == pytest.approx(np.median(least), rel=0.01)
    assert found.least == pytest.approx(least.min(), rel=0.01)
    for point in found.curve:
        assert point.kept == pytest.approx((least > point.epsilon * 1.005).mean(), abs=0.1)
    assert found.curve[-1].kept == 0


def test_pieces_and_folders_change_nothing_and_the_library_alone_finds_the_same(
    report: adap.Audit, data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    pieces = audited(data, shard_size=17, folder=tmp_path)
    assert pieces.smallest_changes == report.smallest_changes
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    again = audited(data, shard_size=17, folder=tmp_path, epsilon=0.03)  # another epsilon
    assert again.smallest_changes is not None
    assert report.smallest_changes is not None
    assert again.smallest_changes.median == report.smallest_changes.median
    unchanged = [n for n, t in kept.items() if (tmp_path / n).stat().st_mtime_ns == t]
    assert len(unchanged) >= 5  # clean of four pieces, and the smallest changes
    alone = adap.smallest_changes(Linear(), *data, k=K)
    sizes = report.scores[0].smallest
    assert sizes is not None
    assert np.allclose(sizes.sizes, alone.sizes.numpy())


def test_a_folder_of_another_batch_size_seed_or_shard_size_is_no_other_audit(
    tmp_path: Path,
) -> None:
    """A network whose logits differ in the last digits by who shares a batch."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 1))
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 16, 16), dtype=np.uint8)

    def found(folder: Path, **options: Any) -> adap.Audit:
        asked = {"smallest_changes": {"steps": 5}, "epsilon": 0.03, "epsilons": [], **COMMON}
        return adap.audit(network, images, np.arange(60) % 2, folder=folder, **asked, **options)

    first = found(tmp_path / "one", batch_size=32)
    assert first.smallest_changes is not None
    for number, options in enumerate(({"batch_size": 1}, {"batch_size": 32, "shard_size": 7})):
        kept = found(tmp_path / "one", **options)
        assert kept.smallest_changes is not None
        assert kept.smallest_changes == found(tmp_path / str(number), **options).smallest_changes
        assert kept.smallest_changes.threshold in kept.scores[0].clean
        report = json.loads(kept.save(tmp_path / "report.json").read_text())
        content = kept.save(tmp_path / "scores.safetensors").read_bytes()
        assert [line.figure for line in verify(report, content) if not line.ok] == []


@pytest.mark.slow
def test_the_report_says_so_everywhere_and_is_borne_out(report: adap.Audit, tmp_path: Path) -> None:
    kept = json.loads(report.save(tmp_path / "report.json").read_text())
    content = report.save(tmp_path / "scores.safetensors").read_bytes()
    lines = verify(kept, content)
    assert [line.figure for line in lines if not line.ok] == []
    assert sum("smallest_changes." in line.figure for line in lines) > 10
    for name, value in (("median", 0.5), ("kept_at_epsilon", 0.99), ("k", 3), ("among", 1)):
        wrong = json.loads(json.dumps(kept))
        wrong["tasks"][0]["smallest_changes"][name] = value
        assert [line for line in verify(wrong, content) if not line.ok], name
    page = report.save(tmp_path / "page.html").read_text()
    assert f"How little moves a positive out of the first {K}" in page
    assert "As found, not proven" in page
    assert "as found, not proven" in card(report.report)


def test_where_nothing_is_found_it_stays_and_is_said(
    data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    class Saturated(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x) * 2).round()

    report = adap.audit(Saturated(), *data, epsilon=0.02, smallest_changes=True, **COMMON)
    found = report.smallest_changes
    assert found is not None
    assert (found.found, found.least, found.median, found.curve) == (0, None, None, [])
    assert found.kept_at_epsilon == 1
    assert "no change was found" in report.save(tmp_path / "page.html").read_text()
    kept = json.loads(report.save(tmp_path / "report.json").read_text())
    content = report.save(tmp_path / "scores.safetensors").read_bytes()
    assert [line.figure for line in verify(kept, content) if not line.ok] == []


def test_of_a_ranker_without_a_positive_among_the_first_nothing_is_said_to_stay(
    data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    class UpsideDown(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    asked = {"smallest_changes": {"k": 2}, "epsilon": 0.02, **COMMON}
    report = adap.audit(UpsideDown(), *data, **asked)
    found = report.smallest_changes
    assert found is not None
    assert (found.among, found.searched, found.kept_at_epsilon) == (0, 0, None)
    assert "No positive is among the first 2" in report.save(tmp_path / "page.html").read_text()
    assert "No positive is among the first 2" in card(report.report)
    kept = json.loads(report.save(tmp_path / "report.json").read_text())
    content = report.save(tmp_path / "scores.safetensors").read_bytes()
    assert [line.figure for line in verify(kept, content) if not line.ok] == []


def test_at_most_so_many_are_searched_for(data: tuple[np.ndarray, np.ndarray]) -> None:
    found = audited(data, smallest_changes={"k": K, "positives": 4, "steps": 40}).smallest_changes
    assert found is not None
    assert found.searched == 4 < found.among


def test_an_empty_mapping_stands_for_the_defaults_as_true_does(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    found, same, none = (
        audited(data, smallest_changes=asked).smallest_changes for asked in ({}, True, False)
    )
    assert found is not None
    assert found == same
    assert none is None


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"norm": "patch", "epsilon": 2}, adap.ConfigError, "norm linf, l2, l1, got patch"),
        ({"smallest_changes": {"k": 60}}, adap.ConfigError, "that are audited, 60, .* got 60"),
        ({"smallest_changes": {"k": 0}}, adap.ConfigError, "k: expected .* got 0"),
        (
            {"pipeline": [{"name": "jpeg", "least_quality": 60, "quality": 90}]},
            adap.ConfigError,
            "draws random numbers",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(
    options: dict[str, Any],
    error: type[Exception],
    said: str,
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    with pytest.raises(error, match=said):
        audited(data, **options)


def test_a_function_has_no_gradients_for_it(data: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(adap.ModelError, match=r"nn.Module for smallest_changes=, .*<lambda>"):
        adap.audit(
            lambda x: x.mean((1, 2, 3)),
            *data,
            **{**COMMON, "attacks": "square"},
            smallest_changes=True,
        )
