"""Splits of a data set: the validation part that chooses the epoch, and positives made rarer.

`hold_out` and `make_rare` take an `ImageSet` and answer one; neither copies pixels that are kept in
place, and neither touches the test split.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adap.core.clusters import numbered
from adap.core.config.base import SPLITS, Split
from adap.core.config.data import AnyTask, EachClass, Task
from adap.core.config.training import TrainingConfig
from adap.core.datasets import ImageSet
from adap.core.errors import ConfigError, DataError

_TRAIN = SPLITS.index("train")


def hold_out(
    image_set: ImageSet, *, fraction: float = 0.2, seed: int = 0, split: Split = "validation"
) -> ImageSet:
    """Declare a random share of the train split to be another one, by `validation_part`.

    Without declared splits every example is for training.
    Raises ConfigError where that split is declared already, where there are splits and none to
    train on, or for a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"expected a fraction between 0 and 1, got {fraction}")
    if image_set.has_split(split):
        raise ConfigError(f"expected a data set without a {split} split, got one that has one")
    train = image_set.in_split(None if image_set.splits is None else "train")
    splits = np.full(len(image_set), _TRAIN, np.int8)
    if image_set.splits is not None:
        splits[:] = image_set.splits
    splits[validation_part(image_set, train, fraction=fraction, seed=seed)] = SPLITS.index(split)
    return replace(image_set, splits=splits)


def validation_part(
    image_set: ImageSet, train: NDArray[np.int64], *, fraction: float, seed: int
) -> NDArray[np.int64]:
    """A share of the examples at these indices, rising, by `held_out_of`."""
    matrix = image_set.label_matrix()[train]
    chosen = held_out_of(
        matrix,
        names=image_set.classes,
        fraction=fraction,
        seed=seed,
        clusters=image_set.cluster_names(train),
    )
    return train[chosen]


def held_out_of(
    matrix: NDArray[Any],
    *,
    names: Sequence[str],
    fraction: float,
    seed: int,
    clusters: Sequence[str] | None = None,
) -> NDArray[np.bool_]:
    """(N,) which examples choose the epoch: the one rule for all.

    matrix: (N, K) 1 where an example has the class.  names: of the K classes.

    A random share of each class, rarest class first, whatever the task: as in the paper, 80 % of
    each class are trained on and 20 % choose the epoch, and the seed moves the split. At least one
    example of a class stays on each side, but a class of one example is trained on. An example with
    several labels stays where a rarer class has placed it; those without any class come last.

    clusters: N names, of what stays whole. It is then clusters that are held out, by the same rule:
    a cluster has the classes of its examples, and shares are of clusters.
    """
    of = numbered(clusters, len(matrix))
    units = np.zeros((int(of.max(initial=-1)) + 1, matrix.shape[1]), bool)
    np.logical_or.at(units, of, matrix == 1)
    return _held_out_units(units, names=names, fraction=fraction, seed=seed)[of]


def _held_out_units(
    matrix: NDArray[np.bool_], *, names: Sequence[str], fraction: float, seed: int
) -> NDArray[np.bool_]:
    generator = np.random.default_rng(seed)
    counts = matrix.sum(axis=0)
    placed = np.zeros(len(matrix), bool)
    held_out = np.zeros(len(matrix), bool)
    for k in sorted(range(len(counts)), key=lambda k: (counts[k], names[k])):
        members = matrix[:, k]
        free = generator.permutation(np.flatnonzero(members & ~placed))
        wanted = _share(int(counts[k]), fraction) - int((members & held_out).sum())
        held_out[free[: max(0, wanted)]] = True
        placed |= members
    rest = generator.permutation(np.flatnonzero(~placed))
    held_out[rest[: round(len(rest) * fraction)]] = True
    return held_out


def _share(count: int, fraction: float) -> int:
    """How many of so many examples: at least one on each side, if there are two."""
    return max(0, min(max(round(count * fraction), 1), count - 1))


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
    image_set: ImageSet, task: AnyTask, config: TrainingConfig, *, sample: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What is trained on and what chooses the epoch, as `training_parts` finds them.

    Raises DataError where either part lacks positives or negatives of a task.
    """
    train, validation = training_parts(
        image_set, fraction=config.validation.fraction, seed=config.seed, sample=sample
    )
    for asked in _tasks(image_set, task):
        for index, what in ((train, "training"), (validation, "validation")):
            positives = int(image_set.label_matrix(asked.positive)[index].any(axis=1).sum())
            if not 0 < positives < len(index):
                raise DataError(
                    f"expected positives ({', '.join(asked.positive)}) and negatives in the "
                    f"{what} part, got {positives} positives among {len(index)} examples"
                    + (f", of a sample of {sample}" if sample is not None else "")
                )
    return train, validation


def training_parts(
    image_set: ImageSet, *, fraction: float, seed: int, sample: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The declared splits, or a validation part held out of the examples that are for training.

    sample: of both about so many together, by the rule of `held_out_of`; None takes all.
    Raises DataError where other splits are declared and none to train on.
    """
    if image_set.has_split("train"):
        train = image_set.in_split("train")
    elif image_set.has_split("test") or image_set.has_split("validation"):
        raise DataError("expected a train split beside the other splits, got none")
    else:
        train = image_set.in_split(None)
    declared = image_set.has_split("validation")
    validation = image_set.in_split("validation") if declared else train[:0]
    total = len(train) + len(validation)
    if sample is not None and sample < total:
        train, validation = (
            validation_part(image_set, index, fraction=sample / total, seed=seed)
            for index in (train, validation)
        )
    if not declared:
        validation = validation_part(image_set, train, fraction=fraction, seed=seed)
        train = np.setdiff1d(train, validation)
    return train, validation


def _tasks(image_set: ImageSet, task: AnyTask) -> list[Task]:
    if isinstance(task, EachClass):
        return [Task(positive=[name]) for name in image_set.classes]
    return [task]
