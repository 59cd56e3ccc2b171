"""Parquet files as Hugging Face, pandas and others write them.

Judges: pyarrow, which writes the tables and says what is in them; Pillow's own pixels.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adap.core.config.base import SPLITS
from adap.core.config.data import DatasetOptions
from adap.core.datasets import ImageSet
from adap.worker.intake import IntakeLimits, Rejected, read_dataset
from adap.worker.intake.notes import Notes
from tests.worker.archives import pack, pixels, png

PNGS = [png(i) for i in range(8)]
NAMES = ["cat", "dog"] * 4


def written(columns: dict[str, Any], features: Any = None) -> bytes:
    table = pa.table(columns)
    if features is not None:
        told = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": told})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def read(content: bytes, folder: Path, **options: Any) -> ImageSet:
    path = folder / "upload"
    path.write_bytes(content)
    return read_dataset(
        path,
        limits=IntakeLimits(),
        on_progress=lambda done, total: None,
        options=DatasetOptions.model_validate(options),
    )


def refusal(content: bytes, folder: Path) -> str:
    with pytest.raises(Rejected) as caught:
        read(content, folder)
    return caught.value.reasons[0]


@pytest.mark.parametrize(
    "image",
    [
        pa.array(PNGS).dictionary_encode(),
        pa.array(PNGS, pa.large_binary()),
        pa.array(PNGS, pa.binary_view()),
        pa.array([{"path": None, "bytes": content} for content in PNGS]),
    ],
    ids=lambda array: str(array.type),
)
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()])
def test_bytes_and_texts_are_read_in_any_encoding_of_arrow(
    image: pa.Array, text: pa.DataType, tmp_path: Path
) -> None:
    made = read(written({"image": image, "label": pa.array(NAMES, text)}), tmp_path)
    assert [made.label_of(i) for i in range(8)] == NAMES
    for i, found in enumerate(made.images):
        np.testing.assert_array_equal(found.transpose(1, 2, 0), pixels(i))


@pytest.mark.parametrize(
    "feature",
    [
        [{"names": ["ant", "bee"], "_type": "ClassLabel"}],
        {"feature": {"names": ["ant", "bee"], "_type": "ClassLabel"}, "_type": "Sequence"},
        {"feature": {"names": ["ant", "bee"], "_type": "ClassLabel"}, "_type": "List"},
    ],
)
def test_several_labels_have_the_names_that_hugging_face_gives_them(
    feature: Any, tmp_path: Path
) -> None:
    rows = [[0], [1], [0, 1], [], [0], [1], [], [0, 1]]
    content = written({"image": PNGS, "labels": rows}, {"image": {}, "labels": feature})
    made = read(content, tmp_path)
    assert made.classes == ["ant", "bee"]
    assert made.label_matrix().tolist() == [[int(k in row) for k in (0, 1)] for row in rows]


def test_a_column_that_holds_splits_is_never_dropped(tmp_path: Path) -> None:
    parts = ["train"] * 4 + ["test"] * 4
    made = read(written({"image": PNGS, "label": NAMES, "subset": parts}), tmp_path)
    assert made.splits is not None
    assert [SPLITS[split] for split in made.splits] == parts
    other = {"image": PNGS, "label": NAMES, "part": parts, "caption": ["a test"] * 8}
    assert "--split-column part" in refusal(written(other), tmp_path)
    assert read(written(other), tmp_path, split_column="part").splits is not None


def test_files_of_several_configurations_are_never_joined(tmp_path: Path) -> None:
    def shard(seed: int) -> bytes:
        return written({"image": [png(seed + i) for i in range(8)], "label": NAMES})

    told = refusal(
        pack({"fine/train-0.parquet": shard(0), "coarse/train-0.parquet": shard(20)}), tmp_path
    )
    assert "'coarse', 'fine'" in told
    assert "send one of these folders" in told
    made = read(
        pack({"plain/train/0.parquet": shard(0), "plain/test/0.parquet": shard(20)}), tmp_path
    )
    assert made.splits is not None
    assert [SPLITS[split] for split in made.splits] == ["test"] * 8 + ["train"] * 8


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"image": [f"{i}.png" for i in range(8)]}, "write the bytes of each file"),
        ({"image": [[0, 1, 2, 3]] * 8}, "write each image as PNG, or send an NPZ"),
        ({"image": [*PNGS[:7], None]}, "or leave the row out"),
        ({"label": pa.array([0, 1] * 4, pa.date32())}, "`label_column`"),
        ({"set": [0, 1] * 4}, "write train, validation or test"),
    ],
)
def test_columns_that_cannot_be_read_are_refused_with_what_to_write(
    columns: dict[str, Any], told: str, tmp_path: Path
) -> None:
    assert told in refusal(written({"image": PNGS, "label": NAMES} | columns), tmp_path)


@pytest.mark.parametrize("kind", [pa.bool_(), pa.int64()])
def test_a_column_called_as_a_split_with_codes_is_asked_about(
    kind: pa.DataType, tmp_path: Path
) -> None:
    columns = {"image": PNGS, "label": NAMES, "is_valid": pa.array([0, 0, 0, 1] * 2).cast(kind)}
    assert "is_valid" in refusal(written(columns), tmp_path)


def test_a_series_of_files_that_is_not_whole_is_a_caution(tmp_path: Path) -> None:
    content = written({"image": PNGS, "label": NAMES})
    path = tmp_path / "upload"
    notes = Notes()
    shards = {f"data/train-{k:05d}-of-00004.parquet": content for k in (0, 2)}
    path.write_bytes(pack(shards))
    read_dataset(
        path,
        limits=IntakeLimits(),
        on_progress=lambda done, total: None,
        options=DatasetOptions(),
        notes=notes,
    )
    (fact,) = [fact for fact in notes.facts if fact.code == "missing_files"]
    assert fact.level == "caution"
    assert fact.message.startswith("2 of the 4 files of 'data/train' are there")


def test_labels_are_numbers_in_all_files_or_in_none(tmp_path: Path) -> None:
    """Else 0, 1, cat and dog would be four classes."""
    files = {
        "a.parquet": written({"image": PNGS, "label": NAMES}),
        "b.parquet": written({"image": PNGS, "label": [0, 1] * 4}),
    }
    assert "the same columns of the same kinds in all files" in refusal(pack(files), tmp_path)
