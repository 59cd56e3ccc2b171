"""An exponential moving average of a network's weights, which often ranks better than they do."""

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """A network whose weights follow those of another, step by step.

    After step t the average moves by 1 - min(decay, (1 + t) / (10 + t)) of the way to the weights,
    so that the random start is forgotten early on however high the decay is. BatchNorm's statistics
    are averaged as well, or they would belong to other weights; its counts are copied.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        self.network = copy.deepcopy(network)
        self.decay = decay
        own, live = self.network.state_dict(), network.state_dict()
        floats = [name for name, tensor in live.items() if tensor.is_floating_point()]
        self._averages: list[Tensor] = [own.pop(name) for name in floats]
        self._weights: list[Tensor] = [live.pop(name) for name in floats]
        self._counts = list(zip(own.values(), live.values(), strict=True))

    def update(self, *, step: int) -> None:
        """Follow the weights as they are after `step` steps; never waits for a GPU."""
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(self._averages, self._weights, step)  # type: ignore[no-untyped-call]

    def settle(self) -> nn.Module:
        """The averaged network, its counts brought up to date."""
        with torch.no_grad():
            for own, live in self._counts:
                own.copy_(live)
        return self.network
