"""Layouts of the field whose labels are not read, recognised to say the way on from each.

Boxes of objects (COCO, YOLO, Pascal VOC), labels in a spreadsheet, in MATLAB's form, in one JSON
object or a list of names, and labels in the names of the images themselves.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from adap.models.header import shown
from adap.worker.intake.archive import AnyArchive
from adap.worker.intake.examples import suffix_of
from adap.worker.intake.limits import Rejected
from adap.worker.intake.names import MAX_NAME_CHARACTERS, tidy
from adap.worker.intake.notes import listed

NAME_MARKS = ("_", "-", ".", " ")
_LOOK_AT = 16 * 1024**2  # bytes of a file that are looked at, if it has no more
_MOST_CLASSES = 1000
_HEAD_LINES = 2  # of a list, as CelebA's have
_WRITE = "write a metadata.csv (file_name,label) beside the images"
_BOXES = (
    "boxes of objects and no label of an image: write a metadata.csv (file_name,labels) with the "
    "classes that each image shows, and | between them"
)
_TELLING = (".json", ".yaml", ".yml", ".xml", ".txt", ".lst", ".pkl", ".pickle", ".db", ".sqlite")
_COUNT = re.compile(r"\d+|\(\d+\)")  # behind a label, in the name of a file
_YOLO_LINE = re.compile(r"\d+( -?(\d+\.?\d*|\.\d+)([eE]-?\d+)?){4,}")


def way_on(archive: AnyArchive, images: Sequence[str], others: Sequence[str]) -> str | None:
    """What the labels of these images seem to be in, and what to do; None where nothing is known.

    images are the names of the images in the archive, others those of the files beside them.
    """
    stems = {_stem(name) for name in images}
    beside = [name for name in others if _stem(name) in stems]
    for ending, name in ((suffix_of(name), name) for name in beside[:1] + list(others)):
        told = _of_file(archive, name, ending, stems, beside=name in beside)
        if told is not None:
            return told
    return _in_names(images)


def one_class_alone(only: str, others: Sequence[str]) -> Rejected:
    """The refusal of folders of one class, with where labels are read from and where not."""
    told = [name for name in others if suffix_of(name) in _TELLING]
    return Rejected(
        f"expected at least two classes, got {shown(only)} alone: a ranking needs negatives; "
        "labels are read from class folders, or from a metadata.csv (file_name,label) beside the "
        "images" + (f", and not from {listed(told)}" if told else "")
    )


def _of_file(
    archive: AnyArchive, name: str, ending: str, stems: set[str], *, beside: bool
) -> str | None:
    """What one file beside the images says of their labels."""
    if ending in (".xlsx", ".xls", ".ods"):
        return f"{shown(name)} is a spreadsheet: save it as metadata.csv beside the images"
    if ending == ".mat":
        return f"{shown(name)} is in MATLAB's form, which is not read: {_WRITE}"
    if ending not in (".json", ".xml", ".txt", ".lst") or archive.size(name) > _LOOK_AT:
        return None
    text = archive.read(name).decode("utf-8-sig", "replace")
    if ending == ".json":
        return _of_json(name, text, stems)
    if ending == ".xml":
        return f"{shown(name)} holds {_BOXES}" if beside and "<annotation" in text else None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if beside and lines and all(map(_YOLO_LINE.fullmatch, lines)):
        return f"{shown(name)} holds {_BOXES}"
    if beside and len(lines) == 1 and len(lines[0]) <= MAX_NAME_CHARACTERS:
        return f"{shown(name)} holds the label of one image, {shown(lines[0])}: {_WRITE}"
    parts = [line.split() for line in lines[:100]]
    told = sum(len(part) > 1 and _stem(part[0]) in stems for part in parts)
    if told > max(0, len(parts) - 1 - _HEAD_LINES):
        return (
            f"{shown(name)} is a list of images and their labels: write it as metadata.csv, commas "
            "between them and the names of the columns in its first line, such as file_name,label"
        )
    return None


def _of_json(name: str, text: str, stems: set[str]) -> str | None:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and {"images", "annotations"} <= value.keys():
        return f"{shown(name)} holds {_BOXES}"
    if isinstance(value, dict) and value and all(_stem(key) in stems for key in value):
        return (
            f"{shown(name)} has a label for each name: write it as metadata.jsonl, one line "
            '{"file_name": "…", "label": "…"} for each image'
        )
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return (
            f"{shown(name)} is one list: write it as metadata.jsonl, each object in a line of its "
            "own, with file_name and label"
        )
    return None


def _in_names(images: Sequence[str]) -> str | None:
    """The option that reads labels from the names of images, where these look like cat_12.jpg."""
    for mark in NAME_MARKS:
        cut = [tidy(_base(name)).rpartition(mark) for name in images]
        labels = Counter(label for label, _, _ in cut if label)
        bare = len(cut) - labels.total()  # as of a test split
        if (
            all(_COUNT.fullmatch(number) for _, _, number in cut)
            and 1 < len(labels) <= _MOST_CLASSES
            and min(labels.values()) > 1
            and 2 * bare < len(cut)
        ):
            without = f", and leave the {bare:,} without one out" if bare else ""
            return (
                f"the names of the images look like labels with a number ({listed(sorted(labels))})"
                f": if they are, send `label_in_name` (--label-in-name '{mark}'){without}"
            )
    return None


def _base(name: str) -> str:
    """`cat.0` of `train/cat.0.jpg`."""
    base = name.replace("\\", "/").rpartition("/")[2]
    return base.rpartition(".")[0] or base


def _stem(name: str) -> str:
    """What an image and the file that tells of it have in common."""
    base = name.replace("\\", "/").rpartition("/")[2].lower()
    return base.rpartition(".")[0] or base
