"""Several labels an image, images of several sizes, and Parquet.

Judges: matrices and images made here, Pillow's own operations, scikit-learn's binarizer, and the
Hugging Face layout written by pyarrow alone.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.preprocessing import MultiLabelBinarizer

from adap.core.config.data import DatasetOptions, Resize, Task
from adap.core.datasets import ImageSet
from adap.worker.intake import IntakeLimits, Rejected, read_dataset, summarise
from adap.worker.intake.notes import Notes
from tests.worker.archives import encode, metadata, pack, pixels, png, two_classes

LABELS = [["cat"], ["cat", "dog"], [], ["dog"], ["dog", "sofa"], ["sofa"], ["cat", "sofa"], []]
CLASSES = ["cat", "dog", "sofa"]
MATRIX = MultiLabelBinarizer(classes=CLASSES).fit_transform(LABELS).astype(np.uint8)
IMAGES = np.stack([pixels(i) for i in range(8)])  # (N, H, W, C)


def read(content: bytes, folder: Path, **options: Any) -> ImageSet:
    path = folder / "upload"
    path.write_bytes(content)
    limits, notes = options.pop("limits", IntakeLimits()), options.pop("notes", None)
    return read_dataset(
        path,
        limits=limits,
        on_progress=lambda done, total: None,
        options=DatasetOptions(**options),
        notes=notes,
    )


def reasons(content: bytes, folder: Path, **options: Any) -> list[str]:
    with pytest.raises(Rejected) as caught:
        read(content, folder, **options)
    assert all(reason.isprintable() and len(reason) < 600 for reason in caught.value.reasons)
    return caught.value.reasons


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def table(labels: list[list[str]], **columns: list[str]) -> dict[str, bytes]:
    rows = [
        {"file_name": f"{i}.png", "labels": "|".join(names)} | {k: v[i] for k, v in columns.items()}
        for i, names in enumerate(labels)
    ]
    return {"metadata.csv": metadata(rows)} | {f"{i}.png": png(i) for i in range(len(labels))}


def parquet(
    *,
    images: Any = None,
    features: dict[str, Any] | None = None,
    row_group_size: int | None = None,
    **columns: Any,
) -> bytes:
    """A Parquet file; images as the Hugging Face library writes them."""
    if images is None:
        images = [{"bytes": encode(image), "path": f"p{i}.png"} for i, image in enumerate(IMAGES)]
    made = pa.table({"image": images, **columns})
    if features is not None:
        info = json.dumps({"info": {"features": features}})
        made = made.replace_schema_metadata({"huggingface": info})
    buffer = io.BytesIO()
    pq.write_table(made, buffer, row_group_size=row_group_size)
    return buffer.getvalue()


# --- several labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["table", "npz", "parquet", "parquet of numbers"])
def test_several_labels_come_in_every_form(tmp_path: Path, form: str) -> None:
    numbers = [[CLASSES.index(name) for name in names] for names in LABELS]
    names = {"labels": {"feature": {"names": CLASSES, "_type": "ClassLabel"}, "_type": "List"}}
    content = {
        "table": lambda: pack(table(LABELS)),
        "npz": lambda: npz(images=IMAGES, labels=MATRIX.astype(bool), classes=np.array(CLASSES)),
        "parquet": lambda: parquet(labels=LABELS),
        "parquet of numbers": lambda: parquet(labels=numbers, features=names),
    }[form]()
    image_set = read(content, tmp_path)
    assert image_set.multilabel
    assert list(image_set.classes) == CLASSES
    np.testing.assert_array_equal(image_set.labels, MATRIX)
    np.testing.assert_array_equal(image_set.images, IMAGES.transpose(0, 3, 1, 2))

    image_set.save(tmp_path / "stored")
    stored = ImageSet.load(tmp_path / "stored")
    np.testing.assert_array_equal(stored.labels, MATRIX)
    assert stored.multilabel
    np.testing.assert_array_equal(stored.label_matrix(["sofa", "cat"]), MATRIX[:, [2, 0]])
    targets = stored.targets(Task(positive=["dog", "sofa"]), np.arange(2, 8))
    np.testing.assert_array_equal(targets, MATRIX[2:, 1:].max(axis=1))
    assert [stored.label_of(i) for i in range(8)] == ["|".join(names) for names in LABELS]

    summary = summarise(stored)
    assert summary["multilabel"] is True
    assert summary["classes"] == {"cat": 3, "dog": 3, "sofa": 3}
    assert summary["prevalence"] == {"cat": 3 / 8, "dog": 3 / 8, "sofa": 3 / 8}


def test_one_label_each_has_a_matrix_too(tmp_path: Path) -> None:
    image_set = read(pack(two_classes()), tmp_path)
    assert not image_set.multilabel
    np.testing.assert_array_equal(image_set.label_matrix(), [[1, 0], [1, 0], [0, 1], [0, 1]])


def test_a_table_of_several_labels_that_cannot_be_is_refused_line_by_line(tmp_path: Path) -> None:
    labels = [*LABELS, ["cat", "cat"], ["cat", ""]]
    assert reasons(pack(table(labels)), tmp_path) == [
        "metadata.csv, line 10: expected each label once, got 'cat|cat'",
        "metadata.csv, line 11: expected a label of 1 to 200 printable characters, got ''",
    ]
    both = metadata([{"file_name": "1.png", "label": "cat", "labels": "cat"}])
    (reason,) = reasons(pack({"metadata.csv": both, "1.png": png(1)}), tmp_path)
    assert "got 'label', 'labels': say which with `label_column`" in reason


@pytest.mark.parametrize(
    ("labels", "splits", "reason"),
    [
        (
            [["cat"], *([["cat", "dog"]] * 7)],
            None,
            "class 'cat': expected at least 2 images without it, got 0",
        ),
        ([["dog"], *([["cat"], []] * 3), []], None, "class 'dog': expected at least 2 images"),
        (
            [["cat"], ["cat"], ["cat"], ["cat"], [], [], ["cat"], []],
            ["train"] * 4 + ["test"] * 4,
            "split train: expected a class that some images have and others have not, got none",
        ),
    ],
)
def test_a_class_without_both_sides_is_refused(
    tmp_path: Path, labels: list[list[str]], splits: list[str] | None, reason: str
) -> None:
    columns = {} if splits is None else {"split": splits}
    assert any(got.startswith(reason) for got in reasons(pack(table(labels, **columns)), tmp_path))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"labels": MATRIX * 2, "classes": CLASSES}, "expected 0 and 1 in (8, 3), got values from"),
        ({"labels": MATRIX, "classes": CLASSES[:2]}, "3 columns of labels, got 2"),
        ({"labels": MATRIX, "classes": ["cat", "dog", "cat"]}, "expected each name once"),
        ({"labels": MATRIX.astype(str), "classes": CLASSES}, "expected 0 and 1 in (8, 3), got <U"),
        ({"labels": np.zeros((8, 1001), np.uint8)}, "1 to 1000 classes, got (8, 1001)"),
    ],
)
def test_a_matrix_that_cannot_be_is_refused(
    tmp_path: Path, arrays: dict[str, Any], reason: str
) -> None:
    content = npz(images=IMAGES, **{name: np.array(array) for name, array in arrays.items()})
    assert any(reason in got for got in reasons(content, tmp_path))


# --- several sizes --------------------------------------------------------------------------------


def judged(image: NDArray[np.uint8], fit: str) -> NDArray[np.uint8]:
    """By Pillow: 6 wide and 4 high."""
    made = Image.fromarray(image)
    method = Image.Resampling.BILINEAR
    if fit == "stretch":
        return np.asarray(made.resize((6, 4), method))
    return np.asarray((ImageOps.fit if fit == "crop" else ImageOps.pad)(made, (6, 4), method))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_images_of_several_sizes_are_made_one_by_a_declared_rule(
    tmp_path: Path, fit: str, channels: int
) -> None:
    sizes = [(4, 6), (8, 8), (12, 5), (30, 40)]
    images = [pixels(i, size=size, channels=channels) for i, size in enumerate(sizes * 2)]
    members = {f"{'cat' if i < 4 else 'dog'}/{i}.png": encode(im) for i, im in enumerate(images)}
    notes = Notes()
    rule = Resize.model_validate({"height": 4, "width": 6, "fit": fit})
    image_set = read(pack(members), tmp_path, resize=rule, notes=notes)
    assert image_set.images.shape == (8, channels, 4, 6)
    for made, image in zip(image_set.images, images, strict=True):
        wanted = judged(image, fit) if image.shape[:2] != (4, 6) else image
        wanted = wanted[None] if channels == 1 else wanted.transpose(2, 0, 1)
        np.testing.assert_array_equal(made, wanted)
    summary = summarise(image_set, notes=notes)
    assert summary["sizes"] == {"6x4": 2, "8x8": 2, "5x12": 2, "40x30": 2}
    assert (summary["height"], summary["width"]) == (4, 6)


@pytest.mark.parametrize("images", [IMAGES, IMAGES[..., 0], IMAGES.transpose(0, 3, 1, 2)])
def test_the_rule_holds_for_arrays_and_parquet_too(
    tmp_path: Path, images: NDArray[np.uint8]
) -> None:
    rule = Resize(height=4, width=6, fit="crop")
    labels = np.arange(8) % 2
    made = read(npz(images=images, labels=labels), tmp_path, resize=rule)
    channels_last = images.transpose(0, 2, 3, 1) if images.shape[1] == 3 else images
    wanted = np.stack([judged(image, "crop") for image in channels_last])
    wanted = wanted[:, None] if wanted.ndim == 3 else wanted.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(made.images, wanted)
    files = [encode(image) for image in channels_last]
    again = read(parquet(images=files, label=labels), tmp_path, resize=rule)
    np.testing.assert_array_equal(again.images, wanted)


def test_a_size_that_memory_does_not_hold_is_refused(tmp_path: Path) -> None:
    rule = Resize(height=2048, width=2048, fit="pad")
    limits = IntakeLimits(decoded_bytes=10_000_000)
    for content in (pack(two_classes()), npz(images=IMAGES, labels=np.arange(8) % 2)):
        (reason,) = reasons(content, tmp_path, resize=rule, limits=limits)
        assert "10000000 bytes" in reason


# --- Parquet --------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_group_size", [1, 3, None])
@pytest.mark.parametrize("kind", ["text", "numbers", "named numbers", "dictionary"])
def test_parquet_is_read_as_it_was_written(tmp_path: Path, kind: str, row_group_size: int) -> None:
    names = ["cat", "dog"] * 4
    features = {"label": {"names": ["dog", "none", "cat"], "_type": "ClassLabel"}}
    label, classes = {
        "text": (pa.array(names), ["cat", "dog"]),
        "dictionary": (pa.array(names).dictionary_encode(), ["cat", "dog"]),
        "numbers": (pa.array([10, 9] * 4), ["9", "10"]),
        "named numbers": (pa.array([2, 0] * 4), ["dog", "cat"]),
    }[kind]
    content = parquet(
        label=label,
        split=["train"] * 4 + ["test"] * 4,
        group=["north", "south"] * 4,
        caption=["never read"] * 8,
        features=features if kind == "named numbers" else None,
        row_group_size=row_group_size,
    )
    image_set = read(content, tmp_path)
    np.testing.assert_array_equal(image_set.images, IMAGES.transpose(0, 3, 1, 2))
    assert list(image_set.classes) == classes
    first = classes.index({"numbers": "10"}.get(kind, "cat"))
    np.testing.assert_array_equal(image_set.labels, [first, 1 - first] * 4)
    assert list(image_set.example_ids) == [f"p{i}.png" for i in range(8)]
    np.testing.assert_array_equal(image_set.splits, [0] * 4 + [2] * 4)
    assert image_set.groups == ["north", "south"] * 4


def test_images_without_names_are_numbered(tmp_path: Path) -> None:
    files = [encode(image) for image in IMAGES]
    image_set = read(parquet(images=files, label=["a", "b"] * 4), tmp_path)
    assert list(image_set.example_ids) == [str(i) for i in range(8)]
    same = [{"bytes": data, "path": "image.png"} for data in files]
    image_set = read(parquet(images=same, label=["a", "b"] * 4), tmp_path)
    assert list(image_set.example_ids) == [str(i) for i in range(8)]


def test_rows_of_parquet_whose_labels_are_kept_back_are_refused_once(tmp_path: Path) -> None:
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    shards = {}
    for split, values in {"train": [0, 1] * 4, "test": [-1] * 8}.items():
        images = [{"bytes": encode(image), "path": None} for image in IMAGES]
        table = pa.table({"image": images, "label": pa.array(values, pa.int64())})
        file = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), file)
        shards[f"{split}.parquet"] = file.getvalue()
    (said,) = reasons(pack(shards), tmp_path)
    assert said.startswith("'test.parquet': expected labels, got none in all of its 8 rows")
    assert "leave the file out" in said


def test_numbers_in_a_column_of_floats_are_labels_as_in_a_table(tmp_path: Path) -> None:
    assert read(parquet(label=[0.0, 1.0] * 4), tmp_path).classes == ["0", "1"]
    (reason,) = reasons(parquet(label=[0.0, 1.0, float("nan"), 0.0] * 2), tmp_path)
    assert "got none in 2 rows, the first of them row 2" in reason


def test_all_bad_rows_of_parquet_are_named(tmp_path: Path) -> None:
    images = [{"bytes": encode(image), "path": f"p{i}.png"} for i, image in enumerate(IMAGES)]
    images[2] = {"bytes": b"GIF89a", "path": "bad.gif"}
    images[5] = {"bytes": None, "path": "elsewhere.png"}
    got = reasons(parquet(images=images, label=["a", "b"] * 4), tmp_path)
    assert got[0].startswith("'row 2, bad.gif': expected a sound PNG, JPEG or WebP image")
    assert got[1].startswith("'row 5, elsewhere.png': expected the bytes of an image, got none: ")
    columns = {"label": ["a", None, "b", ""] * 2, "split": ["train", "tset"] * 4}
    got = reasons(parquet(**columns), tmp_path)
    assert got[0] == "row 1: expected a split among train, validation, test, got 'tset'"
    assert got[-1] == (
        "expected a label in each row, got none in 2 rows, the first of them row 1: leave rows "
        "without a label out"
    )
    assert len(got) == 7


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({}, "expected one column label or labels, got 'image'"),
        ({"label": ["a"] * 8, "labels": [["a"]] * 8}, "expected one column label or labels"),
        ({"label": ["a", "b"] * 4, "img": [b""] * 8}, "expected one column image or img"),
        ({"label": [0.5, 1.5] * 4}, "label: expected text or whole numbers, or lists of them"),
        ({"label": ["a", "b"] * 4, "images": ["x"] * 8, "split": [1] * 8}, "split: expected text"),
        ({"label": ["a", "b"] * 4, "image": ["x.png"] * 8}, "image: expected the bytes of image"),
        ({"label": ["a"] * 8}, "expected at least two classes, got 'a' alone"),
    ],
)
def test_parquet_with_other_columns_is_refused(
    tmp_path: Path, columns: dict[str, Any], reason: str
) -> None:
    images = columns.pop("image", None)
    columns.pop("images", None)
    assert any(reason in got for got in reasons(parquet(images=images, **columns), tmp_path))


def test_damaged_parquet_is_refused_in_a_sentence(tmp_path: Path) -> None:
    sound = parquet(label=["a", "b"] * 4)
    random = np.random.default_rng(0)
    (reason,) = reasons(sound[:-9], tmp_path)
    assert reason == "expected a whole Parquet file, got one that was cut off or damaged"
    refused = 0
    for _ in range(200):
        damaged = bytearray(sound)
        for place in random.integers(4, len(sound) - 4, 8):
            damaged[place] = random.integers(256)
        try:
            read(bytes(damaged), tmp_path)
        except Rejected:  # and nothing else
            refused += 1
    assert refused > 100


def test_more_rows_than_allowed_are_refused_before_they_are_read(tmp_path: Path) -> None:
    limits = IntakeLimits(entries=7)
    (reason,) = reasons(parquet(label=["a", "b"] * 4), tmp_path, limits=limits)
    assert reason == "expected 1 to 7 rows (ADAP_MAX_IMAGES), got 8"


def test_several_parquet_files_in_a_zip_are_one_data_set(tmp_path: Path) -> None:
    label = ["a", "b"] * 4
    images = [{"bytes": encode(pixels(i + 50)), "path": f"t{i}.png"} for i in range(8)]
    shards = {
        "data/train-00000-of-00002.parquet": parquet(label=label),
        "data/train-00001-of-00002.parquet": parquet(images=images, label=label),
        "data/test-00000-of-00001.parquet": parquet(images=images, label=label),
        "README.md": b"# Cards",
    }
    notes = Notes()
    image_set = read(pack(shards), tmp_path, notes=notes)
    wanted = np.concatenate(
        [[pixels(i + 50) for i in range(8)], IMAGES, [pixels(i + 50) for i in range(8)]]
    )
    np.testing.assert_array_equal(image_set.images, wanted.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(image_set.splits, [2] * 8 + [0] * 16)
    assert "2 splits from names of files" in notes.steps
    assert not list(tmp_path.glob("shards-*"))
    odd = {**shards, "data/more.parquet": parquet(label=label)}
    assert "rename them, or add a column `split`" in reasons(pack(odd), tmp_path)[0]
    other = {**shards, "data/test-00000-of-00001.parquet": parquet(label=[0, 1] * 4, split=label)}
    assert "the same columns" in reasons(pack(other), tmp_path)[0]
    assert "got 'cat/1.png'" in reasons(pack({**shards, **two_classes()}), tmp_path)[0]


def test_columns_of_parquet_follow_the_rules_of_tables(tmp_path: Path) -> None:
    texts = ["cat|dog", "cat", "dog", "cat|dog"] * 2
    content = parquet(**{"class": texts, "patient": [1, 1, 2, 2] * 2})
    assert "--label-separator '|'" in reasons(content, tmp_path)[0]
    several = read(content, tmp_path, label_separator="|", cluster_column="patient")
    np.testing.assert_array_equal(several.labels, [[1, 1], [1, 0], [0, 1], [1, 1]] * 2)
    assert several.clusters == list("11221122")
    single = read(content, tmp_path, label_separator="none")
    assert [single.label_of(i) for i in range(8)] == texts


@pytest.mark.parametrize(
    "text",
    ["('cat', 'dog')", "{'dog', 'cat'}", "['cat' 'dog']", '["cat", "dog"]', "['cat'\n 'dog']"],
)
def test_labels_are_read_as_python_and_numpy_write_them(text: str, tmp_path: Path) -> None:
    texts = [text, "['dog']", text, "['cat']"] * 2
    rows = [{"file_name": f"{i}.png", "labels": each} for i, each in enumerate(texts)]
    content = pack({"metadata.csv": metadata(rows)} | {f"{i}.png": png(i) for i in range(8)})
    made = read(content, tmp_path)
    assert made.classes == ["cat", "dog"]
    assert made.multilabel
    assert made.labels.tolist() == [[1, 1], [0, 1], [1, 1], [1, 0]] * 2


@pytest.mark.parametrize(
    "form", ["[{}, {}, {}]", "[{} {} {}]", "({}, {}, {})", "[{}.0, {}.0, {}.0]"]
)
def test_lists_of_0_and_1_without_names_are_refused(form: str, tmp_path: Path) -> None:
    rows = [
        {"file_name": f"{i}.png", "label": form.format(*(int(k == i % 3) for k in range(3)))}
        for i in range(6)
    ]
    content = pack({"metadata.csv": metadata(rows)} | {f"{i}.png": png(i) for i in range(6)})
    (reason,) = reasons(content, tmp_path)
    assert "expected names of classes, got lists of 3 numbers 0 and 1" in reason
    assert "--label-columns" in reason


def test_minus_one_among_counted_classes_is_a_caution(tmp_path: Path) -> None:
    notes = Notes()
    read(npz(images=IMAGES, labels=np.array([0, 1, -1, 2] * 2)), tmp_path, notes=notes)
    assert any("-1" in fact.message and fact.level == "caution" for fact in notes.facts)
