"""Probabilities and value ranges: all are scored as logits of pixels in [0, 1]."""

import math

import pytest
import torch
from torch import Tensor, nn

from adap.models.architectures import build
from adap.models.errors import TaskError
from adap.models.header import InputSpec, Manifest, OutputSpec, ValueRange
from adap.models.loading import probe
from adap.models.wrappers import Scorer

SPEC = InputSpec(channels=1, height=8, width=8, mean=[0.5], std=[0.25])
CLASSES = ["a", "b", "c"]
PROBABILITY = OutputSpec(kind="probability")
PROBABILITIES = OutputSpec(kind="probabilities", classes=CLASSES)


class Fixed(nn.Module):
    """The same outputs, whatever the images."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = torch.tensor([values])

    def forward(self, images: Tensor) -> Tensor:
        return self.values.expand(len(images), -1) + 0 * images.mean()


class Brightness(nn.Module):
    """Outputs that are linear in the mean of the image, then some last layer."""

    def __init__(self, last: nn.Module, outputs: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.last, self.outputs, self.scale = last, outputs, scale

    def forward(self, images: Tensor) -> Tensor:
        x = self.scale * images.mean(dim=(1, 2, 3))[:, None]
        out: Tensor = self.last(x * torch.arange(1.0, self.outputs + 1))
        return out


def score(network: nn.Module, output: OutputSpec, positive: list[str] | None = None) -> Tensor:
    scorer = Scorer(network, SPEC, output=output, positive=positive).eval()
    with torch.no_grad():
        return scorer(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("p", [1e-30, 1e-6, 0.2, 0.5, 0.9, 0.9999])
def test_a_probability_is_scored_by_its_logit(p: float) -> None:
    held = float(torch.tensor(p))  # as float32 has it
    expected = math.log(held) - math.log1p(-held)
    assert score(Fixed(p), PROBABILITY).tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_a_saturated_probability_is_held_and_stays_finite() -> None:
    assert score(Fixed(1.0), PROBABILITY)[0] == pytest.approx(24 * math.log(2), rel=1e-6)
    assert score(Fixed(0.0), PROBABILITY)[0] == pytest.approx(-126 * math.log(2), rel=1e-6)


def test_probabilities_of_classes_are_scored_as_the_logits_before_the_softmax() -> None:
    logits = [2.0, -3.0, 0.5]
    p = torch.tensor(logits).softmax(0).tolist()
    multiclass = OutputSpec(kind="multiclass", classes=CLASSES)
    for positive in (["a"], ["b"], ["a", "c"]):
        expected = score(Fixed(*logits), multiclass, positive)
        assert torch.allclose(score(Fixed(*p), PROBABILITIES, positive), expected, atol=1e-5)
    with pytest.raises(TaskError, match="against the positive ones"):
        score(Fixed(*p), PROBABILITIES, CLASSES)


def test_a_confident_softmax_keeps_the_order_that_one_minus_p_would_lose() -> None:
    # both are 1 in float32; what is left for the others still tells them apart
    sure, surer = ([1.0, p, p] for p in (1e-9, 1e-12))
    scores = [score(Fixed(*p), PROBABILITIES, ["a"])[0] for p in (sure, surer)]
    assert scores[0] < scores[1]


def test_the_gradient_of_a_probability_is_that_of_its_logit() -> None:
    images = torch.rand(3, 1, 8, 8)
    gradients = []
    for network, output in (
        (Brightness(nn.Identity()), OutputSpec()),
        (Brightness(nn.Sigmoid()), PROBABILITY),
    ):
        x = images.clone().requires_grad_()
        Scorer(network, SPEC, output=output)(x).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert torch.allclose(*gradients, rtol=1e-4)


@pytest.mark.parametrize(
    ("network", "output", "problem"),
    [
        (Brightness(nn.Identity()), PROBABILITY, "expected probabilities from 0 to 1, got outputs"),
        (Brightness(nn.Sigmoid(), 3), PROBABILITIES, "expected probabilities that add up to 1"),
    ],
)
def test_outputs_that_are_no_probabilities_are_a_problem(
    network: nn.Module, output: OutputSpec, problem: str
) -> None:
    findings = probe(Scorer(network, SPEC, output=output).eval())
    assert problem in findings.problems[0]


@pytest.mark.parametrize(
    ("network", "output", "last"),
    [
        (Brightness(nn.Sigmoid()), PROBABILITY, "sigmoid"),
        (Brightness(nn.Softmax(dim=1), 3), PROBABILITIES, "softmax"),
    ],
)
def test_probabilities_come_with_a_warning(
    network: nn.Module, output: OutputSpec, last: str
) -> None:
    findings = probe(Scorer(network, SPEC, output=output).eval())
    assert findings.problems == []
    assert f"prefer the network without its last {last}" in findings.warnings[0]


def test_the_probe_finds_images_at_which_a_sigmoid_is_saturated() -> None:
    network = Brightness(nn.Sigmoid(), scale=1e4)
    findings = probe(Scorer(network, SPEC, output=PROBABILITY).eval())
    assert findings.blind_images == findings.images - 1  # the mean of the ramp is the spec's
    assert findings.smallest_gradient == 0


def test_the_probe_tells_how_large_gradients_are() -> None:
    findings = probe(Scorer(Brightness(nn.Identity()), SPEC).eval())
    # d mean(x) / d pixel = 1 / 64 each, times 1 / std
    assert findings.smallest_gradient == pytest.approx(4.0)
    assert findings.largest_gradient == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("value_range", "seen"), [("0..1", (0.0, 1.0)), ("0..255", (0, 255)), ("-1..1", (-1, 1))]
)
def test_pixels_reach_the_network_in_the_range_that_is_declared(
    value_range: ValueRange, seen: tuple[float, float]
) -> None:
    spec = InputSpec(channels=1, height=8, width=8, mean=[0.3], std=[0.7], value_range=value_range)
    for white, value in enumerate(seen):
        with torch.no_grad():
            got = Scorer(Brightness(nn.Identity()), spec)(torch.full((1, 1, 8, 8), float(white)))
        assert got.item() == pytest.approx((value - 0.3) / 0.7, rel=1e-5)


def test_the_usual_range_leaves_no_trace_in_a_manifest() -> None:
    manifest = Manifest(architecture="small_cnn", input=SPEC)
    assert "value_range" not in manifest.as_json()
    other = SPEC.model_copy(update={"value_range": "0..255"})
    text = Manifest(architecture="small_cnn", input=other).as_json()
    assert Manifest.model_validate_json(text).input == other


@pytest.mark.parametrize("kind", ["probability", "probabilities"])
def test_classes_go_with_probabilities_of_many(kind: str) -> None:
    classes = CLASSES if kind == "probability" else None
    with pytest.raises(ValueError, match="classes for the kind probabilit"):
        OutputSpec.model_validate({"kind": kind, "classes": classes})


def test_two_logits_are_two_classes() -> None:
    network = build("small_cnn", channels=1, seed=0, outputs=2).eval()
    output = OutputSpec(kind="multiclass", classes=["no", "yes"])
    images = torch.rand(4, 1, 8, 8)
    scorer = Scorer(network, SPEC, output=output, positive=["yes"]).eval()
    with torch.no_grad():
        p = torch.softmax(network((images - 0.5) / 0.25).double(), dim=1)[:, 1]
        assert torch.allclose(scorer(images).double(), torch.logit(p), atol=1e-5)
