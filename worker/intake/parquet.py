"""Parquet data sets, as the Hugging Face hub has them: one row an image, in one file or several.

image (or img): the file's bytes, or a struct {bytes, path}.  label: text or whole numbers; or
labels: several of them where an image may have several, as a list or a text with | between them.
Optionally split: text.  group, cluster: text or whole numbers.  Columns are found as in a table.
Names for numbers are taken from the schema's own `huggingface` metadata (ClassLabel) where there
are some. Other columns are never read. Without a column `split` the names of several files may
say it: `train-00000-of-00002.parquet`.

Images are read a few rows at a time, pages as they come, so that memory does not grow with the row
groups; the columns of text are read in small batches too, as a dictionary may repeat a long text.
Imported only when a Parquet file comes: pyarrow takes longer to start than a small zip to read.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adap.core.config.base import SPLITS
from adap.core.datasets import ImageSet
from adap.models.header import shown
from adap.wording import is_name
from adap.worker.intake.asked import Asked
from adap.worker.intake.columns import Role, find_column, note_unread, plain, require_column
from adap.worker.intake.counts import check_class_count, check_counts, label_matrix
from adap.worker.intake.decoding import File, Undecoded, decode_all
from adap.worker.intake.labels import LabelColumns, check_text_labels, split_labels
from adap.worker.intake.limits import IntakeLimits, Reasons, Rejected
from adap.worker.intake.names import cluster_problem, group_problem, labels_problem, tidy
from adap.worker.intake.notes import counted, listed
from adap.worker.intake.splits import (
    MOST_DIFFERENT,
    is_called_a_split,
    is_code,
    names_a_split_alone,
    refuse_codes,
    split_problem,
    splits_of,
)

IMAGE_ROWS = 32  # read at a time
TEXT_ROWS = 1024
MAX_FOOTER_BYTES = 64 * 1024**2

_IMAGES = ("image", "img")
_LABELS = ("label", "labels")
_OPTIONAL: tuple[Role, ...] = ("split", "group", "cluster")
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_PART_OF = re.compile(r"[-_.](\d{1,9})-of-(\d{1,9})(?!\d)")
_DAMAGED = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True)
class _Columns:
    """Which columns mean what."""

    image: str
    label: str
    split: str | None
    group: str | None
    cluster: str | None
    lists: bool  # of labels
    numbers: bool  # labels, not texts: compared between files
    separator: str | None  # between several labels in a text
    class_names: tuple[str, ...] | None  # of labels that are numbers
    hot: tuple[str, ...] = ()  # columns of 0 and 1, one for each class, instead of `label`

    @property
    def several(self) -> bool:
        """Whether a row of the column may have several labels."""
        return self.lists or self.separator is not None

    @property
    def read(self) -> list[str | None]:
        """All of them, None for what there is none of."""
        return [self.image, *self.labels, self.split, self.group, self.cluster]

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns that labels come from."""
        return self.hot or (self.label,)


def read_parquet(shards: Mapping[str, Path], asked: Asked) -> ImageSet:
    """The data set in Parquet files, by what they are called: one, or several of the same columns.

    Raises Rejected for all that is not as described above.
    """
    try:
        with ExitStack() as stack:
            files = []
            for path in shards.values():
                _check_footer(path)
                file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
                files.append(stack.enter_context(file))
            return _read(dict(zip(shards, files, strict=True)), asked)
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


def _read(files: Mapping[str, pq.ParquetFile], asked: Asked) -> ImageSet:
    limits = asked.limits
    counts = [file.metadata.num_rows for file in files.values()]
    count = sum(counts)
    if not 0 < count <= limits.entries:
        raise Rejected(f"expected 1 to {limits.entries} rows (ADAP_MAX_IMAGES), got {count}")
    unpacked = sum(
        file.metadata.row_group(i).total_byte_size
        for file in files.values()
        for i in range(file.metadata.num_row_groups)
    )
    if unpacked > limits.unpacked_bytes:
        raise Rejected(f"expected at most {limits.unpacked_bytes} bytes unpacked, got {unpacked}")
    found = {name: _find_columns(file.schema_arrow, asked) for name, file in files.items()}
    first, *others = found
    columns = found[first]
    for name in others:
        if found[name] != columns:
            raise Rejected(
                f"expected the same columns of the same kinds in all files, got other ones in "
                f"{shown(name)} than in {shown(first)}"
            )
    names = next(iter(files.values())).schema_arrow.names
    note_unread(
        names,
        columns.read,
        asked.notes,
        clustered=columns.cluster is not None,
        split=columns.split is not None,
    )
    if columns.split is None:
        _refuse_other_splits(files, [name for name in names if name not in columns.read])
    _note_missing(list(files), asked)
    named, several, splits, groups, clusters = _read_texts(files, columns, asked)
    if splits is None and len(files) > 1:
        splits = _splits_of_files(list(files), counts, asked)
    if not columns.several and not columns.hot and columns.class_names is None:
        different = {name for names in named for name in names}
        check_text_labels(different, columns.label, asked.options)
    classes, labels = _index(named, columns, several=several)
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
    images = _files(list(files.values()), columns.image, paths, limits=limits)
    return decode_all(images, undecoded, asked)


def _splits_of_files(
    names: Sequence[str], counts: Sequence[int], asked: Asked
) -> NDArray[np.int8] | None:
    """The split of each row by the name of its file, where all names say one."""
    _refuse_configurations(names)
    splits = splits_of(names)
    if not splits:
        return None
    if len(splits) < len(names):
        raise Rejected(
            f"expected files that all name a split or none, got {listed(sorted(splits))} beside "
            f"{listed(sorted(set(names) - set(splits)))}: rename them, or add a column `split`"
        )
    asked.notes.step(f"{counted(len(set(splits.values())), 'split')} from names of files")
    return np.repeat(np.array([SPLITS.index(splits[name]) for name in names], np.int8), counts)


def _note_missing(names: Sequence[str], asked: Asked) -> None:
    """Note files of a series that says how many there are, of which not all have come."""
    there: dict[tuple[str, int], set[str]] = {}
    for name in names:
        if part := _PART_OF.search(name):
            there.setdefault((name[: part.start()], int(part[2])), set()).add(part[1])
    for (series, count), numbers in there.items():
        if len(numbers) < count:
            asked.notes.fact(
                "caution",
                "missing_files",
                f"{len(numbers):,} of the {count:,} files of {shown(series)} are there, as their "
                "names say: the data set is not whole; send all of them",
                files=count - len(numbers),
            )


def _refuse_configurations(names: Sequence[str]) -> None:
    """Raise Rejected for files called the same in folders that are no splits, as of a Hub's."""
    places: dict[str, set[str]] = {}
    for name in names:
        *folders, base = name.split("/")
        named = [folder for folder in folders if splits_of([folder])]
        rest = "/".join(folder for folder in folders if folder not in named)
        places.setdefault("/".join([*named, base]), set()).add(rest)
    for base, found in places.items():
        if len(found) > 1:
            raise Rejected(
                f"expected the files of one data set, got {shown(base)} in {listed(sorted(found))},"
                " as if these were several configurations: send one of these folders, or put all "
                "files into one, under different names"
            )


def _refuse_other_splits(files: Mapping[str, pq.ParquetFile], unread: Sequence[str]) -> None:
    """Raise Rejected for a column that is not read and holds splits alone, or is called as one."""
    schema = next(iter(files.values())).schema_arrow
    for name in unread:
        kind, called = schema.field(name).type, is_called_a_split(name)
        codes = called and (pa.types.is_integer(kind) or pa.types.is_boolean(kind))
        if not (_is_text(kind) or codes):
            continue
        found: set[str] = set()
        for row in (row for file in files.values() for row in _rows(file, [name], TEXT_ROWS)):
            text = "" if row[name] is None else str(row[name])
            found.add(text)
            known = names_a_split_alone(text) or (called and (not text or is_code(text)))
            if len(found) > MOST_DIFFERENT or not known:
                break
        else:
            refuse_codes(name, found)
            if len(set(splits_of(found).values())) > 1:
                raise Rejected(
                    f"the column {shown(name)} holds {listed(sorted(found))}, as if it were the "
                    f"split: send `split_column` (--split-column {name}), or leave it out"
                )


def _check_footer(path: Path) -> None:
    """The footer is read whole: its length stands before the last four bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        end = file.read()
    length = int.from_bytes(end[:4], "little")
    if end[4:] != b"PAR1" or length > min(size, MAX_FOOTER_BYTES):
        raise Rejected("expected a whole Parquet file, got one that was cut off or damaged")


def _find_columns(schema: pa.Schema, asked: Asked) -> _Columns:
    reasons, options = Reasons(), asked.options
    image = require_column("image", schema.names, _IMAGES, options)
    hot: tuple[str, ...] = ()
    if options.label_columns is not None:
        others = [find_column(role, schema.names, (role,), options) for role in _OPTIONAL]
        hot = tuple(LabelColumns(options.label_columns, schema.names, [image, *others]).columns)
    label = require_column("label", schema.names, _LABELS, options) if not hot else hot[0]
    kind = schema.field(image).type
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        kind = fields.get("bytes", kind)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_bytes(kind) for is_bytes in _BYTES):
        instead = (
            "write the bytes of each file in place of its path or address, or send the images "
            "with a metadata.csv"
            if _is_text(kind)
            else "write each image as PNG, or send an NPZ"
        )
        reasons.add(
            f"{image}: expected the bytes of image files, or a struct with a field `bytes`, "
            f"got {shown(str(schema.field(image).type))}: {instead}"
        )
    kind = schema.field(label).type
    multilabel = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    kind = kind.value_type if multilabel else kind
    floats = pa.types.is_floating(kind) and not multilabel  # of a column that had gaps once
    numbers = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or floats
    if not (numbers or _is_text(kind) or hot):
        reasons.add(
            f"{label}: expected text or whole numbers, or lists of them, got "
            f"{shown(str(schema.field(label).type))}: write one of these, or name another column "
            "with `label_column` (--label-column)"
        )
    if not (_is_text(kind) and not multilabel) and options.label_separator not in (None, "none"):
        reasons.add(
            f"{label}: expected text where a `label_separator` (--label-separator) was asked for, "
            f"got {shown(str(schema.field(label).type))}: leave the option out"
        )
    told = {}
    for role in _OPTIONAL:
        name = find_column(role, schema.names, (role,), options)
        if name is not None:
            told[role] = name
            kind_of = schema.field(name).type
            if not (_is_text(kind_of) or (role != "split" and pa.types.is_integer(kind_of))):
                hint = ": write train, validation or test" if role == "split" else ""
                reasons.add(f"{name}: expected text, got {shown(str(kind_of))}{hint}")
    reasons.settle()
    separator = None
    if _is_text(kind) and not (multilabel or hot) and options.label_separator != "none":
        separator = options.label_separator or ("|" if plain(label) == "labels" else None)
    return _Columns(
        image=image,
        label=label,
        split=told.get("split"),
        group=told.get("group"),
        cluster=told.get("cluster"),
        lists=multilabel,
        numbers=numbers,
        separator=separator,
        class_names=_class_names(schema, label) if numbers and not hot else None,
        hot=hot,
    )


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(is_text(kind) for is_text in _TEXTS)


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The names that a ClassLabel of the Hugging Face library gives to numbers."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        feature = json.loads(text)["info"]["features"][label]
        while not isinstance(feature, dict) or "feature" in feature:  # a list, in either spelling
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        names = feature.get("names")
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(map(tidy, names))


def _read_texts(
    files: Mapping[str, pq.ParquetFile], columns: _Columns, asked: Asked
) -> tuple[
    list[tuple[str, ...]], bool, NDArray[np.int8] | None, list[str] | None, list[str] | None
]:
    """The labels of each row, whether it may have several, its split, its group, its cluster."""
    reasons = Reasons()
    named: list[tuple[str, ...]] = []
    splits: list[str] = []
    codes: set[str] = set()  # in the place of splits
    groups: list[str] = []
    clusters: list[str] = []
    optional = (columns.split, columns.group, columns.cluster)
    wanted = [*columns.labels, *(name for name in optional if name is not None)]
    hot = LabelColumns(",".join(columns.hot), columns.hot, ()) if columns.hot else None
    kept_back: dict[str, list[int]] = {}  # rows without a label, of each file
    for name, row in (
        (name, row) for name, file in files.items() for row in _rows(file, wanted, TEXT_ROWS)
    ):
        number = len(named)
        names: tuple[str, ...] | None
        labels: Any = None
        if hot is not None:
            try:
                names = hot.of(row)
            except ValueError as error:
                reasons.add(f"row {number}: {error}")
                names = ()
        else:
            labels = row[columns.label]
            if isinstance(labels, float):
                labels = _whole(labels, columns.label, number)
            if columns.separator is not None and labels is not None:
                labels = list(split_labels(labels, columns.separator))
            labels = labels if columns.several else [labels]
            names = _names(labels, columns.class_names)
        if names is None and labels in ([-1], [None]):
            kept_back.setdefault(name, []).append(number)
            names = ()
        elif names is None:
            reasons.add(f"row {number}: expected a {columns.label}, got {shown(str(labels)[:200])}")
            names = ()
        elif problem := labels_problem(names):
            reasons.add(f"row {number}: {problem}")
        named.append(names)
        if columns.split is not None:
            split = row[columns.split] or ""
            if is_code(split):
                codes.add(split)
            elif problem := split_problem(split):
                reasons.add(f"row {number}: {problem}")
            else:
                splits.append(split)
        if columns.group is not None:
            groups.append(_text_of(row[columns.group]))
            if problem := group_problem(groups[-1]):
                reasons.add(f"row {number}: {problem}")
        if columns.cluster is not None:
            clusters.append(_text_of(row[columns.cluster]))
            if problem := cluster_problem(clusters[-1]):
                reasons.add(f"row {number}: {problem}")
    for name, rows in kept_back.items():
        if len(files) > 1 and len(rows) == files[name].metadata.num_rows:
            reasons.add(
                f"{shown(name)}: expected labels, got none in all of its {len(rows):,} rows: leave "
                "the file out, as a test split without labels judges nothing"
            )
        else:
            where = f" of {shown(name)}" if name else ""
            reasons.add(
                f"expected a label in each row, got none in {counted(len(rows), 'row')}{where}, "
                f"the first of them row {rows[0]}: leave rows without a label out"
            )
    if columns.split is not None:
        refuse_codes(columns.split, codes)
    reasons.settle()
    meaning = splits_of(set(splits))
    return (
        named,
        columns.several if hot is None else hot.several(named, asked.notes),
        None
        if columns.split is None
        else np.array([SPLITS.index(meaning[split]) for split in splits], np.int8),
        None if columns.group is None else groups,
        None if columns.cluster is None else clusters,
    )


def _text_of(value: str | int | None) -> str:
    return "" if value is None else tidy(str(value))


def _names(labels: Any, class_names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Labels by name; None where one is missing, or a number that has no name."""
    if labels is None or any(label is None for label in labels):
        return None
    if class_names is None:
        return tuple(tidy(label) if isinstance(label, str) else str(int(label)) for label in labels)
    if not all(0 <= label < len(class_names) for label in labels):
        return None
    return tuple(class_names[label] for label in labels)


def _whole(value: float, label: str, row: int) -> int | None:
    """A label of a column of floats, as one has that had gaps once; None for a gap."""
    if math.isnan(value):
        return None
    if not value.is_integer():
        raise Rejected(
            f"{label}: expected text or whole numbers, or lists of them, got {value:g} in row "
            f"{row}: name the column that holds the classes (--label-column)"
        )
    return int(value)


def _index(
    named: Sequence[Sequence[str]], columns: _Columns, *, several: bool
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
    if several:
        check_class_count(classes, examples=len(named))
        return classes, label_matrix(named, classes)
    position = {name: i for i, name in enumerate(classes)}
    return classes, np.array([position[name] for (name,) in named], np.int64)


def _files(
    files: Sequence[pq.ParquetFile], column: str, paths: list[str | None], *, limits: IntakeLimits
) -> Iterator[File]:
    """Each row's image by name; `paths` is filled with what the files were called."""
    for row in (row for file in files for row in _rows(file, [column], IMAGE_ROWS)):
        value = row[column]
        path = value.get("path") if isinstance(value, dict) else None
        data = value.get("bytes") if isinstance(value, dict) else value
        name = f"row {len(paths)}" + (f", {path}" if isinstance(path, str) else "")
        paths.append(path if isinstance(path, str) else None)
        yield File(name, len(data or b""), partial(_checked, name, data, limits))


def _checked(name: str, data: bytes | None, limits: IntakeLimits) -> bytes:
    if data is None:
        raise Rejected(
            f"{shown(name)}: expected the bytes of an image, got none: write those of the file "
            "that its path names, or leave the row out"
        )
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
    names = [path for path in paths if path and is_name(path) and len(path) <= 500]
    if len(set(names)) == len(paths):
        return [tidy(name) for name in names]
    digits = len(str(len(paths) - 1))
    return [f"{i:0{digits}d}" for i in range(len(paths))]
