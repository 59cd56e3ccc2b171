"""Batch samplers: plainly shuffled, or with a fixed number of positives in each, of
one class or of many.

An epoch is ceil(N / batch_size) batches with any sampler, and all batches have the same size:
so an epoch costs the same number of steps whatever the method, and milestones and figures by
epoch compare. Batches run over the end of one shuffle into the next, so no rest is dropped and
none is left that is too small for BatchNorm.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adap.core.errors import ConfigError, DataError


class Sampler:
    """Batches of examples as (batch_size,) int64 indices; iterating gives one epoch of them.

    After any number of batches each positive has been drawn equally often, give or take one, and so
    has each negative (each example, for `PlainSampler`; `ClassSampler` has its own words). An epoch
    that was left goes on where it stopped, also in another sampler that took over the state.

    generator: decides every shuffle; a CPU generator that nothing else draws from.
    """

    def __init__(
        self, *parts: tuple[Tensor, int], examples: int, generator: torch.Generator
    ) -> None:
        """parts: indices, and how many of them each batch takes."""
        self._streams = [(_Stream(items, generator=generator), count) for items, count in parts]
        self._generator = generator
        self.batch_size = sum(count for _, count in parts)
        self._batches = -(-examples // self.batch_size)
        self._drawn = 0  # batches of the current epoch

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._batches

    def __iter__(self) -> Iterator[Tensor]:
        while self._drawn < self._batches:
            self._drawn += 1
            yield self._batch()
        self._drawn = 0

    def _batch(self) -> Tensor:
        return torch.cat([stream.take(count) for stream, count in self._streams])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the batches to come depend on: tensors, lists and numbers."""
        return {
            "generator": self._generator.get_state(),
            "drawn": self._drawn,
            "streams": [
                {"order": stream.order.clone(), "position": stream.position}
                for stream, _ in self._streams
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where another sampler of the same examples stood."""
        expected = [len(stream.items) for stream, _ in self._streams]
        got = [len(saved["order"]) for saved in state["streams"]]
        if got != expected:
            raise ConfigError(
                f"expected the state of a sampler of {expected} examples, got one of {got}"
            )
        self._generator.set_state(state["generator"].cpu())
        self._drawn = state["drawn"]
        for (stream, _), saved in zip(self._streams, state["streams"], strict=True):
            stream.order, stream.position = saved["order"].cpu().clone(), saved["position"]


class PlainSampler(Sampler):
    """Shuffles all examples; a batch is at most the whole set."""

    def __init__(self, examples: int, *, batch_size: int, generator: torch.Generator) -> None:
        if examples < 1:
            raise DataError(f"expected at least one example, got {examples}")
        super().__init__(
            (torch.arange(examples), min(batch_size, examples)),
            examples=examples,
            generator=generator,
        )


class PositiveSampler(Sampler):
    """Puts `positives_per_batch` positives into every batch and fills it up with negatives.

    One positive is enough: where there are fewer than asked for, they come several times in a
    batch. The positives are the first of the batch.
    """

    def __init__(
        self,
        targets: Tensor,
        *,
        batch_size: int,
        positives_per_batch: int,
        generator: torch.Generator,
    ) -> None:
        """targets: (N,) in {0, 1}."""
        _refuse_no_room(batch_size, positives_per_batch)
        positives = (targets.cpu() == 1).nonzero().flatten()
        negatives = (targets.cpu() == 0).nonzero().flatten()
        if len(positives) == 0 or len(negatives) == 0:
            raise DataError(
                f"expected positives and negatives, got {len(positives)} positives "
                f"among {len(targets)} examples"
            )
        super().__init__(
            (positives, positives_per_batch),
            (negatives, batch_size - positives_per_batch),
            examples=len(targets),
            generator=generator,
        )


class ClassSampler(Sampler):
    """Shares `positives_per_batch` places of every batch among K classes, and fills it up plainly.

    Each class gets as many of its positives as the others, in every batch if there are places for
    all; what does not divide goes to the classes in turns. A single positive of a class is enough.
    The rest of the batch comes from all examples alike, so that those without any class are seen
    too. Each positive of a class is drawn for it equally often, give or take one, and each example
    for the rest.
    """

    def __init__(
        self,
        targets: Tensor,
        *,
        batch_size: int,
        positives_per_batch: int,
        generator: torch.Generator,
    ) -> None:
        """targets: (N, K) in {0, 1}; an example may be positive for several classes, or none."""
        examples, classes = targets.shape
        _refuse_no_room(batch_size, positives_per_batch)
        members = [(column == 1).nonzero().flatten() for column in targets.cpu().T]
        for number, found in enumerate(members):
            if len(found) in (0, examples):
                raise DataError(
                    f"expected positives and negatives of each class, got {len(found)} positives "
                    f"of class {number} among {examples} examples"
                )
        each, remainder = divmod(positives_per_batch, classes)
        super().__init__(
            *((found, each) for found in members),
            (torch.arange(examples), batch_size - positives_per_batch),
            (torch.arange(classes), remainder),  # not examples: whose turn it is for one more
            examples=examples,
            generator=generator,
        )

    def _batch(self) -> Tensor:
        *classes, (everyone, rest), (turns, remainder) = self._streams
        more = turns.take(remainder).bincount(minlength=len(classes)).tolist()
        drawn = [stream.take(each + n) for (stream, each), n in zip(classes, more, strict=True)]
        return torch.cat([*drawn, everyone.take(rest)])


def _refuse_no_room(batch_size: int, positives_per_batch: int) -> None:
    if not 1 <= positives_per_batch < batch_size:
        raise ConfigError(
            f"expected between 1 and {batch_size - 1} positives in a batch of {batch_size}, "
            f"got {positives_per_batch}"
        )


class _Stream:
    """Shuffles of the same items, one after the other without end."""

    def __init__(self, items: Tensor, *, generator: torch.Generator) -> None:
        self.items = items
        self.order = items
        self.position = len(items)  # the first draw starts with a shuffle
        self._generator = generator

    def take(self, count: int) -> Tensor:
        """The next `count` items."""
        taken = [self.order[:0]]
        while count > 0:
            if self.position == len(self.order):
                shuffle = torch.randperm(len(self.items), generator=self._generator)
                self.order, self.position = self.items[shuffle], 0
            taken.append(self.order[self.position : self.position + count])
            self.position += len(taken[-1])
            count -= len(taken[-1])
        return torch.cat(taken)
