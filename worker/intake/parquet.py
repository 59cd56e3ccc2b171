"""Parquet data sets, as the Hugging Face hub has them: one row an image.

image (or img): the file's bytes, or a struct {bytes, path}.  label: text or whole numbers; or
labels: a list of them where an image may have several.  Optionally split, group, cluster: text.
Names for numbers are taken from the schema's own `huggingface` metadata (ClassLabel) where there
are some. Other columns are never read.

Images are read a few rows at a time, pages as they come, so that memory does not grow with the row
groups; the columns of text are read in small batches too, as a dictionary may repeat a long text.
Imported only when a Parquet file comes: pyarrow takes longer to start than a small zip to read.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adap.core.config import SPLITS
from adap.core.datasets import ImageSet
from adap.models.header import shown
from adap.worker.intake.asked import Asked
from adap.worker.intake.counts import check_class_count, check_counts, label_matrix
from adap.worker.intake.decoding import File, Undecoded, decode_all
from adap.worker.intake.limits import IntakeLimits, Reasons, Rejected
from adap.worker.intake.names import cluster_problem, group_problem, labels_problem, tidy
from adap.worker.intake.splits import split_problem, splits_of

IMAGE_ROWS = 32  # read at a time
TEXT_ROWS = 1024
MAX_FOOTER_BYTES = 64 * 1024**2

_IMAGES = ("image", "img")
_LABELS = ("label", "labels")
_DAMAGED = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True)
class _Columns:
    """Which columns mean what."""

    image: str
    label: str
    split: str | None
    group: str | None
    cluster: str | None
    multilabel: bool
    class_names: Sequence[str] | None  # of labels that are numbers


def read_parquet(path: Path, asked: Asked) -> ImageSet:
    """The data set in a Parquet file; raises Rejected for all that is not as described above."""
    _check_footer(path)
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            return _read(file, asked)
    except Rejected:
        raise
    except MemoryError as error:
        raise Rejected(
            "expected columns that fit the memory of the sandbox a few rows at a time, got longer "
            "values, as a dictionary or shared beginnings unfold them: write the file again with "
            "shorter ones"
        ) from error
    except _DAMAGED as error:
        raise Rejected(
            f"expected a sound Parquet file, got a damaged one: {shown(str(error)[:200])}"
        ) from error


def _read(file: pq.ParquetFile, asked: Asked) -> ImageSet:
    limits = asked.limits
    count = file.metadata.num_rows
    if not 0 < count <= limits.entries:
        raise Rejected(f"expected 1 to {limits.entries} rows (ADAP_MAX_IMAGES), got {count}")
    unpacked = sum(
        file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)
    )
    if unpacked > limits.unpacked_bytes:
        raise Rejected(f"expected at most {limits.unpacked_bytes} bytes unpacked, got {unpacked}")
    columns = _find_columns(file.schema_arrow)
    named, splits, groups, clusters = _read_texts(file, columns)
    classes, labels = _index(named, columns)
    check_counts(classes, labels, splits=splits, groups=groups)
    paths: list[str | None] = []
    undecoded = Undecoded(
        labels=labels,
        classes=classes,
        ids=lambda: _ids(paths),
        splits=splits,
        groups=groups,
        clusters=clusters,
    )
    return decode_all(_files(file, columns.image, paths, limits=limits), undecoded, asked)


def _check_footer(path: Path) -> None:
    """The footer is read whole: its length stands before the last four bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        end = file.read()
    length = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or length > min(size, MAX_FOOTER_BYTES):
        raise Rejected("expected a whole Parquet file, got one that was cut off or damaged")


def _find_columns(schema: pa.Schema) -> _Columns:
    reasons = Reasons()
    image = _one_of(_IMAGES, schema, reasons)
    label = _one_of(_LABELS, schema, reasons)
    reasons.settle()
    assert image is not None
    assert label is not None
    kind = schema.field(image).type
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        kind = fields.get("bytes", kind)
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        reasons.add(
            f"{image}: expected the bytes of image files, or a struct with a field `bytes`, "
            f"got {shown(str(schema.field(image).type))}"
        )
    kind = schema.field(label).type
    multilabel = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    kind = kind.value_type if multilabel else kind
    numbers = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if not (numbers or _is_text(kind)):
        reasons.add(
            f"{label}: expected text or whole numbers, or lists of them, "
            f"got {shown(str(schema.field(label).type))}"
        )
    for name in ("split", "group", "cluster"):
        if name in schema.names and not _is_text(schema.field(name).type):
            reasons.add(f"{name}: expected text, got {shown(str(schema.field(name).type))}")
    reasons.settle()
    return _Columns(
        image=image,
        label=label,
        split="split" if "split" in schema.names else None,
        group="group" if "group" in schema.names else None,
        cluster="cluster" if "cluster" in schema.names else None,
        multilabel=multilabel,
        class_names=_class_names(schema, label) if numbers else None,
    )


def _one_of(names: Sequence[str], schema: pa.Schema, reasons: Reasons) -> str | None:
    found: list[str] = [name for name in schema.names if name in names]
    if len(found) == 1:
        return found[0]
    reasons.add(
        f"expected one column {' or '.join(names)}, got {shown(', '.join(schema.names)[:300])}"
    )
    return None


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """The names that a ClassLabel of the Hugging Face library gives to numbers."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        feature = json.loads(text)["info"]["features"][label]
        names = feature.get("feature", feature).get("names")
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return [tidy(name) for name in names]


def _read_texts(
    file: pq.ParquetFile, columns: _Columns
) -> tuple[list[tuple[str, ...]], NDArray[np.int8] | None, list[str] | None, list[str] | None]:
    """The names of each row's labels, its split, its group and its cluster."""
    reasons = Reasons()
    named: list[tuple[str, ...]] = []
    splits: list[str] = []
    groups: list[str] = []
    clusters: list[str] = []
    optional = (columns.split, columns.group, columns.cluster)
    wanted = [columns.label, *(name for name in optional if name is not None)]
    for row in _rows(file, wanted, TEXT_ROWS):
        number = len(named)
        labels = row[columns.label]
        labels = labels if columns.multilabel else [labels]
        names = _names(labels, columns.class_names)
        if names is None:
            reasons.add(f"row {number}: expected a {columns.label}, got {shown(str(labels)[:200])}")
            names = ()
        elif problem := labels_problem(names):
            reasons.add(f"row {number}: {problem}")
        named.append(names)
        if columns.split is not None:
            split = row[columns.split] or ""
            if problem := split_problem(split):
                reasons.add(f"row {number}: {problem}")
            else:
                splits.append(split)
        if columns.group is not None:
            groups.append(tidy(row[columns.group] or ""))
            if problem := group_problem(groups[-1]):
                reasons.add(f"row {number}: {problem}")
        if columns.cluster is not None:
            clusters.append(tidy(row[columns.cluster] or ""))
            if problem := cluster_problem(clusters[-1]):
                reasons.add(f"row {number}: {problem}")
    reasons.settle()
    meaning = splits_of(set(splits))
    return (
        named,
        None
        if columns.split is None
        else np.array([SPLITS.index(meaning[split]) for split in splits], np.int8),
        None if columns.group is None else groups,
        None if columns.cluster is None else clusters,
    )


def _names(labels: Any, class_names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Labels by name; None where one is missing, or a number that has no name."""
    if labels is None or any(label is None for label in labels):
        return None
    if class_names is None:
        return tuple(tidy(label) if isinstance(label, str) else str(int(label)) for label in labels)
    if not all(0 <= label < len(class_names) for label in labels):
        return None
    return tuple(class_names[label] for label in labels)


def _index(
    named: Sequence[Sequence[str]], columns: _Columns
) -> tuple[list[str], NDArray[np.int64] | NDArray[np.uint8]]:
    """The classes, and each row's index into them or its row of the matrix.

    Classes that a ClassLabel names and no image has are left out, as in a folder that is empty.
    """
    found = {name for names in named for name in names}
    if columns.class_names is not None:
        classes = [name for name in dict.fromkeys(columns.class_names) if name in found]
    elif all(name.removeprefix("-").isdecimal() for name in found):
        classes = sorted(found, key=int)
    else:
        classes = sorted(found)
    if columns.multilabel:
        check_class_count(classes, examples=len(named))
        return classes, label_matrix(named, classes)
    position = {name: i for i, name in enumerate(classes)}
    return classes, np.array([position[name] for (name,) in named], np.int64)


def _files(
    file: pq.ParquetFile, column: str, paths: list[str | None], *, limits: IntakeLimits
) -> Iterator[File]:
    """Each row's image by name; `paths` is filled with what the files were called."""
    for row in _rows(file, [column], IMAGE_ROWS):
        value = row[column]
        path = value.get("path") if isinstance(value, dict) else None
        data = value.get("bytes") if isinstance(value, dict) else value
        name = f"row {len(paths)}" + (f", {path}" if isinstance(path, str) else "")
        paths.append(path if isinstance(path, str) else None)
        yield File(name, len(data or b""), partial(_checked, name, data, limits))


def _checked(name: str, data: bytes | None, limits: IntakeLimits) -> bytes:
    if data is None:
        raise Rejected(f"{shown(name)}: expected the bytes of an image, got none")
    if len(data) > limits.entry_bytes:
        raise Rejected(
            f"{shown(name)}: expected at most {limits.entry_bytes} bytes, got {len(data)}"
        )
    return data


def _rows(file: pq.ParquetFile, columns: list[str], count: int) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(batch_size=count, columns=columns, use_threads=False):
        yield from batch.to_pylist()


def _ids(paths: Sequence[str | None]) -> list[str]:
    """What the files were called, where each has a name of its own; else the numbers of rows."""
    names = [path for path in paths if path and path.isprintable() and len(path) <= 500]
    if len(set(names)) == len(paths):
        return [tidy(name) for name in names]
    digits = len(str(len(paths) - 1))
    return [f"{i:0{digits}d}" for i in range(len(paths))]
