"""Meanings of labels as they stand in a table: one each image, or several.

A column `labels` holds several, `cat|dog`. In a column `label` that looks as if it held several the
sender has to say so: `label_separator` is what stands between them, or `none`.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from adap.core.config.data import DatasetOptions
from adap.models.header import shown
from adap.worker.intake.columns import plain
from adap.worker.intake.limits import Rejected
from adap.worker.intake.names import tidy
from adap.worker.intake.notes import Notes, listed

Value = str | tuple[str, ...]
"""What a table says of one image: a text, or several where the table itself has lists."""

_SEPARATORS = ("|", ";", ",", "/", " ")
# 0.0, and 1.000e+00 as NumPy writes it; a comma where the table has semicolons between columns
_NUMBER = re.compile(r"-?\d{1,15}(?:[.,]\d{1,30})?(?:e[+-]?\d{1,2})?", re.IGNORECASE)
_EXACT = 2.0**53  # floats below are every whole number
_MAX_LIST = 20_000  # characters
_NO_COMMA = re.compile(r"(['\"])\s+\1")  # between two texts
_NUMBERS = re.compile(r"\[\s*\d+\.?0?(?:\s+\d+\.?0?)+\s*\]")


def read_labels(
    values: Sequence[Value], *, column: str, options: DatasetOptions, notes: Notes
) -> tuple[list[tuple[str, ...]], bool]:
    """The labels of each image, and whether an image may have several.

    Raises Rejected where a text could be one label or several.
    """
    separator = options.label_separator
    if any(isinstance(value, tuple) for value in values):
        _refuse_hot_lists(values, column)
        return [value if isinstance(value, tuple) else (value,) for value in values], True
    texts = [value for value in values if isinstance(value, str)]
    _refuse_hot_lists([_as_list(text) for text in texts], column)
    several = (plain(column) == "labels" or separator is not None) and separator != "none"
    if not several:
        if separator is None:
            _refuse_several(texts, column)
        return [(name,) for name in whole_numbers([tidy(text) for text in texts], notes)], False
    if separator is None:
        _refuse_other_separators(texts, column)
    cuts = separator or "|"
    return [split_labels(text, cuts) for text in texts], True


_PRESENT = frozenset({"1", "1.0", "true"})
_ABSENT = frozenset({"0", "0.0", "false", ""})
_MINUS = frozenset({"-1", "-1.0"})
_HOT = frozenset({"0", "1", "0.0", "1.0", "0.", "1."})


class LabelColumns:
    """Labels from columns of 0 and 1, each of which is a class; or of -1 and 1 alone."""

    def __init__(self, asked: str, columns: Sequence[str], others: Sequence[str | None]) -> None:
        """`asked` is the option, `columns` are those there are, `others` mean something else.

        Raises Rejected for a column that is not there, or means something else.
        """
        free = [name for name in columns if name.strip() and name not in others]
        wanted = free if asked.strip() == "*" else list(map(tidy, asked.split(",")))
        wrong = [name for name in wanted if name not in free]
        if wrong or not wanted or len(set(wanted)) < len(wanted):
            raise Rejected(
                "expected the columns of the classes that were asked for (--label-columns), each "
                f"once, got {listed(wrong or wanted)} among {listed(columns)}"
            )
        self.columns = wanted
        self._seen: set[str] = set()

    def of(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The classes of one row. Raises ValueError where a column says neither 0 nor 1."""
        found = []
        for name in self.columns:
            value = values.get(name)
            text = "" if value is None else str(value).strip().lower()
            if text not in _PRESENT | _ABSENT | _MINUS:
                raise ValueError(f"expected 0 or 1 in the column {shown(name)}, got {shown(text)}")
            self._seen.add(text)
            if text in _PRESENT:
                found.append(name)
        return tuple(found)

    def several(self, labels: Sequence[tuple[str, ...]], notes: Notes) -> bool:
        """Whether an image may have several, after all rows. Rejected where -1 is not clear."""
        if self._seen & _MINUS and self._seen & _ABSENT:
            raise Rejected(
                f"expected 0 or 1 in the columns {listed(self.columns)}, got -1 beside 0 or "
                "nothing: -1 may mean that it is not known; write 0 for what is not there, and "
                "leave out images of which that is not known"
            )
        several = any(len(names) != 1 for names in labels)
        kind = "-1 and 1" if self._seen & _MINUS else "0 and 1"
        told = "any number of labels" if several else "one label"
        notes.step(f"{told} for each image, from {len(self.columns)} columns of {kind}")
        never = sorted(set(self.columns) - {name for names in labels for name in names})
        if never:
            notes.fact(
                "info",
                "empty_classes",
                f"the columns {listed(never)} are never 1, so they are no classes",
                classes=len(never),
            )
        return several


def split_labels(text: str, separator: str = "|") -> tuple[str, ...]:
    """The labels of one image: what stands between separators, or a list as Python writes one."""
    names = _as_list(text)
    if names is None:
        names = text.split(separator) if separator != " " else text.split()
        names = names if text.strip() else []
    return tuple(map(tidy, names))


def whole_numbers(names: list[str], notes: Notes) -> list[str]:
    """`0.0` as `0`, where all are such: a table that had gaps once writes whole numbers so."""
    if all(map(str.isdecimal, names)) or not all(map(_NUMBER.fullmatch, names)):
        return names
    if not all(any(mark in name for mark in ".,eE") for name in names):
        return names
    numbers = [float(name.replace(",", ".")) for name in names]
    if not all(number.is_integer() and abs(number) < _EXACT for number in numbers):
        return names
    notes.step(f"labels such as `{names[0]}` are whole numbers")
    return [str(int(number)) for number in numbers]


def check_text_labels(names: set[str], column: str, options: DatasetOptions) -> None:
    """Raise Rejected for labels in a column of one each that look like several."""
    if options.label_separator is None:
        _refuse_several(sorted(names), column)


def _refuse_hot_lists(values: Sequence[Sequence[str] | None], column: str) -> None:
    """Raise Rejected where each label is a list of 0 and 1, one for each class without its name."""
    lists = [value for value in values if value is not None and not isinstance(value, str)]
    lengths = {len(value) for value in lists}
    if not lists or len(lists) < len(values) or len(lengths) > 1 or min(lengths) < 2:
        return
    if all(item in _HOT for value in lists for item in value):
        raise Rejected(
            f"{column}: expected names of classes, got lists of {min(lengths)} numbers 0 and 1, "
            f"such as [{', '.join(lists[0])}], as if each stood for a class: write the names of "
            "those that are 1, with | between several, or a column for each class "
            "(--label-columns)"
        )


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
    """The items of `['cat', 'dog']`, None for what is no list of texts.

    Also of a tuple or a set, and of an array as NumPy writes it, without commas.
    """
    text = text.strip()
    if text[:1] + text[-1:] not in ("[]", "()", "{}") or len(text) > _MAX_LIST:
        return None
    if _NUMBERS.fullmatch(text):
        return text[1:-1].split()
    try:
        items = ast.literal_eval(_NO_COMMA.sub(r"\1, \1", text))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    if not isinstance(items, list | tuple | set):
        return None
    if not all(isinstance(item, str | int | float) for item in items):
        return None
    return [str(item) for item in (sorted(items, key=str) if isinstance(items, set) else items)]
