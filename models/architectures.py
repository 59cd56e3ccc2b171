"""The networks: (B, C, H, W) normalised images to (B, outputs) logits, by default one.

`adap.models.catalogue` describes the same names without torch; a test holds the two equal.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def _small_cnn(channels: int, outputs: int) -> nn.Module:
    """Three 3x3 convolutions, halving the image twice, then the mean over what is left.

    Strides instead of pooling: fewer operations for the attack to run through, and nothing that a
    bound propagated through the network would have to approximate except ReLU.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 32, 3, padding=1, bias=False),
            norm1=nn.BatchNorm2d(32),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
            norm2=nn.BatchNorm2d(64),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False),
            norm3=nn.BatchNorm2d(128),
            relu3=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(128, outputs),
        )
    )


def _thin_cnn(channels: int, outputs: int) -> nn.Module:
    """Two 3x3 convolutions of stride 2 and means over a 4x4 grid, without BatchNorm.

    Thin and shallow, as bounds grow with every layer and every unit; the grid keeps where things
    are, which the mean over the whole image forgets.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 16, 3, stride=2, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 3, stride=2, padding=1),
            relu2=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(4),
            flatten=nn.Flatten(),
            hidden=nn.Linear(32 * 4 * 4, 64),
            relu3=nn.ReLU(),
            fc=nn.Linear(64, outputs),
        )
    )


def _torchvision_resnet18(outputs: int) -> nn.Module:
    from torchvision.models import resnet18  # takes more than a second: only where it is used

    network: nn.Module = resnet18(weights=None, num_classes=outputs)
    return network


def _resnet18(channels: int, outputs: int) -> nn.Module:
    """torchvision's, trained from scratch; only the first layer depends on the channels."""
    network = _torchvision_resnet18(outputs)
    if channels != 3:
        network.conv1 = _stem(nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False))
    return network


def _resnet18_3x3(channels: int, outputs: int) -> nn.Module:
    """As in He et al. (2016) for CIFAR: the first layer keeps the size of the image."""
    network = _torchvision_resnet18(outputs)
    network.conv1 = _stem(nn.Conv2d(channels, 64, 3, padding=1, bias=False))
    network.maxpool = nn.Identity()
    return network


def _stem(convolution: nn.Conv2d) -> nn.Conv2d:
    """A first layer with the initialisation that torchvision gives to all its convolutions."""
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


HEAD = "fc."
"""What the names of the last layer's tensors begin with, in every architecture."""

BUILDERS: dict[str, Callable[[int, int], nn.Module]] = {
    "small_cnn": _small_cnn,
    "resnet18": _resnet18,
    "resnet18_3x3": _resnet18_3x3,
    "thin_cnn": _thin_cnn,
}


def build(name: str, *, channels: int, seed: int, outputs: int = 1) -> nn.Module:
    """A new network on the CPU, in training mode; its weights depend on `seed` alone.

    name: a key of `BUILDERS`.  channels: of the images, 1 or 3.  outputs: logits an image.
    """
    # torch's layers draw from the process-wide generator: seed it for them, and put it back
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return BUILDERS[name](channels, outputs)


def start_from(network: nn.Module, weights: Mapping[str, Tensor], *, fresh_head: bool) -> None:
    """Give a new network the weights of another of its architecture, in place.

    fresh_head: the last layer keeps the weights that it has; the other's may have another shape.
    """
    own = {name: value for name, value in network.state_dict().items() if name.startswith(HEAD)}
    network.load_state_dict({**weights, **(own if fresh_head else {})})


def build_empty(name: str, *, channels: int, outputs: int = 1) -> nn.Module:
    """The same network without memory behind its tensors, for their names, shapes and dtypes."""
    with torch.device("meta"):
        return BUILDERS[name](channels, outputs)
