"""The stored form of a data set, judged by the safetensors library."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from adap.core.config.data import Task
from adap.core.datasets import ImageSet
from adap.core.errors import ConfigError, DataError

GROUPS = ["north", "süd", "north", "a, b", "a, b", "süd", "north"]


def image_set(*, splits: bool = True, groups: bool = True) -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(
        images=rng.integers(0, 256, (7, 3, 5, 4), np.uint8),
        labels=np.array([0, 1, 2, 0, 1, 2, 2], np.int64),
        classes=["cat", "dog", "π, a horse"],
        example_ids=[f"träin/{i}.png" for i in range(7)],
        splits=np.array([0, 0, 0, 2, 2, 2, 2], np.int8) if splits else None,
        groups=GROUPS if groups else None,
    )


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("splits", [True, False])
def test_the_stored_form_comes_back_as_it_was(tmp_path: Path, splits: bool, groups: bool) -> None:
    made = image_set(splits=splits, groups=groups)
    made.save(tmp_path / "set")
    read = ImageSet.load(tmp_path / "set")
    np.testing.assert_array_equal(read.images, made.images)
    np.testing.assert_array_equal(read.labels, made.labels)
    assert list(read.classes) == list(made.classes)
    assert list(read.example_ids) == list(made.example_ids)
    assert (read.splits is None) == (not splits)
    assert read.groups == (GROUPS if groups else None)


def test_the_stored_form_is_safetensors(tmp_path: Path) -> None:
    made = image_set()
    made.save(tmp_path / "set")
    judged = load_file(tmp_path / "set")
    np.testing.assert_array_equal(judged["images"], made.images)
    np.testing.assert_array_equal(judged["labels"], made.labels)
    np.testing.assert_array_equal(judged["splits"], made.splits)
    assert judged["groups"].tobytes().decode().split("\0") == [*GROUPS, ""]


def test_what_was_stored_before_there_were_groups_is_read(tmp_path: Path) -> None:
    image_set(groups=False).save(tmp_path / "set")
    before = {"labels", "images", "classes", "example_ids", "splits"}
    assert set(load_file(tmp_path / "set")) == before
    assert ImageSet.load(tmp_path / "set").group_names(np.arange(7)) is None


def test_groups_go_with_their_examples() -> None:
    made = image_set()
    some = made.subset(np.array([6, 1, 3]))
    assert made.group_names(np.array([6, 1, 3])) == ["north", "süd", "a, b"]
    assert some.group_names(np.array([2, 0])) == ["a, b", "north"]
    assert image_set(groups=False).subset(np.array([0, 1])).groups is None


def test_a_task_marks_its_classes_everywhere_or_where_asked() -> None:
    made = image_set()
    task = Task(positive=["dog", "π, a horse"])
    assert made.targets(task).tolist() == [0, 1, 1, 0, 1, 1, 1]
    assert made.targets(task, made.in_split("train")).tolist() == [0, 1, 1]


def test_a_task_needs_known_classes_and_both_sides() -> None:
    made = image_set()
    with pytest.raises(ConfigError, match=r"got \['mouse'\]"):
        made.targets(Task(positive=["mouse"]))
    with pytest.raises(DataError, match="got 7 positives"):
        made.targets(Task(positive=list(made.classes)))


def test_a_split_is_where_it_was_declared() -> None:
    made = image_set()
    assert made.in_split("test").tolist() == [3, 4, 5, 6]
    assert made.in_split(None).tolist() == list(range(7))
    assert not made.has_split("validation")
    with pytest.raises(ConfigError, match="this one declares train, test"):
        made.in_split("validation")
    with pytest.raises(ConfigError, match="no splits"):
        image_set(splits=False).in_split("test")
