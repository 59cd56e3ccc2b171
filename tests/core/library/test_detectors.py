"""A detector of torchvision, small and untrained, as a ranker of images.

The judges: the detector's own answers, and finite steps along the gradient.
"""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from sklearn.metrics import average_precision_score
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


@pytest.mark.slow
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


THRESHOLD = 0.3  # of the detector that the graph below holds, below which it has no box


def onnx_detector(weight: np.ndarray) -> onnx.ModelProto:
    """An image to boxes that NonMaxSuppression leaves, as exported detectors have it; `raw` is what
    it chooses from: (1, classes, 16) scores of boxes in a grid of 4 x 4."""
    corners = [(r, c, r + 5, c + 5) for r in range(0, 16, 4) for c in range(0, 16, 4)]
    held = {
        "weight": weight.astype(np.float32),
        "boxes": np.array([corners], np.float32),
        "grid": np.array([1, len(weight), 16]),
        "most": np.array([8]),
        "overlap": np.array([0.5], np.float32),
        "least": np.array([THRESHOLD], np.float32),
        "second": np.array(1),
    }
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["seen"], strides=[4, 4]),
        helper.make_node("Sigmoid", ["seen"], ["sure"]),
        helper.make_node("Reshape", ["sure", "grid"], ["raw"]),
        helper.make_node(
            "NonMaxSuppression", ["boxes", "raw", "most", "overlap", "least"], ["selected"]
        ),
        helper.make_node("GatherND", ["raw", "selected"], ["scores"]),
        helper.make_node("Gather", ["selected", "second"], ["labels"], axis=1),
    ]
    number, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", number, [1, 3, 16, 16])],
        [
            helper.make_tensor_value_info("scores", number, ["n"]),
            helper.make_tensor_value_info("labels", whole, ["n"]),
            helper.make_tensor_value_info("raw", number, [1, len(weight), 16]),
        ],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_an_onnx_detector_is_audited_as_the_ranker_that_onnxruntime_makes_of_it():
    rng = np.random.default_rng(0)
    model = onnx_detector(rng.normal(0, 0.5, (3, 3, 4, 4)))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    images = rng.integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)

    def ranker(x: np.ndarray) -> np.ndarray:
        answers = []
        for image in np.asarray(x, np.float32):
            scores, labels = session.run(["scores", "labels"], {"image": image[None]})
            answers.append({"scores": scores, "labels": labels})
        return adap.largest_score(answers, label=2)

    def judged(x: np.ndarray) -> np.ndarray:
        """The surest of all places, as no box suppresses a surer one."""
        raw = [session.run(["raw"], {"image": one[None]})[0][0, 2].max() for one in x]
        return np.where(np.array(raw) > THRESHOLD, raw, 0)

    x = images.astype(np.float32) / 255
    clean = judged(x)
    labels = (clean + rng.normal(0, 0.03, 40) > np.quantile(clean, 0.6)).astype(int)
    square = adap.Square(queries=25)
    report = adap.audit(
        ranker, images, labels, epsilon=0.1, attacks=square, checks="off", progress=False
    )
    assert report.clean.ap == pytest.approx(average_precision_score(labels, clean))
    attacked = adap.attack(ranker, x, labels, square, epsilon=0.1)
    found = judged(np.asarray(attacked, np.float32))
    signs = 2 * labels - 1
    worst = np.where(signs * found < signs * clean, found, clean)
    assert report.worst_case.ap == pytest.approx(average_precision_score(labels, worst), abs=0.1)
    assert report.worst_case.ap < report.clean.ap - 0.1
