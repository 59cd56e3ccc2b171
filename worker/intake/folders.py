"""Which class, split and group each image of a zip belongs to: by folders, or by metadata.csv.

    cat/0001.png                  class folders, as torchvision's ImageFolder
    train/cat/0001.png            class folders inside split folders
    metadata.csv                  file_name,label[,split][,group], columns in any order, as Hugging
    images/0001.png               Face's imagefolder; where it is there, it alone decides

With a column `labels` instead of `label` an image may have any number of classes: `cat|dog`, or
nothing for none of them.

All of it may lie in one more folder. A class folder may have folders of its own.
"""

import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adap.core.config import SPLITS
from adap.models.header import shown
from adap.worker.intake.archive import Archive
from adap.worker.intake.limits import Reasons, Rejected

METADATA = "metadata.csv"
MAX_NAME_CHARACTERS = 200  # of a class or a group

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

_NOTES = (".txt", ".md")  # what people write beside a data set
_COLUMNS = {"file_name", "label", "labels", "split", "group"}


@dataclass(frozen=True)
class Example:
    """One image of the archive and what is known of it."""

    name: str  # in the archive
    example_id: str  # the same without the folder that wraps everything
    labels: tuple[str, ...]
    split: str | None
    group: str | None = None


def arrange(archive: Archive) -> tuple[list[Example], bool]:
    """The examples of a zip of images, sorted by name, and whether each may have several labels.

    Raises Rejected where that is not clear.
    """
    names = [name for name in archive.names if not _is_note(name)]
    tables = [name for name in names if name.split("/")[-1] == METADATA]
    if not tables:
        if not names:
            raise Rejected("expected images in class folders, got an archive without any")
        return _by_folders(names), False
    if len(tables) > 1 or tables[0].count("/") > 1:
        listed = ", ".join(shown(name) for name in tables[:5])
        raise Rejected(f"expected one {METADATA} beside the folders of images, got {listed}")
    names.remove(tables[0])
    return _by_metadata(names, tables[0], archive.read(tables[0]))


def label_problem(label: str) -> str | None:
    """Why this cannot be the name of a class, if it cannot."""
    return _name_problem("label", label)


def labels_problem(labels: Sequence[str]) -> str | None:
    """Why these cannot be the labels of one image, if they cannot."""
    if len(set(labels)) < len(labels):
        return f"expected each label once, got {shown('|'.join(labels))}"
    return next(filter(None, map(label_problem, labels)), None)


def split_labels(text: str) -> tuple[str, ...]:
    """The labels of one image, which stand with | between them."""
    return tuple(map(tidy, text.split("|"))) if text.strip() else ()


def tidy(text: str) -> str:
    """A name without space around it, in Unicode NFC."""
    return unicodedata.normalize("NFC", text.strip())


def group_problem(group: str) -> str | None:
    """Why this cannot be the name of a group, if it cannot."""
    return _name_problem("group", group)


def split_problem(split: str) -> str | None:
    """Why this cannot be the name of a split, if it cannot."""
    if split.lower() in SPLIT_NAMES:
        return None
    return f"expected a split among {', '.join(SPLITS)}, got {shown(split)}"


def _name_problem(kind: str, name: str) -> str | None:
    if name and name.isprintable() and len(name) <= MAX_NAME_CHARACTERS:
        return None
    return (
        f"expected a {kind} of 1 to {MAX_NAME_CHARACTERS} printable characters, got {shown(name)}"
    )


def _is_note(name: str) -> bool:
    base = name.split("/")[-1]
    return base.lower().endswith(_NOTES) or base.upper() in ("README", "LICENSE")


def _by_folders(names: Sequence[str]) -> list[Example]:
    paths = [name.split("/") for name in names]
    while _is_wrapped(paths):
        paths = [path[1:] for path in paths]
    tops = {path[0] for path in paths if len(path) > 1}
    splits = {top for top in tops if top.lower() in SPLIT_NAMES}
    has_splits = bool(splits) and any(len(path) > 2 for path in paths if path[0] in splits)
    reasons = Reasons()
    if has_splits:
        for other in sorted(tops - splits):
            reasons.add(
                f"expected only split folders beside {shown(min(splits))}, got {shown(other)}"
            )
    elif splits and splits == tops:
        raise Rejected(
            f"expected class folders inside {shown(min(splits))}, got images directly in it"
        )
    depth = 3 if has_splits else 2
    examples = []
    for name, path in zip(names, paths, strict=True):
        if len(path) < depth:
            where = "class folders inside the split folders" if has_splits else "class folders"
            reasons.add(f"{shown(name)}: expected images in {where}, got one outside")
            continue
        label = path[depth - 2]
        problem = label_problem(label)
        if problem:
            reasons.add(f"{shown(name)}: {problem}")
        split = SPLIT_NAMES.get(path[0].lower()) if has_splits else None
        examples.append(Example(name, "/".join(path), (label,), split))
    reasons.settle()
    return examples


def _is_wrapped(paths: Sequence[Sequence[str]]) -> bool:
    """Whether all lies in one folder that is neither a split nor, without more inside, a class."""
    first = paths[0][0]
    return first.lower() not in SPLIT_NAMES and all(
        len(path) > 2 and path[0] == first for path in paths
    )


def _by_metadata(names: Sequence[str], table: str, content: bytes) -> tuple[list[Example], bool]:
    root = table.removesuffix(METADATA)
    missing = {name.removeprefix(root): name for name in names}  # images without a line so far
    reasons = Reasons()
    examples = []
    multilabel = False
    for line, row in _rows(content, reasons):
        file_name = unicodedata.normalize("NFC", row["file_name"])
        multilabel = "labels" in row
        labels = split_labels(row["labels"]) if multilabel else (tidy(row["label"]),)
        split = row["split"].strip() if "split" in row else None
        group = tidy(row["group"]) if "group" in row else None
        name = missing.pop(file_name, None)
        problem = (
            f"expected the name of an image, once, got {shown(file_name)}"
            if name is None
            else labels_problem(labels)
            or (split_problem(split) if split is not None else None)
            or (group_problem(group) if group is not None else None)
        )
        if problem or name is None:
            reasons.add(f"{METADATA}, line {line}: {problem}")
            continue
        split = None if split is None else SPLIT_NAMES[split.lower()]
        examples.append(Example(name, file_name, labels, split, group))
    for name in missing.values():
        reasons.add(f"{shown(name)}: expected a line with its label in {METADATA}, got none")
    reasons.settle()
    return sorted(examples, key=lambda example: example.name), multilabel


def _rows(content: bytes, reasons: Reasons) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of the table by column, each with the number of its (last) line."""
    reader = csv.reader(io.StringIO(_text(content), newline=""), strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if header is None:
                header = row
                if not _is_header(header):
                    break
            elif row and len(row) != len(header):
                reasons.add(
                    f"{METADATA}, line {reader.line_num}: expected {len(header)} values, "
                    f"got {len(row)}"
                )
            elif row:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise Rejected(f"{METADATA}, line {reader.line_num}: expected CSV, got {error}") from error
    if header is None or not _is_header(header):
        raise Rejected(
            f"{METADATA}: expected the columns file_name,label[,split][,group] in any order "
            "(labels instead of label where an image may have several), "
            f"got {shown(','.join(header or []))}"
        )


def _is_header(columns: Sequence[str]) -> bool:
    """Whether these are the columns of a table: all that is needed, nothing unknown or twice."""
    names = set(columns)
    one_kind = len(names & {"label", "labels"}) == 1
    return "file_name" in names <= _COLUMNS and one_kind and len(names) == len(columns)


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Rejected(f"{METADATA}: expected UTF-8, got {error}") from error
