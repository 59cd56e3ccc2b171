"""How many examples there are of what, and whether a ranking can be made and judged with them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.config import SPLITS
from models.header import shown
from worker.intake.limits import Reasons

MIN_EXAMPLES = 2  # of a class: one to learn from, one to judge by
MAX_GROUPS = 1_000  # more are a column of ids, and too few examples in each to judge by


def class_counts(classes: Sequence[str], labels: NDArray[np.int64]) -> dict[str, int]:
    """Examples of each class; labels: (N,) indices into classes."""
    counts = np.bincount(labels, minlength=len(classes))
    return dict(zip(classes, counts.tolist(), strict=True))


def check_counts(
    classes: Sequence[str],
    labels: NDArray[np.int64],
    *,
    splits: NDArray[np.int8] | None,
    groups: Sequence[str] | None,
) -> None:
    """A ranking needs two classes, everywhere; a class needs more than one example.

    splits: (N,), groups: N names, each None where nothing is declared.
    """
    reasons = Reasons()
    counts = class_counts(classes, labels)
    if len(classes) < 2:
        only = shown(classes[0])
        reasons.add(f"expected at least two classes, got {only} alone: a ranking needs negatives")
    for name, count in counts.items():
        if count < MIN_EXAMPLES:
            reasons.add(
                f"class {shown(name)}: expected at least {MIN_EXAMPLES} images, got {count}"
            )
    if splits is not None:
        for i, split in enumerate(SPLITS):
            found = np.unique(labels[splits == i])
            if len(found) == 1:
                only = shown(classes[found[0]])
                reasons.add(f"split {split}: expected at least two classes, got {only} alone")
    different = len(set(groups or ()))
    if different > MAX_GROUPS:
        reasons.add(
            f"expected at most {MAX_GROUPS} different groups, got {different}: a group is what "
            "many images have in common, such as a site or a camera"
        )
    reasons.settle()
