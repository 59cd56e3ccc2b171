"""Audits with corruptions. The judges: scikit-learn's AP of scores computed here, and counting."""

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
from adap.core.config.corruptions import CORRUPTION_KINDS, Corruption
from adap.core.corruptions.suite import corrupted
from tests.core.pages import Page

KINDS = ["fog", "jpeg_compression", "gaussian_noise"]


class Counted(nn.Module):
    """A linear ranker that counts the images it is shown."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(64, generator=generator))
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return x.flatten(1) @ self.weight


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    logits = images.reshape(60, -1) / 255 @ Counted().weight.detach().numpy()
    return images, (logits + rng.normal(0, 1, 60) > np.quantile(logits, 0.7)).astype(int)


COMMON: dict[str, Any] = {"attacks": ["fgsm"], "checks": "off", "certify": "off", "progress": False}


@pytest.fixture(scope="module")
def audited(data: tuple[np.ndarray, np.ndarray]) -> adap.Audit:
    return adap.audit(
        Counted(),
        *data,
        corruptions=KINDS,
        severities=[1, 5],
        require=["corruption_mean_ap >= 0.01", "corruption_worst_case_ap >= 0.99"],
        **COMMON,
    )


def test_each_point_is_scikit_learns_ap_of_the_corrupted_images(
    audited: adap.Audit, data: tuple[np.ndarray, np.ndarray]
) -> None:
    images, targets = data
    found = audited.corruptions
    assert found is not None
    assert found.parameters == "32x32"
    assert [(p.kind, p.severity) for p in found.points] == [(k, s) for k in KINDS for s in (1, 5)]
    aps, margins = [], [audited.scores[0].clean * (2 * targets - 1)]
    for point in found.points:
        pixels = corrupted(
            images,
            audited.scores[0].example_ids,
            corruption=Corruption(kind=point.kind, severity=point.severity),  # type: ignore[arg-type]
            seed=0,
        )
        logits = pixels.reshape(60, -1).astype(np.float32) / 255
        scores = logits @ Counted().weight.detach().numpy()
        aps.append(float(average_precision_score(targets, scores)))
        assert point.ap == pytest.approx(aps[-1], abs=1e-6)
        margins.append(scores * (2 * targets - 1))
    assert found.mean == pytest.approx(np.mean(aps))
    assert found.by_kind["fog"] == pytest.approx(np.mean(aps[:2]))
    lowest = int(np.argmin(aps))
    assert (found.lowest.kind, found.lowest.severity) == (KINDS[lowest // 2], (1, 5)[lowest % 2])
    worst = np.min(margins, axis=0) * (2 * targets - 1)
    expected = float(average_precision_score(targets, worst))
    assert found.worst_case.ap == pytest.approx(expected, abs=1e-6)
    assert found.worst_case.interval is not None
    assert sum(found.worst_case.won.values()) == 60
    assert set(found.worst_case.won) == {"clean", *KINDS}


def test_corruptions_are_no_part_of_the_worst_case_and_thresholds_read_them(
    audited: adap.Audit, data: tuple[np.ndarray, np.ndarray]
) -> None:
    without = adap.audit(Counted(), *data, **COMMON)
    assert without.corruptions is None
    assert audited.worst_case == without.worst_case
    assert [it.passed for it in audited.thresholds] == [True, False]


def test_a_suite_costs_one_pass_a_kind_and_severity_and_is_kept_column_by_column(
    data: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    model = Counted()
    options = {**COMMON, "folder": tmp_path}
    adap.audit(model, *data, **options)
    bare, model.images = model.images, 0
    adap.audit(model, *data, corruptions="all", **options)
    again = bare - 60 - 60 * 2  # what an audit asks before it measures, and kept columns spare
    assert 75 * 60 <= model.images <= 75 * 60 + bare
    assert again >= 0
    model.images = 0
    report = adap.audit(model, *data, corruptions=["fog"], severities=[3], **options)
    assert model.images < 60 + bare
    assert report.corruptions is not None
    assert len(report.corruptions.points) == 1


def test_the_same_image_is_corrupted_alike_in_a_sample_and_in_another_shard(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    options: dict[str, Any] = {**COMMON, "corruptions": ["gaussian_noise"], "severities": [5]}
    (whole,) = adap.audit(Counted(), *data, **options).scores
    (part,) = adap.audit(Counted(), *data, sample=20, shard_size=7, batch_size=3, **options).scores
    at = [list(whole.example_ids).index(name) for name in part.example_ids]
    ((_, few),), ((_, all_of_them),) = part.corrupted.items(), whole.corrupted.items()
    np.testing.assert_allclose(few, all_of_them[at], atol=1e-5)


def test_the_page_shows_every_kind_at_every_severity(audited: adap.Audit, tmp_path: Path) -> None:
    page = Page(audited.save(tmp_path / "page.html").read_text())
    (table,) = [it for it in page.all("table") if "heat" in it.attributes.get("class", "")]
    found = audited.corruptions
    assert found is not None
    for point in found.points:
        assert f"{point.ap:.3f}" in table.text
        assert point.kind.replace("_", " ") in table.text
    card = audited.save(tmp_path / "card.md").read_text()
    assert "no part of the threat" in card
    assert all(kind.replace("_", "\\_") in card or kind in card for kind in KINDS)
    assert "corruptions, worst" in repr(audited)


def test_a_report_with_corruptions_is_borne_out_by_its_scores(
    audited: adap.Audit, tmp_path: Path
) -> None:
    report = json.loads(audited.save(tmp_path / "report.json").read_text())
    content = audited.save(tmp_path / "scores.safetensors").read_bytes()
    assert [line.figure for line in verify(report, content) if not line.ok] == []
    report["tasks"][0]["corruptions"]["points"][2]["ap"] += 0.01
    assert [line.figure for line in verify(report, content) if not line.ok] != []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruptions": ["frost"]}, "corruptions.kinds.0: expected .*gaussian_noise.* 'frost'"),
        ({"corruptions": "all", "severities": [0]}, "severities.0: expected at least 1, got 0"),
        ({"corruptions": "all", "severities": [6]}, "severities.0: expected at most 5, got 6"),
        ({"corruptions": ["fog", "fog"]}, "expected each kind once, got fog, fog"),
        ({"corruptions": "all", "severities": [3, 1]}, r"rising severities, got \[3, 1\]"),
        ({"severities": [3]}, r"expected severities= beside corruptions=, got \[3\] alone"),
        (
            {"require": "corruption_mean_ap > 0.5"},
            "the threshold on corruption_mean_ap needs `corruptions`",
        ),
    ],
)
def test_what_no_suite_has_is_refused_before_anything_is_asked_of_the_model(
    options: dict[str, Any], message: str, data: tuple[np.ndarray, np.ndarray]
) -> None:
    model = Counted()
    with pytest.raises(adap.ConfigError, match=message):
        adap.audit(model, *data, **{**COMMON, **options})
    assert model.images == 0


def test_images_too_small_for_a_corruption_are_refused_before_any_attack() -> None:
    images, labels = np.zeros((8, 1, 6, 6), np.uint8), np.arange(8) % 2
    with pytest.raises(adap.DataError, match="at least 8x8 pixels for corruptions, got 6x6"):
        adap.audit(nn.Flatten(), images, labels, corruptions=[CORRUPTION_KINDS[0]], **COMMON)
