"""Another split of the same images: a validation part held out by seed, positives made rarer.

Both take an `ImageSet` and answer one; neither copies pixels that are kept in place, and neither
touches the test split.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adap.core.config import SPLITS, AnyTask, EachClass, Split, Task, TrainingConfig
from adap.core.datasets import ImageSet
from adap.core.errors import ConfigError, DataError

_TRAIN, _VALIDATION = SPLITS.index("train"), SPLITS.index("validation")


def hold_out(image_set: ImageSet, *, fraction: float = 0.2, seed: int = 0) -> ImageSet:
    """Declare a random share of each class of the train split to be the validation split.

    Without declared splits every example is for training. As in the paper, 80 % of each class are
    then trained on and 20 % choose the epoch, and the seed moves the split. At least one example
    of a class stays on each side, but a class of one example is trained on.
    Raises ConfigError where a validation split is declared already, or for another fraction.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"expected a fraction between 0 and 1, got {fraction}")
    if image_set.has_split("validation"):
        raise ConfigError("expected a data set without a validation split, got one that has one")
    generator = np.random.default_rng(seed)
    train = image_set.in_split(None if image_set.splits is None else "train")
    splits = np.full(len(image_set), _TRAIN, np.int8)
    if image_set.splits is not None:
        splits[:] = image_set.splits
    for label in range(len(image_set.classes)):
        members = generator.permutation(train[image_set.labels[train] == label])
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        splits[members[: max(count, 0)]] = _VALIDATION
    return replace(image_set, splits=splits)


def make_rare(image_set: ImageSet, task: Task, *, prevalence: float, seed: int = 0) -> ImageSet:
    """Drop positives at random until they are this share of the training and validation examples.

    prevalence: positives over all examples of the split, the imbalance ratio of the literature.
    Negatives all stay, and so does the test split, so that models trained at different ratios are
    compared on the same images. Without declared splits all examples are thinned.
    Raises ConfigError for a prevalence that dropping cannot reach.
    """
    if not 0 < prevalence < 1:
        raise ConfigError(f"expected a prevalence between 0 and 1, got {prevalence}")
    generator = np.random.default_rng(seed)
    declared: tuple[Split, ...] = ("train", "validation")
    parts: list[Split | None] = [split for split in declared if image_set.has_split(split)]
    dropped: list[NDArray[np.int64]] = []
    for split in parts or [None]:
        index = image_set.in_split(split)
        targets = image_set.targets(task, index)
        positives = generator.permutation(index[targets == 1])
        negatives = len(index) - len(positives)
        kept = round(negatives * prevalence / (1 - prevalence))
        if not 1 <= kept <= len(positives):
            raise ConfigError(
                f"expected a prevalence from {1 / (1 + negatives):.2g} to "
                f"{len(positives) / len(index):.4g} for {', '.join(task.positive)} "
                f"({split or 'all'} examples), got {prevalence}"
            )
        dropped.append(positives[kept:])
    stays = np.setdiff1d(np.arange(len(image_set), dtype=np.int64), np.concatenate(dropped))
    return image_set.subset(stays)


def training_split(
    image_set: ImageSet, task: AnyTask, config: TrainingConfig
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """The declared splits, or a stratified random one of the examples that are not for testing."""
    if image_set.has_split("train"):
        train_index = image_set.in_split("train")
        if image_set.has_split("validation"):
            return train_index, image_set.in_split("validation")
    else:
        declared = image_set.has_split("test") or image_set.has_split("validation")
        if declared:
            raise DataError("expected a train split beside the other splits, got none")
        train_index = image_set.in_split(None)
    if isinstance(task, EachClass) and image_set.multilabel:
        return _multilabel_split(image_set, train_index, config)
    if isinstance(task, EachClass):
        names = [f"images of {name!r}" for name in image_set.classes]
        strata = image_set.labels[train_index]
    else:
        names = ["negatives", "positives"]
        strata = image_set.targets(task, train_index)
    rows = stratified(strata, names=names, share=config.validation.fraction, seed=config.seed)
    return np.setdiff1d(train_index, train_index[rows]), train_index[rows]


def stratified(
    strata: NDArray[Any], *, names: Sequence[str], share: float, seed: int
) -> NDArray[np.int64]:
    """Places of a random share of each stratum, rising: what is held out to choose the epoch.

    strata: (N,) numbers of the names.  Raises DataError for a stratum too small for both parts.
    """
    generator = np.random.default_rng(seed)
    held_out = []
    for stratum, name in enumerate(names):
        members = generator.permutation(np.flatnonzero(strata == stratum))
        count = round(len(members) * share)
        if not 0 < count < len(members):
            raise DataError(
                f"expected enough {name} for a training and a validation part, got {len(members)}"
            )
        held_out.append(members[:count])
    return np.sort(np.concatenate(held_out))


def _multilabel_split(
    image_set: ImageSet, train_index: np.ndarray[Any, np.dtype[np.int64]], config: TrainingConfig
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """A random split of images with several labels: rarest class first, each class is shared out.

    An image that a rarer class has placed stays there; the images without any class come last.
    """
    generator = np.random.default_rng(config.seed)
    matrix = image_set.label_matrix()[train_index]
    placed = np.zeros(len(train_index), bool)
    held_out = np.zeros(len(train_index), bool)
    for k in np.argsort(matrix.sum(axis=0), kind="stable"):
        members = matrix[:, k] == 1
        wanted = round(int(members.sum()) * config.validation.fraction)
        free = generator.permutation(np.flatnonzero(members & ~placed))
        held_out[free[: max(0, wanted - int((members & held_out).sum()))]] = True
        placed |= members
        if not 0 < int((members & held_out).sum()) < int(members.sum()):
            raise DataError(
                f"expected enough images of {image_set.classes[k]!r} for a training and a "
                f"validation part, got {int(members.sum())}"
            )
    rest = generator.permutation(np.flatnonzero(~placed))
    held_out[rest[: round(len(rest) * config.validation.fraction)]] = True
    return train_index[~held_out], train_index[held_out]
