"""One training in several processes, exact: what it computes is what one process would.

Each process, a rank, holds the whole training set and draws the same batches, augmentations and
noise, for the whole batch; then it attacks and passes its own share of the images. Logits are
gathered, so that objectives see those of the whole batch with all targets and indices: an AP
surrogate compares every positive with every image, which the pairs of a share alone would get
wrong. Losses and estimators are hence the same on every rank, bit for bit; gradients of the weights
are added up; and BatchNorm takes its statistics from the whole batch (`synchronised`).

So the weights are those of one process up to the rounding of sums, which are taken in another
order. A network that draws random numbers itself (dropout) draws others than in one process.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adap.core.config.training import TrainingConfig
from adap.core.errors import ConfigError
from adap.core.training.examples import Images, parts


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, and which of them this is; by default it is the only one.

    Several need torch's default process group, of as many.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the one that saves and reports."""
        return self.rank == 0

    def refuse_indivisible(self, batch_size: int) -> None:
        """Raise ConfigError for a batch that cannot be shared evenly."""
        if batch_size % self.count:
            raise ConfigError(
                f"expected a batch_size that {self.count} devices divide evenly, got {batch_size}"
            )

    def own(self, batch: Tensor) -> Tensor:
        """This rank's share of a batch: (B, ...) to (B / count, ...)."""
        return batch if self.count == 1 else batch.chunk(self.count)[self.rank]

    def gathered(self, logits: Tensor) -> Tensor:
        """(B, ...) the logits of the whole batch, of which each rank has its own share.

        As every rank computes the same loss of them, the gradient of its share is its part of the
        gradient of the whole: nothing is sent on the way back.
        """
        return logits if self.count == 1 else _Gathered.apply(logits, self)

    def sum_of(self, value: Tensor) -> Tensor:
        """The sum over the ranks, through which gradients flow: theirs is the sum as well."""
        return value if self.count == 1 else _Sum.apply(value)

    def add_up(self, parts: Sequence[Tensor]) -> None:
        """Make each tensor the sum of those of all ranks, the same bits everywhere."""
        if self.count == 1 or not parts:
            return
        flat = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(flat)
        totals = torch.split(flat, [part.numel() for part in parts])
        for part, total in zip(parts, totals, strict=True):
            part.copy_(total.view_as(part))

    def agree_on(self, *modules: nn.Module) -> None:
        """Give every rank the first one's weights and buffers."""
        if self.count > 1:
            for module in modules:
                for value in module.state_dict().values():
                    dist.broadcast(value, 0)

    def told(self, value: Any) -> Any:
        """What the first rank has, on all of them."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def refuse_other(self, config: TrainingConfig, *tensors: Images) -> None:
        """Raise ConfigError unless these are the same on every rank."""
        own = hashlib.sha256(config.sha256().encode())
        for tensor in tensors:
            own.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            for part in parts(tensor):
                own.update(part.contiguous().numpy().data)
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, own.hexdigest())
        if len(set(found)) > 1:
            raise ConfigError(
                "expected the same images, targets and configuration in every process of a "
                "training, got different ones: each is given all of them, and takes its share of "
                "every batch itself"
            )


ALONE = Ranks()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        parts = [torch.empty_like(own) for _ in range(ranks.count)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.own(upstream), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # noqa: ARG004
        total = upstream.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def backend(*, cuda: bool) -> str:
    """What connects ranks: tensors on GPUs by NCCL, all others by gloo."""
    return "cpu:gloo,cuda:nccl" if cuda else "gloo"


@contextmanager
def group(ranks: Ranks, *, meeting: Path, device: torch.device) -> Iterator[None]:
    """torch's default process group inside, of ranks on this machine; gone outside.

    meeting: a file that is not there yet, by which they find one another.
    """
    store = dist.FileStore(str(meeting), ranks.count)  # type: ignore[attr-defined]
    how = backend(cuda=device.type == "cuda")
    dist.init_process_group(how, store=store, rank=ranks.rank, world_size=ranks.count)
    try:
        yield
    finally:
        dist.destroy_process_group()
