"""Names of classes whose labels are numbers, from a file beside the images.

classes.txt, obj.names        one name a line, from 0 on, or from 1 where nothing else can be
                              meant; or the number before each: `3 cat`, `3: cat`
class_to_idx.json             an object of numbers by name, or of names by number; a list
classes.csv                   a number and a name in each line
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adap.models.header import shown
from adap.worker.intake.archive import AnyArchive
from adap.worker.intake.examples import Example, suffix_of
from adap.worker.intake.limits import Rejected
from adap.worker.intake.lookup import is_picture
from adap.worker.intake.names import label_problem, tidy
from adap.worker.intake.notes import Notes

_MAX_BYTES = 1024**2
_LISTS = (".txt", ".names", ".csv", ".tsv")
_CALLED = re.compile(r"(class(es)?|labels?|names|label_map)([-_]?(names|labels|list|map))?")
_NUMBER = re.compile(r"\d{1,18}")
_NUMBERED = re.compile(r"(\d{1,6})(?:\s*[:=.,;\t]\s*|\s+)(\S.*)")

Names = Mapping[int, str]


def with_names(
    archive: AnyArchive, examples: list[Example], others: Sequence[str], notes: Notes
) -> tuple[list[Example], list[str]]:
    """The examples with the names of their labels, and the file that these are from, if any is.

    others: the files beside the images that have not been read for something else.
    """
    labels = {label for example in examples for label in example.labels}
    if not labels or not all(map(_NUMBER.fullmatch, labels)):
        return examples, []
    numbers = {int(label) for label in labels}
    found: dict[str, Names | list[str]] = {}
    for name in others:
        names = _read(archive, name)
        told = list(names.values()) if isinstance(names, Mapping) else names
        fits = numbers <= names.keys() if isinstance(names, Mapping) else max(numbers) <= len(told)
        sound = len(set(told)) == len(told) and not any(map(label_problem, told))
        if told and fits and sound and not any(map(is_picture, told)):
            found[name] = names
    if len(found) != 1:
        return examples, []
    ((file, names),) = found.items()
    if isinstance(names, list):
        first = int(max(numbers) == len(names) and min(numbers) > 0)  # nothing else can be meant
        if max(numbers) - first >= len(names):
            return examples, []
        notes.step(f"names of the labels from {shown(file)}, whose first line is {first}")
        if min(numbers) > first == 0:
            notes.fact(
                "caution",
                "labels_from_one",
                f"no label is 0, which would be {shown(names[0])}, the first line of "
                f"{shown(file)}: if the labels count from 1, each name is that of the class after "
                "it; write names as labels",
            )
        names = dict(enumerate(names, start=first))
    else:
        notes.step(f"names of the labels by their numbers, from {shown(file)}")
    return [
        replace(example, labels=tuple(names[int(label)] for label in example.labels))
        for example in examples
    ], [file]


def _read(archive: AnyArchive, name: str) -> Names | list[str]:
    """Names by number, or in order; none of a file that is something else."""
    suffix, stem = suffix_of(name), name.rpartition("/")[2].rpartition(".")[0].lower()
    named = suffix in _LISTS and _CALLED.fullmatch(stem)
    if not (named or suffix == ".json") or archive.size(name) > _MAX_BYTES:
        return []
    try:
        text = archive.read(name).decode("utf-8-sig", "replace")
        if suffix == ".json":
            return _of_json(json.loads(text))
    except (Rejected, ValueError, RecursionError):
        return []
    lines = [tidy(line) for line in text.splitlines() if line.strip()]
    if suffix in (".csv", ".tsv"):
        return _of_table(lines)
    cut = [_NUMBERED.fullmatch(line) for line in lines]
    numbered = {int(line[1]): tidy(line[2]) for line in cut if line is not None}
    in_order = [*numbered] in ([*range(len(lines))], [*range(1, len(lines) + 1)])
    return numbered if in_order else lines


def _of_json(value: Any) -> Names | list[str]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return list(map(tidy, value))
    if not isinstance(value, dict):
        return []
    pairs = list(value.items())
    if all(isinstance(item, str) and _NUMBER.fullmatch(str(key)) for key, item in pairs):
        return {int(key): tidy(item) for key, item in pairs}
    if all(type(item) is int for _, item in pairs):
        by_number = {item: tidy(key) for key, item in pairs}
        return by_number if len(by_number) == len(pairs) else []
    return []


def _of_table(lines: Sequence[str]) -> Names:
    """Of two columns, one of which holds numbers below the first line."""
    mark = next((mark for mark in ",;\t" if lines and mark in lines[0]), ",")
    try:
        rows = [row for row in csv.reader(lines, delimiter=mark, strict=True) if row]
    except csv.Error:
        return {}
    if not rows or any(len(row) != 2 for row in rows):
        return {}
    for number, name in ((0, 1), (1, 0)):
        below = rows if _NUMBER.fullmatch(rows[0][number]) else rows[1:]
        if below and all(_NUMBER.fullmatch(row[number]) for row in below):
            named = {int(row[number]): tidy(row[name]) for row in below}
            return named if len(named) == len(below) else {}
    return {}
