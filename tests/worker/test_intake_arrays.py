"""NPZ files as collections and frameworks ship them. The judge is what numpy was given."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adap.core.config.base import SPLITS
from adap.core.config.data import DatasetOptions
from adap.core.datasets import ImageSet
from adap.worker.intake import IntakeLimits, Rejected, read_dataset
from adap.worker.intake.notes import Notes

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (8, 6, 6), dtype=np.uint8)
LABELS = np.array([0, 1] * 4)


def read(folder: Path, notes: Notes | None = None, packed: bool = False, **given: Any) -> ImageSet:
    names = {*DatasetOptions.model_fields} & given.keys()
    options = {name: given.pop(name) for name in names}
    buffer = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(buffer, **given)
    path = folder / "upload"
    path.write_bytes(buffer.getvalue())
    return read_dataset(
        path,
        limits=IntakeLimits(),
        on_progress=lambda done, total: None,
        options=DatasetOptions.model_validate(options),
        notes=notes,
    )


@pytest.mark.parametrize(
    "names",
    [
        ("{}_images", "{}_labels", ("train", "val", "test")),  # MedMNIST
        ("x_{}", "y_{}", ("train", "valid", "test")),  # Keras
        ("X_{}", "Y_{}", ("train", "dev", "test")),
        ("{}X", "{}Y", ("train", "val", "test")),
        ("images_{}", "targets_{}", ("training", "validation", "testing")),
    ],
)
@pytest.mark.parametrize("column", [False, True])
def test_arrays_of_each_split_are_joined(
    names: tuple[str, str, tuple[str, ...]], column: bool, tmp_path: Path
) -> None:
    images, labels, parts = names
    given: dict[str, NDArray[Any]] = {}
    for k, part in enumerate(parts):
        given[images.format(part)] = IMAGES + np.uint8(k)
        given[labels.format(part)] = LABELS[:, None] if column else LABELS
    made = read(tmp_path, **given)
    assert made.splits is not None
    assert [SPLITS[i] for i in made.splits] == [split for split in SPLITS for _ in range(8)]
    wanted = np.concatenate([IMAGES + np.uint8(k) for k in range(3)])
    assert np.array_equal(made.images[:, 0], wanted)
    assert made.labels.tolist() == LABELS.tolist() * 3


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (LABELS[:, None], ["0", "1"]),
        (LABELS.astype(float), ["0", "1"]),
        (LABELS.astype(np.float32)[:, None], ["0", "1"]),
        (np.eye(2, dtype=np.float32)[LABELS], ["0", "1"]),
        (np.eye(2, dtype=np.int64)[LABELS], ["0", "1"]),
        (np.array([b"cat", b"dog"])[LABELS], ["cat", "dog"]),
        (np.array(["cat", "dog"])[LABELS][:, None], ["cat", "dog"]),
    ],
)
def test_one_label_an_image_is_one_in_any_shape(
    labels: NDArray[Any], classes: list[str], tmp_path: Path
) -> None:
    made = read(tmp_path, images=IMAGES, labels=labels)
    assert (list(made.classes), made.multilabel) == (classes, False)
    assert made.labels.tolist() == LABELS.tolist()


def test_columns_of_several_labels_without_names_are_called_by_their_numbers(
    tmp_path: Path,
) -> None:
    several = RANDOM.integers(0, 2, (8, 14)) | np.eye(8, 14, dtype=int)  # as MedMNIST's chest
    several[:2], several[2:4] = 0, 1
    single = np.eye(14, dtype=int)[[3] * 4]  # one label in each row of the other part
    notes = Notes()
    made = read(
        tmp_path,
        notes,
        train_images=IMAGES,
        train_labels=several,
        test_images=IMAGES[:4] // 2,
        test_labels=np.concatenate([single[:2], 1 - single[:2]]),
    )
    assert made.classes == [str(k) for k in range(14)]
    np.testing.assert_array_equal(made.labels[:8], several)
    np.testing.assert_array_equal(made.labels[8:10], single[:2])
    assert any("any number of labels" in step for step in notes.steps)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"images": IMAGES.reshape(8, -1)}, "images.reshape(-1, 6, 6)"),
        ({"images": np.zeros((8, 108), np.uint8)}, "images.reshape(-1, 3, 6, 6)"),
        ({"X": np.zeros((6, 6, 3, 8), np.uint8), "y": LABELS}, "X.transpose(3, 0, 1, 2)"),
        ({"images": np.zeros((8, 6, 6, 4), np.uint8)}, "images[..., :3]"),
        ({"images": np.zeros((8, 6, 6, 6), np.uint8)}, "send slices"),
        ({"images": np.array([b"\x89PNG"] * 8)}, "send their files"),
        ({"images": IMAGES, "labels": LABELS.astype(object)}, "np.array(list, dtype=str)"),
        ({"images": IMAGES, "labels": LABELS / [[2.0]] * 8}, "send labels.reshape(-1)"),
        ({"images": IMAGES, "labels": LABELS / 2}, "labels.argmax(1)"),
        ({"images": IMAGES, "labels": np.where(LABELS == 1, 1, np.nan)}, "leave images without"),
        ({"images": RANDOM.uniform(-1, 1, (8, 6, 6))}, "--levels -1:1"),
        ({"images": RANDOM.uniform(0, 255, (8, 6, 6))}, "--levels 0:255"),
    ],
)
def test_arrays_that_are_no_images_or_labels_are_refused_with_what_makes_them(
    given: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(Rejected) as caught:
        read(tmp_path, **({"labels": LABELS} if "X" not in given else {}) | given)
    assert told in caught.value.reasons[0]


def test_a_column_of_labels_takes_its_names(tmp_path: Path) -> None:
    names = np.array(["benign", "malignant"])
    made = read(tmp_path, images=IMAGES, labels=LABELS[:, None], classes=names)
    assert made.class_counts() == {"benign": 4, "malignant": 4}
    both = read(tmp_path, images=IMAGES, labels=np.eye(2, dtype=int)[LABELS], classes=names)
    assert both.multilabel, "columns that have names are labels of their own, as documented"


def test_other_names_are_understood_or_named_and_what_is_not_read_is_told(tmp_path: Path) -> None:
    notes = Notes()
    made = read(tmp_path, notes, X=IMAGES, y=LABELS, weights=LABELS)
    assert np.array_equal(made.images[:, 0], IMAGES)
    assert [fact.code for fact in notes.facts] == ["other_arrays"]
    with pytest.raises(Rejected, match="--image-column, --label-column"):
        read(tmp_path, scans=IMAGES, grade=LABELS)
    named = read(
        tmp_path,
        scans=IMAGES,
        grade=LABELS,
        who=LABELS,
        image_column="scans",
        label_column="grade",
        cluster_column="who",
    )
    assert named.clusters == list("01" * 4)


def test_values_of_any_range_are_scaled_as_declared(tmp_path: Path) -> None:
    whole = read(tmp_path, images=IMAGES.astype(np.int64), labels=LABELS)
    assert np.array_equal(whole.images[:, 0], IMAGES)
    raw = RANDOM.integers(0, 4096, (8, 6, 6), dtype=np.uint16)
    with pytest.raises(Rejected, match="`levels`, for example --levels"):
        read(tmp_path, images=raw, labels=LABELS)
    made = read(tmp_path, images=raw, labels=LABELS, levels={"low": 0, "high": 4095})
    assert np.array_equal(made.images[:, 0], np.rint(raw / 4095 * 255))
    centred = IMAGES / 127.5 - 1
    made = read(tmp_path, images=centred, labels=LABELS, levels={"low": -1, "high": 1})
    assert np.array_equal(made.images[:, 0], IMAGES)


def test_honest_arrays_are_no_bomb_however_well_they_pack(tmp_path: Path) -> None:
    count = 40_000
    split = np.array(["train"] * (count - 10_000) + ["validation"] * 10_000)
    made = read(
        tmp_path,
        packed=True,
        images=np.zeros((count, 4, 4), np.uint8),
        labels=np.arange(count) % 2,
        split=split,
    )
    assert (len(made), made.has_split("validation")) == (count, True)


def test_parts_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    given = {"train_images": IMAGES, "train_labels": LABELS, "test_labels": LABELS}
    with pytest.raises(Rejected, match="channels, height and width"):
        read(tmp_path, **given, test_images=IMAGES[:, :5].copy())
    with pytest.raises(Rejected, match="expected labels of one shape in all parts"):
        read(
            tmp_path,
            **{**given, "test_labels": np.ones((8, 3), int)},
            test_images=IMAGES,
        )


def test_bool_images_are_black_and_white(tmp_path: Path) -> None:
    notes = Notes()
    made = read(tmp_path, notes, images=IMAGES > 127, labels=LABELS)
    assert np.array_equal(made.images[:, 0], np.where(IMAGES > 127, 255, 0))
    assert "'images' of bool is black and white" in notes.steps
    assert "few_levels" in {fact.code for fact in notes.facts}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_that_are_dark_overall_are_refused_unless_levels_say_what_is_white(
    dtype: type[np.floating[Any]], tmp_path: Path
) -> None:
    dark = (IMAGES / 255 * 0.06).astype(dtype)  # as 12 bits made floats by the range of 16
    with pytest.raises(Rejected, match=r"none above 0\.06\d*: only 16 of 256 .*--levels 0:0\.06"):
        read(tmp_path, images=dark, labels=LABELS)
    wanted = np.rint((dark.astype(float) / 0.0625).clip(0, 1) * 255)
    made = read(tmp_path, images=dark, labels=LABELS, levels={"low": 0, "high": 0.0625})
    assert np.array_equal(made.images[:, 0], wanted)
    nearly_black = read(tmp_path, images=dark, labels=LABELS, levels={"low": 0, "high": 1})
    assert np.array_equal(nearly_black.images[:, 0], np.rint(dark.astype(float) * 255))


def test_a_single_bright_image_shows_that_dark_floats_are_meant(tmp_path: Path) -> None:
    night = (IMAGES / 255 * 0.06).astype(np.float32)
    night[-1, 0, 0] = 1
    assert read(tmp_path, images=night, labels=LABELS).images.max() == 255


def test_a_part_whose_split_is_misspelt_is_not_left_out(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 4, 4, 3), np.uint8), np.array([0, 1, 0, 1])
    images[:] = np.arange(4).reshape(4, 1, 1, 1)
    parts = {"x_test": images, "y_test": labels, "x_trian": images + 9, "y_trian": labels}
    with pytest.raises(Rejected, match=r"got 'x_trian', 'y_trian' .* rename them"):
        read(tmp_path, **parts)
    alone = read(tmp_path, **parts, image_column="x_test", label_column="y_test")
    assert len(alone.images) == 4
    del parts["x_trian"]
    notes = Notes()
    read(tmp_path, notes, **parts)
    assert [fact.level for fact in notes.facts if fact.code == "other_arrays"] == ["caution"]
    del parts["y_trian"]
    named = read(tmp_path, **parts, list_classes=np.array([b"non-cat", b"cat"]))
    assert named.classes == ["non-cat", "cat"]


@pytest.mark.parametrize(
    ("others", "level"),
    [
        (["label_text", "text_labels", "best_labels"], "info"),
        (["y_rest"], "info"),
        (["images_rest", "y_rest"], "caution"),  # images that nobody would miss
    ],
)
def test_arrays_beside_the_parts_whose_names_are_words_are_said_and_not_refused(
    others: list[str], level: str, tmp_path: Path
) -> None:
    parts = {"train_images": IMAGES, "train_labels": LABELS}
    notes = Notes()
    read(tmp_path, notes, **parts, **dict.fromkeys(others, LABELS))
    (fact,) = [fact for fact in notes.facts if fact.code == "other_arrays"]
    assert fact.level == level
    assert fact.message.startswith(f"{len(others)} array")


@pytest.mark.parametrize("name", ["is_train", "train_mask", "test_idx", "val_indices", "isTest"])
def test_an_array_that_chooses_a_split_is_asked_about(name: str, tmp_path: Path) -> None:
    with pytest.raises(Rejected) as caught:
        read(tmp_path, images=IMAGES, labels=LABELS, **{name: LABELS == 0})
    (reason,) = caught.value.reasons
    assert reason.startswith("expected the split of each image as text in an array `split`")
    assert name in reason


def test_an_array_of_folds_is_no_split_and_said(tmp_path: Path) -> None:
    notes = Notes()
    made = read(tmp_path, notes, images=IMAGES, labels=LABELS, fold=np.arange(8) % 4)
    assert made.splits is None
    (fact,) = [fact for fact in notes.facts if fact.code == "folds_not_read"]
    assert fact.message.startswith("'fold' looks like the folds of a cross-validation")


def test_an_index_of_classes_or_a_mask_chooses_no_split(tmp_path: Path) -> None:
    assert read(tmp_path, images=IMAGES, labels=LABELS, mask=LABELS, index=LABELS).splits is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_named(value: float, tmp_path: Path) -> None:
    images = IMAGES.astype(np.float32) / 255
    images[3, 0, 0] = value
    with pytest.raises(Rejected, match="got NaN or infinity: leave these images out"):
        read(tmp_path, images=images, labels=LABELS)


def test_labels_in_too_many_dimensions_of_one_are_answered_by_their_reshape(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"send labels\.reshape\(-1\)"):
        read(tmp_path, images=IMAGES, labels=LABELS.reshape(8, 1, 1))
    with pytest.raises(Rejected, match="leave masks out, and write the class of each image"):
        read(tmp_path, images=IMAGES, labels=np.zeros((8, 6, 6), int))
