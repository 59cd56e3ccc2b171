"""The processes that share a training of one's own, as `torchrun` starts them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from adap.core.errors import ConfigError
from adap.core.library.refusals import refuse_unless_whole
from adap.core.training.ranks import ALONE, Ranks, backend


@contextmanager
def ranks_of(devices: int) -> Iterator[Ranks]:
    """This process among `devices` that train together, in torch's default process group.

    A group that there is already is used and stays; else it is made from what torchrun says, and
    this process computes on the GPU of its local rank where it has GPUs.
    Raises ConfigError for another number of processes than that.
    """
    refuse_unless_whole("devices", devices, least=1)
    if devices == 1:
        yield ALONE
        return
    made = not (dist.is_available() and dist.is_initialized())
    if made:
        if not (dist.is_available() and dist.is_torchelastic_launched()):
            raise ConfigError(
                f"expected {devices} processes for devices={devices}, got this one alone: start "
                f"it with torchrun --nproc-per-node {devices}"
            )
        if torch.cuda.is_available():
            torch.cuda.set_device(dist.get_node_local_rank())
        dist.init_process_group(backend(cuda=torch.cuda.is_available()))
    try:
        if dist.get_world_size() != devices:
            raise ConfigError(
                f"expected devices={dist.get_world_size()}, as many as processes run together, "
                f"got devices={devices}"
            )
        yield Ranks(dist.get_rank(), devices)
    finally:
        if made:
            dist.destroy_process_group()
