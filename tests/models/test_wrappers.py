from decimal import Decimal, localcontext
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from adap.models.architectures import build
from adap.models.errors import TaskError
from adap.models.header import InputSpec, OutputSpec, logit_a_class
from adap.models.wrappers import EveryLogit, Scorer

SPEC = InputSpec(
    channels=3, height=8, width=9, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]
)


class Answer(nn.Module):
    """Any output that a test wants, whatever the images."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, images: Tensor) -> Tensor:
        return torch.arange(float(torch.Size(self.shape).numel())).reshape(self.shape)


class Seen(nn.Module):
    """Keeps what it was shown."""

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return images.sum(dim=(1, 2, 3))


def test_the_network_sees_images_normalised_as_torchvision_does_it() -> None:
    network = Seen()
    images = torch.rand(2, 3, 8, 9)
    Scorer(network, SPEC)(images)
    assert torch.equal(network.images, normalize(images, mean=SPEC.mean, std=SPEC.std))


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_one_logit_an_image_comes_out_flat(shape: tuple[int, ...]) -> None:
    logits = Scorer(Answer(*shape), SPEC)(torch.rand(2, 3, 8, 9))
    assert torch.equal(logits, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("shape", [(), (1,), (2, 2), (2, 10), (1, 2), (2, 1, 1)])
def test_any_other_output_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected one logit an image"):
        Scorer(Answer(*shape), SPEC)(torch.rand(2, 3, 8, 9))


@pytest.mark.parametrize("shape", [(2, 1, 8, 9), (2, 3, 9, 8), (3, 8, 9), (2, 3, 8, 9, 1)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    # one grey channel would broadcast against the mean of three, and be scored
    with pytest.raises(ValueError, match=r"expected images \(B, 3, 8, 9\)"):
        Scorer(Seen(), SPEC)(torch.rand(shape))


def test_train_and_eval_reach_the_network() -> None:
    scorer = Scorer(build("small_cnn", channels=3, seed=0), SPEC)
    assert scorer.train().network.training
    assert not scorer.eval().network.training


def test_the_normalisation_moves_with_the_scorer_but_is_not_saved() -> None:
    scorer = Scorer(build("small_cnn", channels=3, seed=0), SPEC)
    assert all(name.startswith("network.") for name in scorer.state_dict())
    assert scorer.to(torch.float64).mean.dtype == torch.float64


# --- a logit a class ------------------------------------------------------------------------------

ONE_PIXEL = InputSpec(channels=4, height=1, width=1, mean=[0.0] * 4, std=[1.0] * 4)
CLASSES = ["cat", "dog", "emu", "other"]


def scorer(kind: Any, *positive: str) -> Scorer:
    """A network whose logits are the four channels of its one pixel."""
    output = OutputSpec(kind=kind, classes=CLASSES)
    return Scorer(nn.Flatten(), ONE_PIXEL, output=output, positive=positive or None)


def as_images(logits: Tensor) -> Tensor:
    return logits[:, :, None, None]


TASKS = [task for size in (1, 2, 3) for task in combinations(CLASSES, size)]


@pytest.mark.parametrize("task", TASKS)
def test_the_score_of_exclusive_classes_is_the_log_of_their_odds(task: tuple[str, ...]) -> None:
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 5
    probability = logits.double().softmax(dim=1)
    ours = probability[:, [CLASSES.index(name) for name in task]].sum(dim=1)
    theirs = probability[:, [i for i, name in enumerate(CLASSES) if name not in task]].sum(dim=1)
    scores = scorer("multiclass", *task)(as_images(logits))
    assert scores.dtype == torch.float32
    # float32 keeps 24 bits of logits of up to about 20
    torch.testing.assert_close(scores.double(), (ours / theirs).log(), rtol=0, atol=1e-5)
    assert torch.equal(scores, scorer("multiclass", *reversed(task))(as_images(logits)))


def test_the_score_orders_images_whose_probability_rounds_to_the_same_number() -> None:
    cat = torch.tensor([18.0, 25.0, 40.0, 90.0, 120.0])
    logits = torch.stack([cat, torch.zeros(5), torch.ones(5), -torch.ones(5)], dim=1)
    for signed in (logits, -logits):  # near 1, near 0
        scores = scorer("multiclass", "cat")(as_images(signed))
        assert (scores.diff().sign() == signed[:, 0].diff().sign()).all()
        with localcontext(prec=80):
            for row, score in zip(signed.tolist(), scores.tolist(), strict=True):
                odds = [Decimal(logit).exp() for logit in row]
                exact = (odds[0] / sum(odds[1:])).ln()
                assert score == pytest.approx(float(exact), rel=1e-6)
    probability = logits.softmax(dim=1)[:, 0]
    assert probability.unique().numel() < 5, "a float32 softmax tells them all apart"
    assert probability.double().log().sub((1 - probability.double()).log()).isinf().any()


def test_the_gradient_of_a_score_does_not_vanish_where_a_probability_saturates() -> None:
    images = as_images(torch.tensor([[200.0, 0.0, 1.0, 2.0]])).requires_grad_()
    (gradient,) = torch.autograd.grad(scorer("multiclass", "cat")(images).sum(), images)
    others = torch.tensor([0.0, 1.0, 2.0]).softmax(dim=0)
    torch.testing.assert_close(gradient.flatten(), torch.cat([torch.ones(1), -others]))
    (of_softmax,) = torch.autograd.grad(images.flatten(1).softmax(dim=1)[:, 0].sum(), images)
    assert (of_softmax == 0).all()


@pytest.mark.parametrize("name", CLASSES)
def test_the_score_of_an_independent_class_is_its_own_logit(name: str) -> None:
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 50
    scores = scorer("multilabel", name)(as_images(logits))
    assert torch.equal(scores, logits[:, CLASSES.index(name)])


@pytest.mark.parametrize(
    ("kind", "task", "sentence"),
    [
        ("multiclass", ["cow"], r"a logit for \(cat, dog, emu, other\), got 'cow'"),
        ("multiclass", CLASSES, "expected a class against the positive ones"),
        ("multiclass", [], "got none"),
        ("multilabel", ["cat", "dog"], "expected one positive class"),
    ],
)
def test_a_task_without_a_score_is_refused(kind: Any, task: list[str], sentence: str) -> None:
    output = OutputSpec(kind=kind, classes=CLASSES)
    with pytest.raises(TaskError, match=sentence):
        Scorer(nn.Flatten(), ONE_PIXEL, output=output, positive=task)


def test_without_a_task_there_are_outputs_and_no_score() -> None:
    images = torch.rand(3, 4, 1, 1)
    unasked = scorer("multiclass")
    assert torch.equal(unasked.outputs(images), images.flatten(1))
    with pytest.raises(TaskError, match="a logit for each of cat, dog, emu, other; got none"):
        unasked(images)


def test_every_logit_is_scored_at_once_from_normalised_images() -> None:
    network = build("small_cnn", channels=3, seed=0, outputs=4).eval()
    output, images = logit_a_class(CLASSES), torch.rand(2, 3, 8, 9)
    assert output == OutputSpec(kind="multilabel", classes=CLASSES)
    together = EveryLogit(network, SPEC, output=output)(images)
    assert together.shape == (2, 4)
    for column, name in enumerate(CLASSES):
        alone = Scorer(network, SPEC, output=output, positive=[name])(images)
        assert torch.equal(together[:, column], alone), "an audit attacks what was trained"


@pytest.mark.parametrize("classes", [[], ["only"], ["a", "a"], ["a", "b\n"], [""] * 2])
def test_classes_that_no_model_can_declare_are_refused(classes: list[str]) -> None:
    with pytest.raises(TaskError, match=rf"2 to 1000 classes .* got {len(classes)}: "):
        logit_a_class(classes)


def test_one_logit_is_scored_the_same_with_a_task() -> None:
    network, images = build("small_cnn", channels=3, seed=0).eval(), torch.rand(2, 3, 8, 9)
    assert torch.equal(Scorer(network, SPEC)(images), Scorer(network, SPEC, positive=["a"])(images))


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 3), (4, 2), (2, 4, 1)])
def test_as_many_logits_as_classes_are_expected(shape: tuple[int, ...]) -> None:
    output = OutputSpec(kind="multiclass", classes=CLASSES)
    with pytest.raises(ValueError, match=r"expected logits \(B, 4\) with B = 2, got"):
        Scorer(Answer(*shape), SPEC, output=output, positive=["cat"])(torch.rand(2, 3, 8, 9))


def test_the_task_is_not_saved_with_the_network() -> None:
    network = build("small_cnn", channels=3, seed=0, outputs=4)
    output = OutputSpec(kind="multiclass", classes=CLASSES)
    with_task = Scorer(network, SPEC, output=output, positive=["dog"])
    assert list(with_task.state_dict()) == [f"network.{name}" for name in network.state_dict()]
    assert with_task.double()(torch.rand(2, 3, 8, 9).double()).dtype == torch.float64
