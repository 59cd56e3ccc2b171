"""The stored form of a data set, judged by the safetensors library."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from core.config import Task
from core.datasets import ImageSet
from core.errors import ConfigError, DataError


def image_set(*, splits: bool = True) -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(
        images=rng.integers(0, 256, (7, 3, 5, 4), np.uint8),
        labels=np.array([0, 1, 2, 0, 1, 2, 2], np.int64),
        classes=["cat", "dog", "π, a horse"],
        example_ids=[f"träin/{i}.png" for i in range(7)],
        splits=np.array([0, 0, 0, 2, 2, 2, 2], np.int8) if splits else None,
    )


@pytest.mark.parametrize("splits", [True, False])
def test_the_stored_form_comes_back_as_it_was(tmp_path: Path, splits: bool) -> None:
    made = image_set(splits=splits)
    made.save(tmp_path / "set")
    read = ImageSet.load(tmp_path / "set")
    np.testing.assert_array_equal(read.images, made.images)
    np.testing.assert_array_equal(read.labels, made.labels)
    assert list(read.classes) == list(made.classes)
    assert list(read.example_ids) == list(made.example_ids)
    assert (read.splits is None) == (not splits)


def test_the_stored_form_is_safetensors(tmp_path: Path) -> None:
    made = image_set()
    made.save(tmp_path / "set")
    judged = load_file(tmp_path / "set")
    np.testing.assert_array_equal(judged["images"], made.images)
    np.testing.assert_array_equal(judged["labels"], made.labels)
    np.testing.assert_array_equal(judged["splits"], made.splits)


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
