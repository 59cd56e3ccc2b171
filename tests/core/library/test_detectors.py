"""A detector of torchvision, small and untrained, as a ranker of images.

The judges: the detector's own answers, and finite steps along the gradient.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import adap
from adap.core.rendering.card import card


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Two classes beside the background, every box kept."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.Tanh())
    backbone.out_channels = 8  # type: ignore[assignment]
    return FasterRCNN(
        backbone,
        num_classes=3,
        rpn_anchor_generator=AnchorGenerator(sizes=((8, 16),), aspect_ratios=((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(featmap_names=["0"], output_size=3, sampling_ratio=1),
        min_size=32,
        max_size=32,
        box_score_thresh=0.0,
        rpn_post_nms_top_n_test=8,
    ).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_an_image_scores_as_its_surest_box_of_the_class(network, images):
    with torch.no_grad():
        found = network(list(images))
        logits = adap.Detector(network, label=2)(images)
    for one, logit in zip(found, logits, strict=True):
        top = max(s for s, at in zip(one["scores"], one["labels"], strict=True) if at == 2)
        assert logit.sigmoid() == pytest.approx(top.item(), rel=1e-5)
    plain = adap.largest_score(found, label=2)
    assert np.allclose(1 / (1 + np.exp(-logits.double().numpy())), plain)


def test_a_step_along_the_gradient_raises_the_score(network, images):
    ranker = adap.Detector(network, label=1)
    x = images[:4].clone().requires_grad_()
    before = ranker(x)
    (gradient,) = torch.autograd.grad(before.sum(), x)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()
    with torch.no_grad():
        after = ranker(images[:4] + 1e-3 * gradient.sign())
    assert (after > before).all()


def test_an_image_without_a_box_of_the_class_ties_at_the_bottom_and_moves_nowhere(images):
    class Blind(nn.Module):
        def forward(self, given: list[Tensor]) -> list[dict[str, Tensor]]:
            return [{"scores": it.mean()[None], "labels": torch.tensor([3])} for it in given]

    x = images[:2].clone().requires_grad_()
    logits = adap.Detector(Blind(), label=1)(x)
    assert len(set(logits.tolist())) == 1
    assert torch.isfinite(logits).all()
    assert logits[0] < adap.Detector(Blind(), label=3)(x).min()


def test_an_audit_attacks_a_detector_by_its_gradients_and_says_what_it_ranks(network, images):
    labels = torch.tensor([0, 1] * 8)
    found = adap.audit(
        adap.Detector(network, label=1),
        images,
        labels,
        epsilon=4 / 255,
        attacks=[adap.PGD(steps=2), "noise"],
        checks="off",
        progress=False,
    )
    assert found.attacks["pgd"].mean_margin_drop > max(0, found.attacks["noise"].mean_margin_drop)
    assert "surest box of class 1" in " ".join(found.warnings)
    assert "surest box of class 1" in card(found.report)
    assert found.report.provenance.model.name == "FasterRCNN"


def test_a_detector_in_a_function_is_ranked_by_its_largest_score(network, images):
    def ask(given: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return adap.largest_score(network(list(torch.from_numpy(given))), label=1)

    found = adap.audit(
        ask,
        images,
        [0, 1] * 8,
        attacks="noise",
        checks="off",
        outputs="probabilities",
        progress=False,
    )
    with torch.no_grad():
        ours = adap.Detector(network, label=1)(images).numpy()
    assert np.allclose(found.scores[0].clean, ours, atol=1e-4)


class Classifier(nn.Module):
    def forward(self, given: list[Tensor]) -> Tensor:
        return torch.stack(given).mean((1, 2, 3))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: adap.Detector(len, label=1), "expected a detector as an nn.Module, got builtin"),
        (lambda: adap.Detector(nn.Identity(), label="cat"), "number of a class, got 'cat'"),
        (lambda: adap.Detector(Classifier(), label=1)(torch.rand(2, 3, 4, 4)), "got Tensor"),
        (lambda: adap.largest_score([{"boxes": []}], label=1), r"got \['boxes'\]"),
        (lambda: adap.largest_score([[1]], label=1), "got list"),
        (
            lambda: adap.largest_score([{"scores": [1, 2], "labels": [1]}], label=1),
            r"got \(2,\) scores and \(1,\) labels",
        ),
    ],
)
def test_what_is_no_detector_is_refused_in_a_sentence(wrong, said):
    with pytest.raises((adap.ConfigError, adap.ModelError), match=said):
        wrong()
