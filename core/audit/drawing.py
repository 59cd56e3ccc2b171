"""Models that draw random numbers as they score: their mean over draws, which is what is audited.

    unsteadiness     how far the scores of the same images differ from one time to the next
    mean_of          a scorer that answers, and is followed, by its mean over draws
    drawing          random numbers of their own for a piece of work

An attack on such a model has to follow the mean of its gradients ("expectation over
transformation", Athalye, Engstrom et al., ICML 2018), and is to be judged by the mean of its
scores: the lowest of many noisy scores of one image says more of the noise than of the attack. So
nothing that a search saw is reported. What it found is scored anew, by other draws than it was
searched with, and by the same ones as the clean image and what every other attack found.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adap.core.attacks.base import loss_and_gradient
from adap.core.attacks.holding import attacking
from adap.core.audit.network import generator_of, logits_of

TRIES = 3  # a model that chooses among few things may answer twice alike


def unsteadiness(scorer: nn.Module, x: Tensor) -> float:
    """Largest difference between scores of the same images, as a share of the scores' deviation.

    0 for a model that repeats itself. Costs a few scorings.  x: (n, C, H, W).
    """
    with attacking(scorer):
        found = []
        for i in range(TRIES):
            with drawing(x.device, "unsteadiness", i):
                found.append(logits_of(scorer, x))
    tries = np.stack(found)
    largest, spread = float(np.ptp(tries, axis=0).max()), float(tries.mean(axis=0).std())
    return largest / spread if spread > 0 else float(largest > 0)


def mean_of(scorer: nn.Module, draws: int) -> nn.Module:
    """The scorer by its mean over so many draws; itself for one draw."""
    return scorer if draws == 1 else _Mean(scorer, draws)


class _Mean(nn.Module):
    def __init__(self, scorer: nn.Module, draws: int) -> None:
        super().__init__()
        self.scorer = scorer
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        """(B,) means of logits."""
        logits: Tensor
        if torch.is_grad_enabled() and x.requires_grad:
            logits = _MeanLogits.apply(x, self.scorer, self.draws)
            return logits
        logits = self.scorer(x)
        for _ in range(self.draws - 1):
            logits = logits + self.scorer(x)
        return logits / self.draws


class _MeanLogits(torch.autograd.Function):
    """Each logit depends on its own image alone, so the gradient of a draw is taken at once: the
    activations of one draw at a time are in memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scorer: Callable[[Tensor], Tensor], draws: int) -> Tensor:
        logits, gradients = loss_and_gradient(scorer, x)
        for _ in range(draws - 1):
            more, steeper = loss_and_gradient(scorer, x)
            logits, gradients = logits + more, gradients + steeper
        ctx.save_for_backward(gradients / draws)
        return logits.detach() / draws

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return upstream.view(-1, 1, 1, 1) * gradients, None, None


@contextmanager
def drawing(device: torch.device, *parts: object) -> Iterator[None]:
    """What PyTorch draws inside hangs on these parts alone; outside nothing has been drawn."""
    seed = generator_of(*parts).initial_seed()
    here = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=here):
        torch.default_generator.manual_seed(seed)
        if here:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
