"""Images that a model may have been trained on; the judge compares every pair of images."""

import numpy as np
import pytest

from adap.core.audit.checks.files import check_files, doubts
from adap.core.audit.checks.verdicts import merge
from adap.core.audit.leakage import HeldOut, Leakage, Learned, find_leakage
from adap.core.config.base import SPLITS
from adap.core.config.data import Task
from adap.core.config.training import TrainingConfig
from adap.core.datasets import ImageSet
from adap.core.report import Check, Status
from adap.core.training.splitting import training_split
from adap.reading import Fact, Reading
from tests.conftest import REPOSITORY


def image_set(images, splits=None):
    count = len(images)
    return ImageSet(
        images=np.asarray(images, np.uint8),
        labels=np.arange(count) % 2,
        classes=["a", "b"],
        example_ids=[str(i) for i in range(count)],
        splits=None if splits is None else np.array([SPLITS.index(s) for s in splits], np.int8),
    )


def equal_pairs(own, others):
    return sum(any((image == other).all() for other in others) for image in own)


def repeats(own):
    """How many images equal an earlier one."""
    return sum(any((own[i] == own[k]).all() for k in range(i)) for i in range(len(own)))


def drawn(seed, count=60):
    """Images of four pixels that are 0 or 1: many are equal."""
    return np.random.default_rng(seed).integers(0, 2, (count, 1, 2, 2))


@pytest.mark.parametrize("split", SPLITS)
def test_audited_images_are_found_in_the_other_splits(split):
    images, splits = drawn(0, 24), ["train", "validation", "test"] * 8
    held = np.array(splits) == split
    found = find_leakage(image_set(images, splits), split, trained_on=None)
    own = images[held]
    assert found == Leakage(8, equal_pairs(own, images[~held]), None, equal=repeats(own))
    assert repeats(own)
    assert 0 < equal_pairs(images[held], images[~held]) <= 8


def test_audited_images_are_found_in_what_the_model_was_trained_on_but_for_test_splits():
    audited, trained = drawn(1, 20), [drawn(2, 6), drawn(3, 6)]
    splits = ["train", "validation", "test"] * 2
    known = np.concatenate([trained[0], trained[1][np.array(splits) == "train"]])
    sets = [Learned(image_set(trained[0])), Learned(image_set(trained[1], splits))]
    found = find_leakage(image_set(audited), None, trained_on=sets, missing=2)
    seen = equal_pairs(audited, known)
    either = equal_pairs(audited, np.concatenate([known, trained[1][[1, 4]]]))
    assert found == Leakage(20, None, seen, either - seen, missing=2, equal=repeats(audited))
    assert 0 < seen < either < 20


def test_what_a_training_held_out_to_choose_its_epoch_counts_by_itself() -> None:
    images = np.arange(240).reshape(60, 1, 2, 2)  # all differ
    whole = image_set(images)
    config = TrainingConfig(epochs=1, seed=3)
    train, validation = training_split(whole, Task(positive=["b"]), config)
    held_out = HeldOut(fraction=config.validation.fraction, seed=config.seed)
    found = find_leakage(whole, None, trained_on=[Learned(whole, held_out)])
    assert (found.seen, found.chosen) == (len(train), len(validation))
    assert found.chosen == 12
    *_, check = check_files(dataset=None, model=None, leakage=found)
    assert (check.status, check.figures["chosen"]) == ("fail", 12)
    assert "trained on 48 of the 60" in check.message
    only_chosen = find_leakage(
        image_set(images[validation]), None, trained_on=[Learned(whole, held_out)]
    )
    *_, check = check_files(dataset=None, model=None, leakage=only_chosen)
    assert (check.status, check.figures["images"]) == ("caution", 0)
    assert "By 12 of the 12 it was not trained, but its epoch was chosen" in check.message


def test_of_a_training_on_a_sample_only_what_was_drawn_was_seen() -> None:
    whole = image_set(np.arange(240).reshape(60, 1, 2, 2))
    config = TrainingConfig(epochs=1, seed=3)
    train, validation = training_split(whole, Task(positive=["b"]), config, sample=30)
    held_out = HeldOut(fraction=config.validation.fraction, seed=config.seed, sample=30)
    found = find_leakage(whole, None, trained_on=[Learned(whole, held_out)])
    assert (found.seen, found.chosen) == (len(train), len(validation))
    assert len(train) + len(validation) == 30


def test_equal_bytes_of_another_shape_are_another_image():
    wide = image_set(np.zeros((4, 1, 2, 8)))
    found = find_leakage(image_set(np.zeros((4, 1, 4, 4))), None, trained_on=[Learned(wide)])
    assert found.seen == 0


@pytest.mark.parametrize(
    ("images", "status"), [(0, "pass"), (1, "caution"), (100, "caution"), (101, "fail")]
)
def test_a_leak_is_a_caution_and_from_a_tenth_of_the_images_on_a_failed_check(
    images: int, status: Status
) -> None:
    leak = Leakage(1000, across_splits=images, seen=images)
    *_, leakage, seen = check_files(dataset=None, model=None, leakage=leak)
    for check in (leakage, seen):
        assert check.status == status
        assert check.figures == {"images": images, "share": images / 1000}
        assert (check.limits["share"].caution, check.limits["share"].fail) == (0, 0.1)
        assert f"{images or 'None'}" in check.message
    assert len(doubts([leakage, seen])) == (0 if images == 0 else 2)


def test_cautions_of_a_reading_become_a_check_that_decides_the_verdict() -> None:
    def reading(*levels: str) -> Reading:
        facts = [Fact(level=level, code="c", message=f"Noted: {level}") for level in levels]
        return Reading(summary="zip: 2 classes", facts=facts)

    def checks(dataset: Reading | None, model: Reading | None) -> list[Check]:
        return check_files(dataset=dataset, model=model, leakage=None)

    data_set, model_file, *others = checks(reading("info", "caution", "caution"), reading("info"))
    assert (data_set.status, data_set.figures) == ("caution", {"cautions": 2, "faults": 0})
    assert data_set.message == "Noted: caution. Noted: caution."
    assert (model_file.status, model_file.message) == (
        "pass",
        "Read without doubt: zip: 2 classes.",
    )
    assert [check.status for check in others] == ["skipped", "skipped"]
    assert checks(reading("fault"), None)[0].status == "fail"
    assert checks(None, None)[0].status == "skipped"
    steady = {"cat": [Check(name="a", status="pass", message="Good.", figures={})]}
    assert merge(steady).verdict == "trustworthy"
    assert merge(steady, of_files=[data_set, model_file]).verdict == "caution"
    assert merge(steady, of_files=checks(reading("fault"), None)).verdict == "not trustworthy"


def test_every_check_of_files_has_a_line_in_the_document() -> None:
    text = (REPOSITORY / "docs" / "trust.md").read_text()
    for check in check_files(dataset=None, model=None, leakage=None):
        assert f"| `{check.name}` |" in text
