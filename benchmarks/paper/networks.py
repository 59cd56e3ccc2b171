"""The networks of the experiments: (B, C, H, W) in [0, 1] to (B,) logits, normalisation inside."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adap.models import architectures

# Channel means and standard deviations of ImageNet, which the paper's code uses for every data set.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalised(nn.Module):
    """A network that takes pixels in [0, 1] and gives one logit an image."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B,)."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits.squeeze(1)


def strided_cnn() -> nn.Module:
    """Three convolutions of stride 2 with 16, 64 and 128 channels, and the mean over what is left.

    As large as two CPU cores can train some hundred times in two hours.
    """

    def block(channels: int, more: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, more, 3, stride=2, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(more), nn.ReLU()]

    return nn.Sequential(
        *block(3, 16),
        *block(16, 64),
        *block(64, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 1),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "strided_cnn": strided_cnn,
    "resnet18": lambda: architectures.BUILDERS["resnet18"](3, 1),
}


def build(name: str, *, seed: int) -> nn.Module:
    """A new network whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Normalised(NETWORKS[name]())


def with_fresh_last_layer(network: nn.Module) -> nn.Module:
    """The same network with the last linear layer as `torch` initialises it, drawn from seed 0."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        last.reset_parameters()
    return network
