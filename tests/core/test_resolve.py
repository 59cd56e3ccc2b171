"""Requests resolved on a data set: expected tasks and sentences are written out."""

import pytest

from adap.core.config.audits import AuditConfig
from adap.core.config.data import EachClass, Task
from adap.core.config.rankings import RankingRequest
from adap.core.errors import ConfigError, DataError
from adap.core.resolve import (
    DatasetSummary,
    Known,
    check_start,
    resolve_audit,
    resolve_audit_of_files,
    resolve_ranking,
    resolve_task,
    resolve_tasks,
    training_tasks,
)
from adap.models.header import InputSpec, Manifest, OutputSpec

EACH = EachClass(each=True)
MODEL, DATASET = "mdl_" + "0" * 26, "ds_" + "0" * 26


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
        "task: expected a model with an output for each class to audit each of them; this one "
        "has a single output: name the classes that it ranks first (--positive), for example cat"
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
    with pytest.raises(ConfigError, match=rf"for example {classes[-1]}: the data set.*not plain"):
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


# --- which side a single logit ranks first --------------------------------------------------------


def ranker(positive: list[str] | None, *, classes: list[str] | None = None) -> Manifest:
    spec = InputSpec(channels=3, height=8, width=8, mean=[0.0] * 3, std=[1.0] * 3)
    output = OutputSpec(kind="logit" if classes is None else "multiclass", classes=classes)
    return Manifest(architecture="small_cnn", input=spec, output=output, positive=positive)


def resolve(asked: Task | None, model: Manifest, **options: object) -> list[Task]:
    config = AuditConfig.model_validate({"task": asked, **options})
    return resolve_audit(config, PETS, Known("m", model), surrogate=None)[0]


def test_a_single_logit_is_refused_for_other_classes_than_it_was_trained_for() -> None:
    expected = (
        "task: the model has a single logit, which ranks dog first; got cat. Ask for "
        "dog (--positive dog), or say other_positive: true (--other-positive) to read that logit "
        "for cat all the same"
    )
    with pytest.raises(ConfigError) as caught:
        resolve(task("cat"), ranker(["dog"]))
    assert str(caught.value) == expected
    request = RankingRequest(model_id=MODEL, dataset_id=DATASET, task=task("cat"))
    with pytest.raises(ConfigError) as caught:
        resolve_ranking(request, PETS, ranker(["dog"]))
    assert str(caught.value) == expected
    # the same sides, in whatever order; a logit for each class; a side that nobody knows
    both = task("dog", "cat")
    assert resolve(both, ranker(["cat", "dog"])) == [both]
    assert resolve(task("cat"), ranker(["dog"], classes=["cat", "dog", "other"])) == [task("cat")]
    assert resolve(task("cat"), ranker(None)) == [task("cat")]


def test_a_single_logit_is_read_for_other_classes_where_that_is_said() -> None:
    assert resolve(task("cat"), ranker(["dog"]), other_positive=True) == [task("cat")]
    request = RankingRequest(
        model_id=MODEL, dataset_id=DATASET, task=task("cat"), other_positive=True
    )
    assert resolve_ranking(request, PETS, ranker(["dog"]))[0].task == task("cat")


def test_a_surrogate_and_files_to_come_are_held_to_their_side_too() -> None:
    config = AuditConfig.model_validate(
        {"task": task("cat"), "surrogate": {"model_id": MODEL}, "attacks": ["transfer"]}
    )
    other = Known("s", ranker(["dog"]))
    with pytest.raises(ConfigError, match=r"^task: the surrogate has a single logit, .* dog first"):
        resolve_audit(config, PETS, Known("m", ranker(["cat"])), surrogate=other)
    with pytest.raises(ConfigError, match=r"^task: the surrogate has a single logit"):
        resolve_audit_of_files(config, declared=None, surrogate=other)
    with pytest.raises(ConfigError, match=r"^task: the model has a single logit, which ranks dog"):
        resolve_audit_of_files(config, declared=["dog"], surrogate=None)


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        ([], "size 3x4x4 .channels, height, width.; this data set has 3x8x8"),
        ([{"name": "crop", "height": 6, "width": 4}], "it makes 3x6x4 of this data set's 3x8x8"),
        ([{"name": "crop", "height": 4, "width": 9}], "at least 9x4 pixels to crop .*, got 8x8"),
        ([{"name": "resize", "height": 4, "width": 4}], None),
    ],
)
def test_images_fit_the_model_behind_the_pipeline(
    pipeline: list[dict[str, object]], said: str | None
) -> None:
    manifest = Manifest(
        architecture="small_cnn",
        input=InputSpec(channels=3, height=4, width=4, mean=[0.0] * 3, std=[1.0] * 3),
        output=OutputSpec(kind="logit"),
    )
    config = AuditConfig.model_validate({"pipeline": pipeline, "task": {"positive": ["yes"]}})

    def resolved() -> object:
        return resolve_audit(config, YES_NO, Known(None, manifest), surrogate=None)

    if said is None:
        resolved()
        return
    with pytest.raises(ConfigError, match=said):
        resolved()
