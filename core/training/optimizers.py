"""The optimisers of a training: on a GPU with all of their state there, so that a step of theirs
may be captured, and their kernels fused where torch has them so."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adap.core.config.training import Optimizer

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda weights, o, **how: torch.optim.Adam(
        weights, o.lr, weight_decay=o.weight_decay, **how
    ),
    "adamw": lambda weights, o, **how: torch.optim.AdamW(
        weights, o.lr, weight_decay=o.weight_decay, **how
    ),
    "nadam": lambda weights, o, **how: torch.optim.NAdam(
        weights, o.lr, weight_decay=o.weight_decay, **how
    ),
    "radam": lambda weights, o, **how: torch.optim.RAdam(
        weights, o.lr, weight_decay=o.weight_decay, **how
    ),
    "rmsprop": lambda weights, o, **how: torch.optim.RMSprop(
        weights, o.lr, momentum=o.momentum, weight_decay=o.weight_decay, **how
    ),
    "sgd": lambda weights, o, **how: torch.optim.SGD(
        weights,
        o.lr,
        momentum=o.momentum,
        weight_decay=o.weight_decay,
        nesterov=o.nesterov,
        **how,
    ),
}
_ON_A_GPU: dict[str, dict[str, bool]] = {
    "adam": {"capturable": True, "fused": True},
    "adamw": {"capturable": True, "fused": True},
    "nadam": {"capturable": True},
    "radam": {"capturable": True},
    "rmsprop": {"capturable": True},
    "sgd": {"fused": True},
}
_READS_ITS_RATE = {"rmsprop"}  # a rate in a tensor would make every step wait for the host


def optimizer_of(
    weights: Iterable[nn.Parameter], settings: Optimizer, *, device: torch.device
) -> torch.optim.Optimizer:
    """An optimiser of weights that lie on the device.

    On a GPU its learning rate is a tensor, as far as torch's optimiser takes one: what was captured
    follows it.
    """
    on_a_gpu = device.type == "cuda"
    optimizer = _OPTIMIZERS[settings.name](
        weights, settings, **(_ON_A_GPU[settings.name] if on_a_gpu else {})
    )
    if on_a_gpu and settings.name not in _READS_ITS_RATE:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(settings.lr, device=device)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> bool:
    """Learn at this rate from now on; whether a captured step has to be captured anew for it."""
    moved = False
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            moved = moved or group["lr"] != lr
            group["lr"] = lr
    return moved


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Take over the state of an optimiser of the same settings, maybe of another device."""
    groups = [
        {**group, "params": theirs["params"]}
        for group, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({**saved, "param_groups": groups})
