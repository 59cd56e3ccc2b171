"""BatchNorm over all ranks of a training: statistics of the whole batch, on any device.

torch's SyncBatchNorm does the same on GPUs only, and by another sum; this one is checked against
one process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adap.core.errors import ConfigError
from adap.core.training.ranks import Ranks


@contextmanager
def synchronised(network: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Inside, each BatchNorm that takes statistics of its batch takes them over all ranks.

    Raises ConfigError for a BatchNorm with a forward pass of its own, whose statistics would be
    of a share of the batch alone.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)] if ranks.count > 1 else []
    norms = [norm for norm in norms if not isinstance(norm, nn.SyncBatchNorm)]
    for norm in norms:
        if type(norm).forward is not _BatchNorm.forward:
            raise ConfigError(
                "expected torch's own BatchNorm in a training on several devices, got "
                f"{type(norm).__name__}, whose statistics would be of each device's images alone"
            )
    try:
        for norm in norms:
            norm.forward = partial(_forward, norm, ranks)  # type: ignore[method-assign]
        yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)


def _forward(norm: _BatchNorm, ranks: Ranks, x: Tensor) -> Tensor:
    """(B, C, ...) normalised channel by channel: (x - mean) / sqrt(var + eps) * weight + bias."""
    if not norm.training and norm.running_mean is not None:
        return type(norm).forward(norm, x)
    norm._check_input_dim(x)  # type: ignore[no-untyped-call]
    values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    rest = [axis for axis in range(x.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    count = ranks.count * x.numel() // x.shape[1]
    mean = ranks.sum_of(values.sum(dim=rest)) / count  # (C,)
    centred = values - mean.view(shape)
    variance = ranks.sum_of(centred.square().sum(dim=rest)) / count  # (C,)
    if norm.training and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
            unbiased = variance * (count / max(count - 1, 1))
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)
    y = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)
