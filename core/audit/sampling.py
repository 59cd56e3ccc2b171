"""A stratified sample of the examples of an audit, each side in its share.

    check_sample       refuse a sample that no figure could be read off
    sampled_rows       so many rows at random, each side in its share
    audited_rows       the examples of a data set that an audit of a task looks at
    sample_doubt       what a reader must know of a sample

AP hangs on the share of positives, so a sample keeps it, to the nearest image. Its figures rest on
fewer examples, and their intervals are as much wider. This module imports no torch.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adap.core.config.audits import AuditConfig
from adap.core.config.base import Split
from adap.core.config.data import Task
from adap.core.datasets import ImageSet
from adap.core.errors import DataError

LEAST = 2  # of each side


def positives_of(count: int, *, positives: int, examples: int) -> int:
    """The share of the positives in a sample of so many, to the nearest image."""
    return round(count * positives / examples)


def check_sample(
    count: int, *, positives: int, examples: int, named: str, part: str = "", whole: int = 0
) -> None:
    """Raise DataError for a sample with fewer than two positives or two negatives.

    named: the positive classes.  part, whole: where these examples are a part of so many that are
    sampled, its name and how many; it comes in its share.
    """
    whole = whole or examples
    share = round(count * examples / whole)
    kept = positives_of(share, positives=positives, examples=examples)
    if min(kept, share - kept) < LEAST:
        fewer = min(positives, examples - positives)
        enough = -(-LEAST * whole // fewer)
        raise DataError(
            f"expected a sample with at least {LEAST} positives and {LEAST} negatives{part}, got "
            f"{kept} positives ({named}) and {share - kept} negatives in a sample of {count} of "
            f"{whole}, each side in its share: sample {enough} or more"
        )


def sampled_rows(
    targets: NDArray[np.int64], count: int, *, named: str, seed: int
) -> NDArray[np.int64]:
    """So many rows at random, rising, each side in its share.

    targets: (N,) in {0, 1}, N > count.  named: the positive classes.
    Raises DataError as `check_sample` does.
    """
    positives, examples = int(targets.sum()), len(targets)
    check_sample(count, positives=positives, examples=examples, named=named)
    kept = positives_of(count, positives=positives, examples=examples)
    generator = np.random.default_rng(seed)
    return np.sort(
        np.concatenate(
            [
                generator.choice(np.flatnonzero(targets == side), rows, replace=False)
                for side, rows in ((1, kept), (0, count - kept))
            ]
        )
    )


def audited_rows(
    image_set: ImageSet, split: Split | None, task: Task, config: AuditConfig
) -> NDArray[np.int64]:
    """Indices of the examples that an audit of this task looks at, rising.

    Raises DataError as `check_sample` does.
    """
    index = image_set.in_split(split)
    count = config.sampled(len(index))
    if count is None:
        return index
    targets = image_set.targets(task, index)
    named = ", ".join(task.positive)
    return index[sampled_rows(targets, count, named=named, seed=config.seed)]


def sample_doubt(
    count: int | None, examples: int, *, clusters: Sequence[str] | None = None, seed: int
) -> str | None:
    """What a reader must know of a sample; of no sample nothing.

    clusters: those of the sampled examples, one name each, where there are any.
    """
    if count is None:
        return None
    said = (
        f"A random sample of {count:,} of {examples:,} examples was audited (seed {seed}), "
        "each side in its share: figures hold for all of them within their intervals, which are "
        "wider for it."
    )
    if clusters is None:
        return said
    return (
        f"{said} Examples were drawn one by one, so of {len(set(clusters)):,} clusters the sample "
        "holds parts; intervals draw each part whole, so what its examples share widens them."
    )
