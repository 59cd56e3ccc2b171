"""Smallest changes in an audit: how little moves positives out of the first k of a task.

The first k are of the whole task, so one piece of it asks for all.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adap.core.attacks.holding import attacking
from adap.core.attacks.smallest import smallest_change
from adap.core.audit.network import as_input, logits_of
from adap.core.config.audits import SmallestChanges
from adap.core.config.threats import Norm
from adap.core.scores import SmallestFound


class Rows(Protocol):
    """Images of a split, (N, C, H, W) once they are looked at: by a slice or by an index."""

    def __getitem__(self, rows: Any, /) -> Any: ...


def smallest_changes(
    scorer: nn.Module,
    images: Rows,
    targets: NDArray[np.int64],
    example_ids: Sequence[str],
    *,
    asked: SmallestChanges,
    norm: Norm,
    batch_size: int,
    device: torch.device,
    on_batch: Callable[[], None],
) -> SmallestFound:
    """What FMN finds for the positives among the first k, all other images as they are.

    images, targets (N,), example_ids: of the whole task.  on_batch: called after each batch; what
    it raises ends the work. It draws nothing. Costs a scoring of every image, and of each positive
    searched for `asked.steps` gradients and some more scorings.

    Raises ConfigError for a k that leaves nobody out.
    """
    asked.refuse_beyond_examples(len(targets))
    k = int(targets.sum()) if asked.k is None else asked.k
    with attacking(scorer):
        clean = []
        for start in range(0, len(targets), batch_size):
            rows = slice(start, min(start + batch_size, len(targets)))
            clean.append(logits_of(scorer, as_input(images[rows], device)))
            on_batch()
        order = ranked(np.concatenate(clean), targets)
        threshold = float(np.concatenate(clean)[order[k]])
        among = [row for row in order[:k] if targets[row] == 1]
        count = min(asked.positives, len(among))
        spread = np.linspace(0, len(among) - 1, count).round().astype(np.int64)
        chosen = np.sort(np.array(among, np.int64)[spread])
        sizes = [np.empty(0)]  # where no positive is among them
        for start in range(0, count, batch_size):
            x = as_input(images[chosen[start : start + batch_size]], device)
            _, size = smallest_change(
                lambda x: scorer(x) - threshold, x, norm=norm, steps=asked.steps
            )
            sizes.append(size.double().cpu().numpy())
            on_batch()
    return SmallestFound(
        k, threshold, len(among), [example_ids[row] for row in chosen], np.concatenate(sizes)
    )


def ranked(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows, best first, the negatives of a tie before its positives."""
    found: NDArray[np.int64] = np.lexsort((targets, -logits))
    return found
