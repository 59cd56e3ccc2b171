"""Meanings of labels as they stand in a table: one each image, or several.

A column `labels` holds several, `cat|dog`. In a column `label` that looks as if it held several the
sender has to say so: `label_separator` is what stands between them, or `none`.
"""

import ast
import re
from collections.abc import Sequence

from adap.core.config import DatasetOptions
from adap.models.header import shown
from adap.worker.intake.limits import Rejected
from adap.worker.intake.names import tidy
from adap.worker.intake.notes import Notes

Value = str | tuple[str, ...]
"""What a table says of one image: a text, or several where the table itself has lists."""

_SEPARATORS = ("|", ";", ",", "/", " ")
_WHOLE = re.compile(r"-?\d+\.0+")
_MAX_LIST = 20_000  # characters


def read_labels(
    values: Sequence[Value], *, column: str, options: DatasetOptions, notes: Notes
) -> tuple[list[tuple[str, ...]], bool]:
    """The labels of each image, and whether an image may have several.

    Raises Rejected where a text could be one label or several.
    """
    separator = options.label_separator
    if any(isinstance(value, tuple) for value in values):
        return [value if isinstance(value, tuple) else (value,) for value in values], True
    texts = [value for value in values if isinstance(value, str)]
    several = (column == "labels" or separator is not None) and separator != "none"
    if not several:
        if separator is None:
            _refuse_several(texts, column)
        return [(name,) for name in whole_numbers([tidy(text) for text in texts], notes)], False
    if separator is None:
        _refuse_other_separators(texts, column)
    cuts = separator or "|"
    return [split_labels(text, cuts) for text in texts], True


def split_labels(text: str, separator: str = "|") -> tuple[str, ...]:
    """The labels of one image: what stands between separators, or a list as Python writes one."""
    names = _as_list(text)
    if names is None:
        names = text.split(separator) if separator != " " else text.split()
        names = names if text.strip() else []
    return tuple(map(tidy, names))


def whole_numbers(names: list[str], notes: Notes) -> list[str]:
    """`0.0` as `0`, where all are such: a table that had gaps once writes whole numbers so."""
    if not names or not all(_WHOLE.fullmatch(name) for name in names):
        return names
    notes.step("labels such as `0.0` are whole numbers")
    return [name.partition(".")[0] for name in names]


def check_text_labels(names: set[str], column: str, options: DatasetOptions) -> None:
    """Raise Rejected for labels in a column of one each that look like several."""
    if options.label_separator is None:
        _refuse_several(sorted(names), column)


def _refuse_several(texts: Sequence[str], column: str) -> None:
    different = set(texts)
    for text in sorted(different):
        if "|" in text or _as_list(text) is not None or _parts_known(text, different):
            cut = next((mark for mark in _SEPARATORS if mark in text), "|")
            cut = "|" if _as_list(text) is not None else cut
            raise Rejected(
                f"{column}: {shown(text)} could be one label or several: say what stands between "
                f"several labels with `label_separator` (--label-separator '{cut}'), or that each "
                "is one label (--label-separator none); or call the column `labels` and write "
                "cat|dog"
            )


def _refuse_other_separators(texts: Sequence[str], column: str) -> None:
    different = set(texts)
    if any("|" in text for text in different):
        return
    for text in sorted(different):
        if _as_list(text) is None and (mark := _part_known(text, different)):
            raise Rejected(
                f"{column}: expected | between several labels, got {shown(text)}: say what stands "
                f"between them with `label_separator` (--label-separator '{mark}'), or that each "
                "is one label (--label-separator none)"
            )


def _part_known(text: str, different: set[str]) -> str | None:
    """What separates the parts of a text of which one is the whole text of another image."""
    for mark in _SEPARATORS:
        parts = [part.strip() for part in text.split(mark)]
        if len(parts) > 1 and any(part in different for part in parts if part):
            return mark
    return None


def _parts_known(text: str, different: set[str]) -> str | None:
    """What separates the parts of a text that all are labels of other images, if anything does."""
    for mark in _SEPARATORS:
        parts = [part.strip() for part in text.split(mark)]
        if len(parts) > 1 and len(set(parts)) == len(parts) and all(p in different for p in parts):
            return mark
    return None


def _as_list(text: str) -> list[str] | None:
    """The items of `['cat', 'dog']` or `["cat"]`, None for what is no list of texts."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")) or len(text) > _MAX_LIST:
        return None
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(items, list) or not all(isinstance(item, str | int) for item in items):
        return None
    return [str(item) for item in items]
