"""Splits by seed: counts are written out; what must not move is compared with what it was."""

from dataclasses import replace

import numpy as np
import pytest

from adap.core.config.data import EachClass, Task
from adap.core.config.training import TrainingConfig, Validation
from adap.core.datasets import ImageSet
from adap.core.errors import ConfigError, DataError
from adap.core.training.splitting import hold_out, make_rare, training_split

COUNTS = {"a": 50, "b": 30, "c": 5, "d": 1}
TASK = Task(positive=["a"])


def image_set(*, test: bool = True) -> ImageSet:
    """The classes above for training, and as many again for testing."""
    labels = np.repeat(np.arange(4), list(COUNTS.values()))
    labels = np.concatenate([labels, labels]) if test else labels
    total = len(labels)
    splits = np.where(np.arange(total) < 86, 0, 2).astype(np.int8)
    return ImageSet(
        images=np.arange(total, dtype=np.uint8).reshape(total, 1, 1, 1),
        labels=labels.astype(np.int64),
        classes=list(COUNTS),
        example_ids=[str(i) for i in range(total)],
        splits=splits if test else None,
    )


def counts(made: ImageSet, split: str | None) -> list[int]:
    return np.bincount(made.labels[made.in_split(split)], minlength=4).tolist()


@pytest.mark.parametrize("test", [True, False])
def test_a_fifth_of_each_class_is_held_out(test: bool) -> None:
    made = hold_out(image_set(test=test), fraction=0.2, seed=0)
    assert counts(made, "validation") == [10, 6, 1, 0]
    assert counts(made, "train") == [40, 24, 4, 1]
    if test:
        assert made.in_split("test").tolist() == list(range(86, 172))


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
@pytest.mark.parametrize("task", [TASK, Task(positive=["c", "b"])])
def test_a_training_holds_out_what_was_declared_beforehand(several: bool, task: Task) -> None:
    made = image_set(test=False)
    if several:
        also = np.random.default_rng(0).random((86, 4)) < 0.1
        made = replace(made, labels=(made.label_matrix() | also).astype(np.uint8))
    config = TrainingConfig(seed=3, validation=Validation(fraction=0.3))
    train, validation = training_split(made, task, config)
    declared = hold_out(made, fraction=0.3, seed=3)
    assert declared.in_split("validation").tolist() == validation.tolist()
    assert declared.in_split("train").tolist() == train.tolist()
    assert sorted([*train, *validation]) == list(range(86))
    matrix = made.label_matrix()
    for k, count in enumerate(matrix.sum(axis=0)):
        held_out = matrix[validation, k].sum()
        assert held_out == max(0, min(max(round(count * 0.3), 1), count - 1)) or several
        assert 0 < held_out < count or count == 1


@pytest.mark.parametrize("test", [False, True])
def test_a_sample_takes_of_each_class_its_share_and_leaves_the_test_split_alone(test: bool) -> None:
    made = image_set(test=test)  # the first 86 are for training: 50, 30, 5 and 1 of a class
    config = TrainingConfig(seed=3, validation=Validation(fraction=0.25))
    train, validation = training_split(made, TASK, config, sample=43)
    again = training_split(made, TASK, config, sample=43)
    assert [rows.tolist() for rows in again] == [train.tolist(), validation.tolist()]
    both = np.concatenate([train, validation])
    assert len(set(both.tolist())) == len(both)
    assert both.max() < 86
    counts = made.label_matrix()[:86].sum(axis=0)
    sampled = made.label_matrix()[both].sum(axis=0)
    shares = [max(0, min(max(round(count / 2), 1), count - 1)) for count in counts.tolist()]
    assert sampled.tolist() == shares
    other, _ = training_split(made, TASK, config.model_copy(update={"seed": 4}), sample=43)
    assert other.tolist() != train.tolist()
    whole = training_split(made, TASK, config)
    assert [rows.tolist() for rows in training_split(made, TASK, config, sample=86)] == [
        rows.tolist() for rows in whole
    ]


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.99])
def test_two_positives_are_shared_out_by_either_door(fraction: float) -> None:
    made = replace(image_set(test=False), labels=np.array([0] * 84 + [1] * 2), classes=["n", "p"])
    config = TrainingConfig(validation=Validation(fraction=fraction))
    train, validation = training_split(made, Task(positive=["p"]), config)
    declared = hold_out(made, fraction=fraction, seed=0)
    assert declared.in_split("validation").tolist() == validation.tolist()
    assert made.labels[train].sum() == made.labels[validation].sum() == 1


def test_a_part_without_positives_is_refused_by_name() -> None:
    for task in (Task(positive=["d"]), EachClass(each=True)):
        with pytest.raises(DataError, match=r"positives \(d\) .* validation part, got 0 positives"):
            training_split(image_set(), task, TrainingConfig())


def test_the_seed_moves_the_split_and_nothing_else_does() -> None:
    first, again, other = (
        hold_out(image_set(), seed=seed).in_split("validation").tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_what_is_held_out_is_not_held_out_again() -> None:
    with pytest.raises(ConfigError, match="without a validation split"):
        hold_out(hold_out(image_set()))
    with pytest.raises(ConfigError, match="between 0 and 1, got 1"):
        hold_out(image_set(), fraction=1)


def test_positives_become_as_rare_as_asked_and_the_test_split_stays() -> None:
    whole = hold_out(image_set(), seed=0)  # 40 of 69 and 10 of 17 are positive
    made = make_rare(whole, TASK, prevalence=0.1, seed=0)
    assert counts(made, "train") == [3, 24, 4, 1]  # 3 of 32 is the nearest to a tenth
    assert counts(made, "validation") == [1, 6, 1, 0]
    assert counts(made, "test") == list(COUNTS.values())
    kept = made.images[:, 0, 0, 0]
    assert [made.example_ids[i] for i in range(len(made))] == [str(i) for i in kept]


def test_which_positives_stay_is_a_matter_of_the_seed() -> None:
    first, again, other = (
        list(make_rare(image_set(), TASK, prevalence=0.2, seed=seed).example_ids)
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_without_splits_everything_is_thinned() -> None:
    made = make_rare(image_set(test=False), TASK, prevalence=0.25)
    assert counts(made, None) == [12, 30, 5, 1]


@pytest.mark.parametrize("prevalence", [0.6, 0.001, 0, 1])
def test_a_prevalence_that_dropping_cannot_reach_is_refused(prevalence: float) -> None:
    with pytest.raises(ConfigError, match="expected a prevalence"):
        make_rare(image_set(), TASK, prevalence=prevalence)
