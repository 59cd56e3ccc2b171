"""The rows of a table as it lies in an archive: CSV of any separator, or JSON Lines."""

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from adap.models.header import shown
from adap.worker.intake.examples import suffix_of
from adap.worker.intake.labels import Value
from adap.worker.intake.limits import Reasons, Rejected
from adap.worker.intake.names import tidy

_MARKS = ",;\t"
_DECLARED = re.compile(r'"?sep=([,;\t|])"?\r?\n', re.IGNORECASE)  # the first line that Excel writes

Row = tuple[str, dict[str, Value | None]]
"""Where a row stands (its table, and the number of its last line), and its values by column."""


def rows_of(content: bytes, table: str, reasons: Reasons) -> Iterator[Row]:
    """The rows of a table in turn. What is wrong with one is a reason; Rejected for the whole."""
    text = _text(content, table)
    if suffix_of(table) in (".jsonl", ".ndjson"):
        yield from _json_rows(text, table, reasons)
    else:
        yield from _csv_rows(text, table, reasons)


def json_value(value: Any) -> Value | None:
    """A text, several, or None; a number is named by its digits, what is nested by none."""
    if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
        return tuple(tidy(str(int(item) if isinstance(item, bool) else item)) for item in value)
    if isinstance(value, bool):
        return str(int(value))
    return str(value) if isinstance(value, str | int | float) else None


def _csv_rows(text: str, table: str, reasons: Reasons) -> Iterator[Row]:
    text = text.lstrip("\r\n")
    if declared := _DECLARED.match(text):
        text = text[declared.end() :]
    first = text.lstrip().partition("\n")[0]
    mark = declared[1] if declared else max(_MARKS, key=first.count)
    if mark not in first and "|" in first:
        mark = "|"
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=mark)
    header: list[str] | None = None
    try:
        for row in reader:
            where = f"{table}, line {reader.line_num}"
            if not row or (header is not None and not any(row)):
                continue
            if header is None:
                header = [tidy(name) for name in row]
                if len(set(header)) < len(header):
                    raise Rejected(
                        f"{table}: expected each column once, got {shown(','.join(header))}"
                    )
            elif len(header) == 1 < len(row):
                raise Rejected(
                    f"{table}: expected the names of the columns in the first line, such as "
                    f"file_name,label, got {shown(header[0])} above lines of {len(row)} values"
                )
            elif len(row) != len(header):
                reasons.add(
                    f"{where}: expected {len(header)} values, got {len(row)}: write a value with "
                    f"{shown(mark)} in it in quotes"
                )
            else:
                yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise Rejected(f"{table}, line {reader.line_num}: expected CSV, got {error}") from error


def _json_rows(text: str, table: str, reasons: Reasons) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{table}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            reasons.add(f"{where}: expected a JSON object, got {shown(line[:100])}")
            continue
        yield where, {tidy(str(key)): json_value(value) for key, value in row.items()}


def _text(content: bytes, table: str) -> str:
    code = "utf-8-sig"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # as Excel writes "Unicode text"
        code = "utf-16"
    elif b"\0" in content[:2]:  # the same without its mark: one byte of each letter is 0
        code = "utf-16-be" if content[0] == 0 else "utf-16-le"
    try:
        return content.decode(code)
    except UnicodeDecodeError as error:
        raise Rejected(f"{table}: expected UTF-8, got {error}: save it as UTF-8") from error
