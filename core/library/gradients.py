"""A network and its examples, made ready for what needs gradients and runs batch by batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adap.core.attacks.holding import attacking
from adap.core.audit.network import as_input
from adap.core.errors import ModelError
from adap.core.library.attacks import columns_of
from adap.core.library.examples import Examples, Layout, as_float, examples_of
from adap.core.library.rankers import TRIED, Outputs, Ready, ready
from adap.core.library.refusals import refuse_unless_whole


@dataclass(frozen=True)
class Options:
    """How a caller wants a network and its images to be read: the options of `adap.audit`."""

    positive: Any
    outputs: Outputs
    mean: Sequence[float] | None
    std: Sequence[float] | None
    layout: Layout | None
    batch_size: int
    device: str | torch.device | None


@dataclass(frozen=True)
class Prepared:
    """The ranker, the examples, and what was decided about both."""

    ranker: Ready
    examples: Examples
    batch_size: int

    @property
    def warnings(self) -> list[str]:
        return [*self.ranker.decided, *self.examples.decided]

    def batches(self, count: int | None = None) -> list[slice]:
        """The rows of each batch: of all examples, or of this many."""
        end = len(self.examples) if count is None else count
        starts = range(0, end, self.batch_size)
        return [slice(start, min(start + self.batch_size, end)) for start in starts]

    def input(self, rows: Any) -> Tensor:
        """These images (B, C, H, W) as the network gets them."""
        return as_input(self.examples.images[rows], self.ranker.device)


@contextmanager
def prepared(
    model: nn.Module, images: Any, labels: Any, options: Options, *, because: str
) -> Iterator[Prepared]:
    """Both, with the weights held still, for as long as the block lasts.

    because: what the network is needed for, as in "whose gradients ...".
    Raises ModelError for a function and what `ready` refuses, ConfigError for a batch size that
    cannot be, DataError for the examples.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected an nn.Module, {because}, got {type(model).__name__}")
    refuse_unless_whole("batch_size", options.batch_size, least=1)
    with (
        examples_of(images, labels, positive=options.positive, layout=options.layout) as examples,
        ready(
            model,
            as_float(examples.images[:TRIED]),
            outputs=options.outputs,
            positive=columns_of(options.positive),
            mean=options.mean,
            std=options.std,
            device=options.device,
            refuse_train_mode=True,
        ) as ranker,
        attacking(ranker.scorer),
    ):
        yield Prepared(ranker, examples, options.batch_size)
