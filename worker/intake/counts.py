"""Counts of examples, and whether a ranking can be made and judged with them."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adap.core.config.base import SPLITS
from adap.models.header import shown
from adap.worker.intake.limits import Reasons, Rejected
from adap.worker.intake.notes import listed

MIN_EXAMPLES = 2  # of a class: one to learn from, one to judge by
MANY_SINGLE = 5  # classes of one image: not a few rare ones
MAX_LABELS = 1_000  # of an image that may have several
_NO_CLASS = re.compile(r"nan|none|null|n/?a|-?\d+[.,]\d+")
MAX_GROUPS = 1_000  # more are a column of ids, and too few examples in each to judge by


def looks_missing(name: str) -> bool:
    """Whether the name of a class is how tables write that there is none, or a measurement."""
    return _NO_CLASS.fullmatch(name.lower()) is not None


def check_counts(
    classes: Sequence[str],
    labels: NDArray[np.int64] | NDArray[np.uint8],
    *,
    splits: NDArray[np.int8] | None,
    groups: Sequence[str] | None,
) -> None:
    """A ranking needs positives and negatives, everywhere; a class needs more than one example.

    labels: (N,) indices into classes, or (N, K) in {0, 1}.
    splits: (N,), groups: N names, each None where nothing is declared.
    """
    reasons = Reasons()
    if labels.ndim == 1:
        _check_one_each(classes, labels, splits, reasons)
    else:
        _check_several(classes, labels, splits, reasons)
    different = len(set(groups or ()))
    if different > MAX_GROUPS:
        reasons.add(
            f"expected at most {MAX_GROUPS} different groups, got {different}: a group is what "
            "many images have in common, such as a site or a camera"
        )
    reasons.settle()


def check_two_classes(classes: Sequence[str]) -> None:
    """Raise Rejected for fewer than two classes."""
    if len(classes) < 2:
        only = shown(classes[0])
        raise Rejected(
            f"expected at least two classes, got {only} alone: a ranking needs negatives"
        )


def _check_one_each(
    classes: Sequence[str], labels: NDArray[Any], splits: NDArray[np.int8] | None, reasons: Reasons
) -> None:
    try:
        check_two_classes(classes)
    except Rejected as rejected:
        reasons.add(rejected.reasons[0])
    counts = np.bincount(labels, minlength=len(classes))
    _refuse_all_different(classes, counts)
    for name, count in zip(classes, counts.tolist(), strict=True):
        _check_enough(name, count, "images", reasons)
    for split, members in _members(splits):
        found = np.unique(labels[members])
        if len(found) == 1:
            only = shown(classes[found[0]])
            hint = ": a split without labels judges nothing: leave it out" if only == "'-1'" else ""
            reasons.add(f"split {split}: expected at least two classes, got {only} alone{hint}")


def _refuse_all_different(classes: Sequence[str], counts: NDArray[Any]) -> None:
    """Raise Rejected, in one sentence, where most classes have one image each."""
    single = [name for name, count in zip(classes, counts.tolist(), strict=True) if count == 1]
    if len(single) >= MANY_SINGLE and 2 * len(single) > len(classes):
        raise Rejected(
            f"expected classes of at least {MIN_EXAMPLES} images, got {len(single):,} of "
            f"{len(classes):,} with one each, such as {listed(single)}, as ids and measurements "
            "have: name the column that holds the classes (--label-column), or write few values "
            "in place of many"
        )


def _check_several(
    classes: Sequence[str], labels: NDArray[Any], splits: NDArray[np.int8] | None, reasons: Reasons
) -> None:
    counts = labels.sum(axis=0, dtype=np.int64)
    for name, count in zip(classes, counts.tolist(), strict=True):
        _check_enough(name, count, "images", reasons)
        _check_enough(name, len(labels) - count, "images without it", reasons)
    for split, members in _members(splits):
        share = labels[members].mean(axis=0)
        if not ((share > 0) & (share < 1)).any():
            reasons.add(
                f"split {split}: expected a class that some images have and others have not, "
                "got none"
            )


def _check_enough(name: str, count: int, what: str, reasons: Reasons) -> None:
    if count < MIN_EXAMPLES:
        hint = ""
        if looks_missing(name):
            hint = ": it looks like a missing value; leave images without a label out"
        reasons.add(
            f"class {shown(name)}: expected at least {MIN_EXAMPLES} {what}, got {count}{hint}"
        )


def _members(splits: NDArray[np.int8] | None) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The splits that have examples, and which those are."""
    for i, split in enumerate(SPLITS):
        if splits is not None and (splits == i).any():
            yield split, splits == i


def label_matrix(named: Sequence[Sequence[str]], classes: Sequence[str]) -> NDArray[np.uint8]:
    """(N, K) uint8 of the names of each example's labels."""
    position = {name: k for k, name in enumerate(classes)}
    matrix = np.zeros((len(named), len(classes)), np.uint8)
    for i, names in enumerate(named):
        matrix[i, [position[name] for name in names]] = 1
    return matrix


def check_class_count(classes: Sequence[str], *, examples: int) -> None:
    """Raise Rejected for more classes than an image may have labels of."""
    if not 1 <= len(classes) <= MAX_LABELS:
        raise Rejected(
            f"expected 1 to {MAX_LABELS} different labels where an image may have several, "
            f"got {len(classes)} among {examples} images"
        )
