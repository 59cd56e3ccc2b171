"""Smallest changes in an audit: how little moves positives out of the first k of a task.

The first k are of the whole task, so one piece of work asks for all.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adap.core.attacks.holding import attacking
from adap.core.attacks.smallest import smallest_change
from adap.core.audit.measuring import score_all
from adap.core.audit.network import Rows, as_input
from adap.core.config.audits import SmallestChanges
from adap.core.config.threats import Norm
from adap.core.scores import SmallestFound


def smallest_changes(
    scorer: nn.Module,
    images: Rows,
    targets: NDArray[np.int64],
    example_ids: Sequence[str],
    *,
    asked: SmallestChanges,
    norm: Norm,
    seed: int,
    shard_size: int,
    batch_size: int,
    device: torch.device,
    on_share: Callable[[float], None],
) -> tuple[NDArray[np.float64], SmallestFound]:
    """The clean logits (N,), and what FMN finds for the positives among the first k, all other
    images as they are.

    images, targets (N,), example_ids: of the whole task.  seed, shard_size, batch_size: of the
    audit, whose clean logits these are.  on_share: called after each batch with the share of the
    work that is done; what it raises ends the work. It draws nothing. Costs a scoring of every
    image, and of each positive searched for `asked.steps` gradients and some more scorings.

    Raises ConfigError for a k that leaves nobody out, ModelError for logits that are not finite.
    """
    asked.refuse_beyond_examples(len(targets))
    k = int(targets.sum()) if asked.k is None else asked.k
    most, done = asked.positives * 2 * asked.steps + len(targets), 0  # passes of an image

    def more(passes: int) -> None:
        nonlocal done
        done += passes
        on_share(done / most)

    with attacking(scorer):
        clean = score_all(
            scorer,
            images,
            len(targets),
            seed=seed,
            shard_size=shard_size,
            batch_size=batch_size,
            device=device,
            on_images=more,
        )
        order = ranked(clean, targets)
        threshold = float(clean[order[k]])
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
            more(2 * asked.steps * len(x))
    ids = [example_ids[row] for row in chosen]
    return clean, SmallestFound(k, threshold, len(among), ids, np.concatenate(sizes))


def ranked(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows, best first, the negatives of a tie before its positives."""
    found: NDArray[np.int64] = np.lexsort((targets, -logits))
    return found
