"""Adversarial weight perturbation: descend from weights at which the loss is higher.

Wu, Xia & Wang, *Adversarial Weight Perturbation Helps Robust Generalization*, NeurIPS 2020: a flat
loss over the weights narrows the gap between robustness in training and in testing. Here the loss
is that of the method, whatever it is, and estimators are read, not written.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from adap.core.objectives.base import Objective
from adap.core.training.ranks import Ranks


@contextmanager
def perturbed(
    network: nn.Module,
    objective: Objective,
    loss_fn: Callable[[], Tensor],
    *,
    size: float,
    ranks: Ranks,
) -> Iterator[None]:
    """Inside, each weight w of two or more axes is w + size |w| g / |g|, g the loss's gradient.

    Costs the passes of a step, and one backward pass, once more. Afterwards the weights are the
    same bits as before. The passes that find g leave no trace in BatchNorm's statistics.
    """
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    weights = [w for w in network.parameters() if w.requires_grad and w.ndim > 1]
    objective.eval()
    try:
        gradients = torch.autograd.grad(
            loss_fn(), weights, allow_unused=True, materialize_grads=True
        )
    finally:
        objective.train()
    ranks.add_up(gradients)
    before = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for name, value in network.named_buffers():
            value.copy_(buffers[name])
        for weight, gradient in zip(weights, gradients, strict=True):
            # by its largest entry first: squares of what is tiny would be 0
            scaled = gradient / gradient.abs().max().clamp_min(torch.finfo(gradient.dtype).tiny)
            length = scaled.norm()
            weight.add_(scaled * torch.where(length > 0, size * weight.norm() / length, 0.0))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
