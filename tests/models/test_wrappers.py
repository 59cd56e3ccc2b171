import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from models.architectures import build
from models.header import InputSpec
from models.wrappers import Scorer

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
