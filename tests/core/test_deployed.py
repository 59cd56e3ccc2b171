"""The deployment pipeline in front of a ranker. The judges: Pillow, torchvision, linear algebra."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

import adap
from adap.core.attacks.jpeg import softly, through_jpeg
from adap.core.audit.deployed import deployed, prepared
from adap.core.audit.drawing import drawing
from adap.core.config.audits import AuditConfig
from adap.core.config.deployment import (
    CropStep,
    JPEGStep,
    QuantiseStep,
    ResizeStep,
    pipeline_in_words,
)

SIDE, SMALL = 12, 8
HALVED = [{"name": "resize", "height": SMALL, "width": SMALL}]


@pytest.fixture(scope="module")
def levels() -> np.ndarray:
    """(6, 3, 20, 17) smooth and rough pictures of 8 bits."""
    rough = np.random.default_rng(0).integers(0, 256, (6, 3, 20, 17)).astype(np.float64)
    rough[3:] = np.cumsum(rough[3:], axis=3) / 17
    return np.clip(rough, 0, 255).astype(np.uint8)


def through(levels: np.ndarray, *steps: Any) -> np.ndarray:
    """What comes out of these steps, in levels."""
    found = prepared(torch.from_numpy(levels).float() / 255, steps) * 255
    return found.numpy()


@pytest.mark.parametrize("size", [(9, 11), (40, 31)], ids=["smaller", "larger"])
@pytest.mark.parametrize("by", ["bilinear", "bicubic"])
def test_resizing_is_pillows_of_floats(levels: np.ndarray, by: str, size: tuple[int, int]) -> None:
    height, width = size
    found = through(levels, ResizeStep(height=height, width=width, filter=by))  # type: ignore[arg-type]
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    for own, picture in zip(found, levels, strict=True):
        for channel, plane in zip(own, picture.astype(np.float32), strict=True):
            theirs = np.asarray(Image.fromarray(plane).resize((width, height), filters[by]))
            np.testing.assert_allclose(channel, theirs.clip(0, 255), atol=0.01)


def test_jpeg_is_pillows_file(levels: np.ndarray) -> None:
    found = through(levels, JPEGStep(quality=60))
    for own, picture in zip(found, levels, strict=True):
        file = io.BytesIO()
        Image.fromarray(picture.transpose(1, 2, 0)).save(file, "JPEG", quality=60)
        np.testing.assert_allclose(own.transpose(1, 2, 0), np.asarray(Image.open(file)), atol=1e-4)
    grey = through(levels[:, :1], JPEGStep(quality=60))
    file = io.BytesIO()
    Image.fromarray(levels[0, 0]).save(file, "JPEG", quality=60)
    np.testing.assert_allclose(grey[0, 0], np.asarray(Image.open(file)), atol=1e-4)


def test_crops_are_torchvisions_and_levels_the_nearest(levels: np.ndarray) -> None:
    x = torch.from_numpy(levels).float() / 255
    assert torch.equal(prepared(x, [CropStep(height=9, width=6)]), center_crop(x, [9, 6]))
    coarse = prepared(x, [QuantiseStep(levels=5)])
    grid = torch.linspace(0, 1, 5)
    torch.testing.assert_close(coarse, grid[(x[..., None] - grid).abs().argmin(-1)])


def test_a_varying_quality_is_drawn_for_each_image_and_again(levels: np.ndarray) -> None:
    x = (torch.from_numpy(levels[:1]).float() / 255).expand(40, -1, -1, -1)
    step = JPEGStep(least_quality=20, quality=95)
    with drawing(torch.device("cpu"), "one"):
        first = prepared(x, [step])
    with drawing(torch.device("cpu"), "one"):
        assert torch.equal(prepared(x, [step]), first)
    with drawing(torch.device("cpu"), "other"):
        assert not torch.equal(prepared(x, [step]), first)
    assert len({picture.numpy().tobytes() for picture in first}) > 10


def test_a_search_through_jpeg_follows_what_is_not_rounded_away(levels: np.ndarray) -> None:
    """The judge: libjpeg, at a quality that rounds little, and by finite steps through another."""
    x = torch.from_numpy(levels).float() / 255
    for quality in (95, 40):
        exact, soft = through_jpeg(x, [quality] * len(x)), softly(x, [quality] * len(x))
        assert (exact - soft).abs().mean() < 0.75 * (exact - x).abs().mean(), "nearer than nothing"
    shown = x[3:].requires_grad_()
    weight = torch.randn(shown.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((through_jpeg(shown, [40] * 3) * weight).sum(), shown)
    gains = []
    for way in (gradient, weight):
        moved = (shown + 6 / 255 * way.sign()).detach().clamp(0, 1)
        gains.append(
            ((through_jpeg(moved, [40] * 3) - through_jpeg(shown, [40] * 3)) * weight).sum()
        )
    assert gains[0] > 1.5 * gains[1] > 0


def test_levels_let_gradients_through(levels: np.ndarray) -> None:
    x = (torch.from_numpy(levels).float() / 255).requires_grad_()
    weight = torch.randn(3 * 20 * 17, generator=torch.Generator().manual_seed(0))
    flat = nn.Flatten()
    behind = deployed(nn.Sequential(flat, Dot(weight)), [QuantiseStep()])
    (gradient,) = torch.autograd.grad(behind(x).sum(), x)
    torch.testing.assert_close(flat(gradient), weight.expand(len(x), -1))


class Dot(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


@pytest.fixture(scope="module")
def data() -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """A linear ranker of 8x8 images, images of 12x12, and their targets."""
    rng = np.random.default_rng(0)
    ranker = Dot(torch.from_numpy(rng.normal(0, 1, SMALL * SMALL)).float())
    images = rng.integers(60, 196, (50, 1, SIDE, SIDE), dtype=np.uint8)
    with torch.no_grad():
        logits = deployed(ranker, AuditConfig(pipeline=HALVED).pipeline)(
            torch.from_numpy(images).float() / 255
        ).numpy()
    return ranker, images, (logits + rng.normal(0, 0.1, 50) > np.quantile(logits, 0.7)).astype(int)


def audited(model: nn.Module, images: np.ndarray, targets: np.ndarray, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return adap.audit(
            model, images, targets, **{"epsilon": 8 / 255, "preset": "quick"} | options
        )


def page(report: Any, folder: Path) -> str:
    return Path(report.save(folder / "report.html")).read_text()


def test_the_worst_ap_of_a_linear_ranker_behind_a_resize_is_found(
    data: tuple[nn.Module, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    ranker, images, targets = data
    report = audited(ranker, images, targets, pipeline=HALVED)
    # what the ranker is of the pixels before the resize: its answers to each of them alone
    each = torch.eye(SIDE * SIDE).view(-1, 1, SIDE, SIDE)
    with torch.no_grad():
        weight = deployed(ranker, AuditConfig(pipeline=HALVED).pipeline)(each).double().numpy()
    clean = images.reshape(50, -1) / 255 @ weight
    falls = 8 / 255 * np.abs(weight).sum()  # no pixel is within epsilon of black or white
    worst = np.where(targets == 1, clean - falls, clean + falls)
    assert report.clean.ap == pytest.approx(average_precision_score(targets, clean), abs=1e-6)
    assert report.worst_case.ap == pytest.approx(average_precision_score(targets, worst), abs=1e-6)
    (task,) = report.report.tasks
    assert task.certified_floor is None
    assert "pipeline" in task.no_certified_floor
    assert "through the pipeline: <b>resize to 8x8 (bilinear)</b>" in page(report, tmp_path)


def test_an_attack_through_jpeg_leaves_less_than_one_that_ignores_it() -> None:
    """The judge: images attacked without the pipeline, then put through it by Pillow."""
    rng = np.random.default_rng(1)
    ranker = Dot(torch.from_numpy(rng.normal(0, 1, 256)).float())  # of rough patterns, lost in JPEG
    images = rng.integers(30, 226, (60, 1, 16, 16), dtype=np.uint8)
    step = JPEGStep(quality=50)
    behind = deployed(ranker, [step])
    x = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        targets = (behind(x) > behind(x).quantile(0.7)).long()
    ignoring = adap.attack(ranker, x, targets, adap.PGD(steps=10), epsilon=2 / 255)
    with torch.no_grad():
        left = average_precision_score(targets.numpy(), behind(ignoring).numpy())
    report = audited(
        ranker,
        images,
        targets.numpy(),
        epsilon=2 / 255,
        attacks=["pgd"],
        checks="off",
        pipeline=[step.as_json()],
    )
    assert report.worst_case.ap < left - 0.01


@pytest.mark.slow
def test_scores_behind_a_varying_quality_are_means_over_draws(
    data: tuple[nn.Module, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    ranker, images, targets = data
    varying = {"name": "jpeg", "least_quality": 40, "quality": 90}
    attacks = [adap.PGD(steps=2)]
    found = audited(
        ranker, images, targets, pipeline=[varying, *HALVED], attacks=attacks, checks="off"
    )
    again = audited(
        ranker, images, targets, pipeline=[varying, *HALVED], attacks=attacks, checks="off"
    )
    assert found.worst_case.ap == again.worst_case.ap
    assert found.clean.ap >= found.worst_case.ap
    assert "means over 16 draws" in page(found, tmp_path)
    steps = AuditConfig(pipeline=[varying]).pipeline
    assert pipeline_in_words(steps) == (
        "JPEG of any quality from 40 to 90; scores and gradients are means over 16 draws"
    )


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        ([{"name": "blur"}], "expected one of resize, crop, jpeg, quantise, got 'blur'"),
        ([{"name": "crop", "height": 64, "width": 4}], "at least 4x64 pixels to crop"),
        ([{"name": "jpeg", "quality": 0}], "expected at least 1, got 0"),
        ([{"name": "jpeg", "quality": 50, "least_quality": 50}], "below the quality, 50, got 50"),
        ([], "expected a model that runs on images"),
    ],
    ids=["unknown", "crop", "quality", "range", "none"],
)
def test_what_no_pipeline_does_is_refused_before_any_attack(
    data: tuple[nn.Module, np.ndarray, np.ndarray], pipeline: list[dict[str, Any]], said: str
) -> None:
    ranker, images, targets = data
    with pytest.raises(adap.AdapError, match=said):
        audited(ranker, images, targets, pipeline=pipeline)


def test_bounds_are_not_asked_for_behind_a_pipeline() -> None:
    with pytest.raises(ValueError, match="certify auto or off beside a pipeline"):
        AuditConfig(pipeline=HALVED, certify="ibp")


@pytest.mark.slow
def test_a_network_behind_jpeg_is_told_from_one_that_hides_its_gradient() -> None:
    """By its own staircase: small steps are foretold, and scores are nearly those of files."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        Dot(torch.randn(128, generator=generator)),
    )
    rng = np.random.default_rng(0)
    images = rng.integers(40, 216, (48, 1, 16, 16)).astype(np.uint8)
    images[::3, :, 4:12, 4:12] //= 2
    targets = (np.arange(48) % 3 == 0).astype(int)
    behind = deployed(network, [JPEGStep(quality=40)])
    with torch.no_grad():
        signs = (
            2 * float(behind(torch.from_numpy(images).float() / 255)[targets == 1].mean() > 0) - 1
        )
    network[-1].weight.data *= signs
    report = audited(network, images, targets, pipeline=[{"name": "jpeg", "quality": 40}])
    (check,) = [check for check in report.trust.checks if check.name == "gradient_predicts"]
    assert check.status == "pass", check.message
    assert check.figures["unrounded"] > 0.95


@pytest.mark.slow
def test_nothing_is_drawn_outside_of_an_audit_and_the_attacker_follows_means_too(
    data: tuple[nn.Module, np.ndarray, np.ndarray],
) -> None:
    ranker, images, targets = data

    class Counting(nn.Module):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.passes += len(x)
            return ranker(x)

    varying = [{"name": "jpeg", "least_quality": 40, "quality": 90}, *HALVED]
    before = torch.get_rng_state()
    audited(
        ranker,
        images,
        targets,
        pipeline=varying,
        attacks=[adap.Transfer(steps=2)],
        surrogate=Counting(),
        checks="off",
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert Counting.passes >= 16 * 2 * len(images), "a mean over 16 draws in each step"


def test_a_step_may_be_a_text_as_on_the_command_line() -> None:
    texts = ["jpeg", "jpeg:80", "jpeg:60-90", "resize:8x4", "crop:3x2", "quantise", "quantise:16"]
    written = [
        {"name": "jpeg"},
        {"name": "jpeg", "quality": 80},
        {"name": "jpeg", "least_quality": 60, "quality": 90},
        {"name": "resize", "width": 8, "height": 4},
        {"name": "crop", "width": 3, "height": 2},
        {"name": "quantise"},
        {"name": "quantise", "levels": 16},
    ]
    assert AuditConfig(pipeline=texts).pipeline == AuditConfig(pipeline=written).pipeline
    with pytest.raises(ValidationError, match=r"expected jpeg:80, .*, got 'blur:3'"):
        AuditConfig(pipeline=["blur:3"])
