"""Layouts of the field: labels in columns of 0 and 1, in names of images, in files not read.

Judges: pandas and scikit-learn say which label each image has; the archives are made here in the
layouts that Roboflow, CelebA, COCO, YOLO, Pascal VOC and Kaggle's competitions use.
"""

import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.preprocessing import MultiLabelBinarizer, label_binarize

from adap.core.datasets import ImageSet
from adap.worker.intake import Rejected
from adap.worker.intake.notes import Notes
from tests.worker.archives import encode, pack, pixels
from tests.worker.test_intake_labels import read

CLASSES = ["cat", "dog", "sofa"]
ONE = ["cat", "dog", "sofa", "cat", "dog", "sofa"]
SEVERAL = [["cat"], ["cat", "dog"], [], ["dog", "sofa"], ["sofa"], ["cat"]]
ONE_HOT = label_binarize(ONE, classes=CLASSES)
MANY_HOT = MultiLabelBinarizer(classes=CLASSES).fit_transform(SEVERAL)


def images(folder: str, names: Any = range(6), suffix: str = "jpg") -> dict[str, bytes]:
    return {
        f"{folder}/{name}.{suffix}": encode(pixels(zlib.crc32(f"{folder}/{name}".encode())), "JPEG")
        for name in names
    }


def table(matrix: Any, *, separator: str = ",", column: str = "filename") -> bytes:
    frame = pd.DataFrame(matrix, columns=CLASSES)
    frame.insert(0, column, [f"{i}.jpg" for i in range(len(frame))])
    return frame.to_csv(index=False, sep=separator).encode()


def taken(members: dict[str, bytes], folder: Path, **options: Any) -> ImageSet:
    return read(pack(members), folder, **options)


def reasons(members: dict[str, bytes], folder: Path, **options: Any) -> list[str]:
    with pytest.raises(Rejected) as caught:
        taken(members, folder, **options)
    return caught.value.reasons


@pytest.mark.parametrize("asked", ["*", "cat,dog,sofa"])
def test_columns_of_0_and_1_are_one_label_where_each_image_has_exactly_one(
    asked: str, tmp_path: Path
) -> None:
    members = {**images("train"), **images("valid")}
    members |= {f"{split}/_classes.csv": table(ONE_HOT) for split in ("train", "valid")}
    notes = Notes()
    made = taken(members, tmp_path, label_columns=asked, notes=notes)
    assert not made.multilabel
    assert [made.label_of(i) for i in range(12)] == ONE + ONE
    assert made.splits is not None
    assert made.splits.tolist() == [0] * 6 + [1] * 6
    assert "one label for each image, from 3 columns of 0 and 1" in notes.reading().summary


@pytest.mark.parametrize(
    "matrix", [MANY_HOT, MANY_HOT.astype(float), MANY_HOT.astype(bool), 2 * MANY_HOT - 1]
)
def test_columns_of_0_and_1_are_several_labels_else_in_csv_and_parquet(
    matrix: Any, tmp_path: Path
) -> None:
    made = taken({**images("x"), "gt.csv": table(matrix)}, tmp_path, label_columns="*")
    assert made.multilabel
    assert (made.classes, made.labels.tolist()) == (CLASSES, MANY_HOT.tolist())
    frame = pd.DataFrame(matrix, columns=CLASSES)
    frame.insert(0, "image", [encode(pixels(i)) for i in range(6)])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame), buffer)
    same = read(buffer.getvalue(), tmp_path, label_columns="cat,dog,sofa")
    assert (same.multilabel, same.classes) == (True, CLASSES)
    assert same.labels.tolist() == MANY_HOT.tolist()


def test_what_such_columns_may_not_hold_is_refused_with_the_reason(tmp_path: Path) -> None:
    unclear = np.where(MANY_HOT == 1, 1, -1)
    unclear[0, 1] = 0
    members = {**images("x"), "gt.csv": table(unclear)}
    (unknown,) = reasons(members, tmp_path, label_columns="*")
    assert "-1 may mean that it is not known" in unknown
    members["gt.csv"] = table(MANY_HOT * 0.7)
    assert (
        "expected 0 or 1 in the column 'cat', got '0.7'"
        in reasons(members, tmp_path, label_columns="*")[0]
    )
    members["gt.csv"] = table(ONE_HOT)
    assert "'cow'" in reasons(members, tmp_path, label_columns="cat,cow")[0]
    assert "--label-columns '*'" in reasons(members, tmp_path)[0]
    assert (
        "--label-columns '*'" in reasons(members | {"gt.csv": table(2 * ONE_HOT - 1)}, tmp_path)[0]
    )
    with pytest.raises(ValueError, match="one place that the labels come from"):
        taken(members, tmp_path, label_columns="*", label_column="cat")
    array = io.BytesIO()
    np.savez(array, images=np.zeros((4, 3, 8, 8), np.uint8), labels=np.array([0, 1, 0, 1]))
    for option, value in (("label_columns", "*"), ("label_in_name", "_")):
        with pytest.raises(Rejected, match=f"expected no `{option}`"):
            read(array.getvalue(), tmp_path, **{option: value})


@pytest.mark.parametrize(
    ("mark", "names"),
    [
        (".", [f"{name}.{i}" for name in ("cat", "dog") for i in range(3)]),
        ("_", [f"{name}_{i}" for name in ("Bombay", "great_pyrenees") for i in range(3)]),
        ("-", [f"{name}-{i:04}" for name in ("a b", "c") for i in range(3)]),
    ],
)
def test_labels_in_names_are_read_where_asked_for_and_else_offered(
    mark: str, names: list[str], tmp_path: Path
) -> None:
    members = {**images("train", names), **images("test", names)}
    offered = reasons(members, tmp_path)[0]
    assert f"--label-in-name '{mark}'" in offered
    made = taken(members, tmp_path, label_in_name=mark)
    for i, example in enumerate(made.example_ids):
        split, _, base = example.partition("/")
        assert made.label_of(i) == base.removesuffix(".jpg").rpartition(mark)[0]
        assert made.splits is not None
        assert made.splits[i] == {"train": 0, "test": 2}[split]
    other = {"_": "-", "-": ".", ".": "_"}[mark]
    assert f"before the last '{other}'" in reasons(members, tmp_path, label_in_name=other)[0]
    members["metadata.csv"] = b"file_name,label\n"
    assert "leave one of them out" in reasons(members, tmp_path, label_in_name=mark)[0]


COCO = {"images": [{"id": 1, "file_name": "0.jpg"}], "annotations": [], "categories": []}
LISTED = "".join(f"x/{i}.jpg {i % 2}\n" for i in range(6)).encode()


@pytest.mark.parametrize(
    ("beside", "way"),
    [
        ({"annotations/instances.json": json.dumps(COCO).encode()}, "which|classes that each"),
        ({f"labels/{i}.txt": b"0 0.5 0.5 1 1\n3 .5 .5 1e-1 1\n" for i in range(6)}, "boxes"),
        ({f"Annotations/{i}.xml": b"<annotation/>" for i in range(6)}, "boxes"),
        ({"labels.json": json.dumps({f"{i}.jpg": "cat" for i in range(6)}).encode()}, "jsonl"),
        ({"labels.json": json.dumps([{"file": "0.jpg", "y": 1}]).encode()}, "metadata.jsonl"),
        ({"labels.xlsx": b"PK\x03\x04"}, "spreadsheet"),
        ({"setid.mat": b"MATLAB"}, "MATLAB"),
        ({"train.txt": LISTED}, "a list of images"),
        ({"list_attr.txt": b"6\nSmiling\n" + LISTED}, "a list of images"),
    ],
)
def test_labels_in_files_that_are_not_read_are_refused_with_the_way_on(
    beside: dict[str, bytes], way: str, tmp_path: Path
) -> None:
    told = reasons({**images("x"), **beside}, tmp_path)[0]
    assert next(iter(beside)).partition("/")[0] in told
    assert any(word in told for word in way.split("|"))
    assert "metadata" in told


def test_names_that_only_count_are_no_labels(tmp_path: Path) -> None:
    told = reasons(images("x", [f"IMG_{i:04}" for i in range(6)]), tmp_path)
    assert told == [
        "expected at least two classes, got 'x' alone: a ranking needs negatives; labels are read "
        "from class folders, or from a metadata.csv (file_name,label) beside the images"
    ]


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        ({f"labels/{i}.txt": b"cat\n" if i % 2 else b"dog\n" for i in range(8)}, "'dog': write a"),
        ({f"labels/{i}.txt": b"%d" % (i % 2) for i in range(8)}, "one image, '0': write a"),
        ({"dataset.json": b'{"labels": [["x/0.png", 0]]}'}, "and not from 'dataset.json'"),
        ({"data.yaml": b"names: [cat, dog]"}, "and not from 'data.yaml'"),
    ],
)
def test_labels_in_files_of_another_form_are_refused_with_the_table_to_write(
    beside: dict[str, bytes], told: str, tmp_path: Path
) -> None:
    (reason, *_) = reasons({**images("x", range(8)), **beside}, tmp_path)
    assert told in reason
    assert "metadata.csv" in reason


def test_many_lines_without_a_label_are_one_reason_and_say_which_split(tmp_path: Path) -> None:
    lines = [
        f"{i}.jpg,{'ab'[i % 2] if i < 6 else ''},{'train' if i < 6 else 'test'}" for i in range(20)
    ]
    members = {
        **images("x", range(20)),
        "t.csv": "\n".join(["file_name,label,split", *lines]).encode(),
    }
    (told,) = reasons(members, tmp_path)
    assert "got none in 14 of 20, those of the split 'test'" in told


def test_a_name_that_two_images_share_says_so(tmp_path: Path) -> None:
    members = {**images("a"), **images("b")}
    members["metadata.csv"] = b"file_name,label\n0.jpg,cat\n"
    assert "as 2 images are called: write its folder" in reasons(members, tmp_path)[0]
