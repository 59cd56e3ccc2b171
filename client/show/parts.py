"""What tables of every noun are made of: rows, facts, figures, times."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from adap.client.client import Json

STYLES = {
    "ready": "green",
    "succeeded": "green",
    "rejected": "red",
    "failed": "red",
    "cancelled": "yellow",
    "cancelling": "yellow",
    "running": "cyan",
    "validating": "cyan",
    "trustworthy": "green",
    "caution": "yellow",
    "not trustworthy": "red",
}

REQUEST_COLUMNS = 85  # beside the names of facts, within 100
LEVELS = ("not trustworthy", "caution", "trustworthy")  # as thresholds on trust count them


def table(*columns: str, rows: Iterable[Sequence[Any]], right: Sequence[str] = ()) -> Table:
    """A plain table: no lines, values as they are. `right` names the columns of numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column.lower() in ("id", "model", "data set", "job"),
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(_plain(cell)) for cell in row))
    return made


def facts(pairs: Iterable[tuple[str, Any]]) -> Table:
    """Names and values, one a line; without a value no line."""
    made = Table.grid(padding=(0, 3, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column()
    for name, value in pairs:
        if value not in (None, "", [], {}):
            made.add_row(name, value if isinstance(value, Text) else Text(_plain(value)))
    return made


def status(value: str) -> Text:
    """A status in its colour."""
    return Text(value, style=STYLES.get(value, ""))


def when(timestamp: str | None) -> str:
    """A time of the service in this machine's time zone."""
    if timestamp is None:
        return ""
    return datetime.fromisoformat(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(count: int) -> str:
    """A number of bytes."""
    for unit, word in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {word}"
    return f"{count} B"


def figure(value: float | None) -> str:
    """A figure with the digits that mean something."""
    return "" if value is None else f"{value:.4f}"


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def name_list(values: Sequence[str] | None) -> str:
    return ", ".join(values or [])


def value_list(values: Json | None) -> str:
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in (values or {}).items()
        if value is not None
    )


def all_digits(value: Any) -> str:
    """A figure with all its digits, or whatever stands in its place."""
    if isinstance(value, dict):
        return value_list(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def interval_text(value: Json | None) -> str:
    return "" if value is None else f"{value['low']:.3f} to {value['high']:.3f}"
