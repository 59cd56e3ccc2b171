"""Requests resolved on a data set: expected tasks and sentences are written out."""

import pytest

from adap.core.config import EachClass, Task
from adap.core.errors import ConfigError, DataError
from adap.core.resolve import (
    DatasetSummary,
    check_start,
    resolve_task,
    resolve_tasks,
    training_tasks,
)

EACH = EachClass(each=True)


def summary(*classes: str) -> DatasetSummary:
    return DatasetSummary(
        examples=10 * len(classes),
        classes=dict.fromkeys(classes, 10),
        prevalence=dict.fromkeys(classes, 1 / len(classes)),
        splits={},
        split_examples={},
        channels=3,
        height=8,
        width=8,
        sizes={"8x8": 10 * len(classes)},
        duplicates=0,
        conflicting=0,
        across_splits=None,
    )


PETS = summary("cat", "dog", "other")
YES_NO = summary("no", "yes")


def task(*positive: str) -> Task:
    return Task(positive=list(positive))


@pytest.mark.parametrize("outputs", [None, ["cat", "dog", "other", "emu"]])
@pytest.mark.parametrize("trained_for", [None, ["dog"]])
def test_the_task_that_is_asked_for_is_the_only_one(
    outputs: list[str] | None, trained_for: list[str] | None
) -> None:
    asked = task("cat", "other")
    assert resolve_tasks(asked, PETS, trained_for=trained_for, outputs=outputs) == [asked]


@pytest.mark.parametrize("outputs", [None, ["dog", "cat", "other"]])
def test_what_the_model_was_trained_for_is_the_task_where_none_is_asked_for(
    outputs: list[str] | None,
) -> None:
    assert resolve_tasks(None, PETS, trained_for=["dog"], outputs=outputs) == [task("dog")]


def test_a_class_that_is_named_positive_is_the_task_of_a_model_of_one_logit() -> None:
    assert resolve_tasks(None, YES_NO) == [task("yes")]
    assert resolve_task(None, summary("Positive", "rest")) == task("Positive")


def test_each_class_is_a_task_where_it_is_asked_for_or_nothing_else_is_known() -> None:
    outputs = ["emu", "other", "dog", "cat"]
    expected = [task("cat"), task("dog"), task("other")]  # in the order of the data set
    assert resolve_tasks(EACH, PETS, outputs=outputs) == expected
    assert resolve_tasks(EACH, PETS, trained_for=["dog"], outputs=outputs) == expected
    assert resolve_tasks(None, PETS, outputs=outputs) == expected
    # no side is guessed from a name where the model knows both
    assert resolve_tasks(None, YES_NO, outputs=["no", "yes"]) == [task("no"), task("yes")]


@pytest.mark.parametrize("trained_for", [None, ["dog"]])
def test_each_class_of_a_model_of_one_logit_is_refused(trained_for: list[str] | None) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_tasks(EACH, PETS, trained_for=trained_for)
    assert str(caught.value) == (
        'expected a model with an output for each class to audit {"each": true}; this one has a '
        'single output: name its classes, for example {"positive": ["cat"]}'
    )


@pytest.mark.parametrize(
    ("asked", "trained_for", "got"),
    [
        (task("cat", "dog"), None, "dog"),
        (None, ["other"], "other"),
        (EACH, None, "dog, other"),
        (None, None, "dog, other"),
    ],
)
def test_a_class_that_the_model_has_no_output_for_is_refused(
    asked: Task | EachClass | None, trained_for: list[str] | None, got: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_tasks(asked, PETS, trained_for=trained_for, outputs=["emu", "cat"])
    assert str(caught.value) == (
        f"expected classes that the model has outputs for (emu, cat); got {got}"
    )


def test_a_refusal_names_no_more_than_twenty_classes() -> None:
    many = [f"c{i:02d}" for i in range(30)]
    with pytest.raises(ConfigError) as caught:
        resolve_tasks(EACH, summary(*many), outputs=[f"o{i:02d}" for i in range(30)])
    message = str(caught.value)
    assert ("o19" in message, "o20" in message) == (True, False)
    assert ("c19" in message, "c20" in message) == (True, False)


@pytest.mark.parametrize("outputs", [None, ["cat", "emu"]])
@pytest.mark.parametrize(
    ("asked", "trained_for"), [(task("cat", "emu"), None), (None, ["emu", "cat"])]
)
def test_a_class_that_the_data_set_lacks_is_refused(
    asked: Task | None, trained_for: list[str] | None, outputs: list[str] | None
) -> None:
    sentence = "^expected positive classes among cat, dog, other; got emu$"
    with pytest.raises(ConfigError, match=sentence):
        resolve_tasks(asked, PETS, trained_for=trained_for, outputs=outputs)


@pytest.mark.parametrize("classes", [("cat", "dog"), ("yes", "no", "maybe"), ("yes", "true")])
def test_where_nothing_is_obvious_a_task_is_asked_for(classes: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=rf'\{{"positive": \["{classes[-1]}"\]\}}.*not plain'):
        resolve_tasks(None, summary(*classes))


def test_a_training_has_the_task_asked_for_or_one_for_each_class() -> None:
    assert training_tasks(task("dog"), PETS) == [task("dog")]
    assert training_tasks(None, YES_NO) == [task("yes")]
    assert training_tasks(EACH, PETS) == [task("cat"), task("dog"), task("other")]
    with pytest.raises(ConfigError, match="not plain"):
        training_tasks(None, PETS)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_class_that_training_or_validation_lacks_is_refused(split: str) -> None:
    full = {"cat": 5, "dog": 5, "other": 5}
    splits = {"train": full, "validation": full, "test": {}, split: {**full, "dog": 1}}
    examples = {name: sum(counts.values()) for name, counts in splits.items()}
    pets = DatasetSummary.model_validate(
        PETS.model_dump() | {"splits": splits, "split_examples": examples}
    )
    assert training_tasks(task("cat"), pets) == [task("cat")]
    for asked in (task("dog"), EACH):
        with pytest.raises(DataError, match=rf"in the {split} split, got 1 positives \(dog\)"):
            training_tasks(asked, pets)


@pytest.mark.parametrize(
    ("outputs", "classes", "fresh_head", "sentence"),
    [
        (None, None, False, None),
        (["a", "b"], ["a", "b"], False, None),
        (["a", "b"], None, True, None),
        (["a", "b"], None, False, "with one logit to start from, got one with the outputs a, b"),
        (
            None,
            ["a", "b"],
            False,
            "the outputs a, b, in this order to start from, got one with one",
        ),
        (["b", "a"], ["a", "b"], False, "got one with the outputs b, a, in this order; fresh_head"),
    ],
)
def test_a_start_needs_the_same_outputs_or_a_fresh_last_layer(
    outputs: list[str] | None, classes: list[str] | None, fresh_head: bool, sentence: str | None
) -> None:
    def check(architecture: str) -> None:
        check_start(
            architecture=architecture,
            outputs=outputs,
            wanted="small_cnn",
            classes=classes,
            fresh_head=fresh_head,
        )

    with pytest.raises(
        ConfigError, match="architecture small_cnn to start from, got one of resnet"
    ):
        check("resnet18")
    if sentence is None:
        check("small_cnn")
    else:
        with pytest.raises(ConfigError, match=sentence):
            check("small_cnn")
