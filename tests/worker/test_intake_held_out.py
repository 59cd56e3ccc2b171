"""A test split made when a data set comes: counts are written out, whole units by brute force."""

import io
from pathlib import Path

import numpy as np
import pytest

from adap.core.config.data import DatasetOptions
from adap.core.datasets import ImageSet
from adap.worker.intake import IntakeLimits, Rejected, read_dataset
from adap.worker.intake.notes import Notes

LABELS = np.repeat(["cat", "dog"], [40, 20])
IMAGES = np.arange(60 * 64, dtype=np.int64).reshape(60, 8, 8).astype(np.uint8)


def read(folder: Path, notes: Notes | None = None, **arrays: object) -> ImageSet:
    """An NPZ of these arrays, a quarter of which is to be held out."""
    file = io.BytesIO()
    np.savez(file, **{"images": IMAGES, "labels": LABELS, **arrays})  # type: ignore[arg-type]
    path = folder / "upload"
    path.write_bytes(file.getvalue())
    options = DatasetOptions(hold_out=0.25)
    return read_dataset(
        path, limits=IntakeLimits(), options=options, notes=notes, on_progress=lambda *_: None
    )


def classes_in(made: ImageSet, split: str) -> list[int]:
    return np.bincount(made.labels[made.in_split(split)]).tolist()


def test_a_share_of_each_class_becomes_the_test_split(tmp_path: Path) -> None:
    notes = Notes()
    made = read(tmp_path, notes)
    assert classes_in(made, "test") == [10, 5]
    assert classes_in(made, "train") == [30, 15]
    assert "15 of 60 images held out as the test split, at random" in notes.reading().summary
    again = read(tmp_path)
    assert again.in_split("test").tolist() == made.in_split("test").tolist()
    beside = read(tmp_path, split=np.resize(["train", "validation", "train"], 60))
    assert beside.in_split("validation").tolist() == list(range(1, 60, 3))
    assert sum(classes_in(beside, "test")) == 10


def test_clusters_and_equal_images_are_held_out_whole(tmp_path: Path) -> None:
    patients = np.array([f"p{i // 4}" for i in range(60)])
    made = read(tmp_path, clusters=patients)
    held = set(patients[made.in_split("test")])
    assert not held & set(patients[made.in_split("train")])
    assert len(held) in (3, 4)
    assert made.clusters == patients.tolist()
    twice = IMAGES.copy()
    twice[1::2] = twice[::2]  # pairs of equal images
    made = read(tmp_path, images=twice)
    splits = np.asarray(made.splits)
    assert (splits[1::2] == splits[::2]).all()
    assert made.clusters is None


@pytest.mark.parametrize(
    ("splits", "why"),
    [
        (["train", "test"], "expected a data set without a test split, got one that has one"),
        (["validation"], "expected a data set with a train split"),
    ],
)
def test_a_data_set_that_has_a_test_split_is_refused(
    splits: list[str], why: str, tmp_path: Path
) -> None:
    with pytest.raises(Rejected) as caught:
        read(tmp_path, split=np.resize(splits, 60))
    assert caught.value.reasons[0].startswith(f"hold_out (--hold-out): {why}")
