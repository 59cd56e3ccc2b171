"""A ranking as files: NDJSON, CSV and Parquet, with the same rows in the same order.

Names come from strangers. In CSV, which spreadsheets open, a text that they would run as a formula
(it begins with = + - @, a tab or a line break) gets an apostrophe before it, as OWASP advises:
https://owasp.org/www-community/attacks/CSV_Injection. Numbers are written as they are; NDJSON and
Parquet hold every text unchanged.
"""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]

SCHEMA = pa.schema(
    [
        pa.field("rank", pa.int64(), nullable=False),
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("positive", pa.bool_()),  # null where the ranking has no task
    ]
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_ndjson(rows: Sequence[Row], path: Path) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """RFC 4180 with a header, in UTF-8; a cell is empty where there is no value."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, SCHEMA.names)
        table.writeheader()
        table.writerows({name: _cell(row.get(name)) for name in SCHEMA.names} for row in rows)


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """One table with the columns of `SCHEMA`."""
    pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), path)


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


WRITERS: dict[str, Callable[[Sequence[Row], Path], None]] = {
    "ndjson": write_ndjson,
    "csv": write_csv,
    "parquet": write_parquet,
}
