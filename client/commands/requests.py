"""From the options of a command line to the JSON of a request."""

import json as json_
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import typer

from adap.client.client import Json


def build_request(file: Path | None, options: Json, assignments: Sequence[str] | None) -> Json:
    """A request: what the file says, changed by options, changed by `--set`."""
    request: Any = {} if file is None else parse_json(file.read_text(), option="--config")
    if not isinstance(request, dict):
        raise typer.BadParameter("expected a JSON object", param_hint="--config")
    request |= without_none(options)
    for assignment in assignments or []:
        path, equals, text = assignment.partition("=")
        if not equals or not all(path.split(".")):
            raise typer.BadParameter(f"expected PATH=VALUE, got {assignment!r}", param_hint="--set")
        _assign(request, path.split("."), value_of(text), path)
    return dict(request)


def _assign(target: Any, path: list[str], value: Any, whole: str) -> None:
    """Set one field deep inside; a bare name on the way becomes the entry of that name."""
    key: Any = path[0]
    if isinstance(target, list):
        if not key.isdecimal() or int(key) >= len(target):
            raise typer.BadParameter(
                f"expected an index below {len(target)} in {whole}, got {key!r}",
                param_hint="--set",
            )
        key = int(key)
    if len(path) == 1:
        target[key] = value
        return
    inner = target[key] if isinstance(target, list) else target.setdefault(key, {})
    if isinstance(inner, str):  # {"method": "ce"} and {"method": {"name": "ce"}} mean the same
        inner = target[key] = {"name": inner}
    if not isinstance(inner, dict | list):
        raise typer.BadParameter(
            f"{whole} leads through {key!r}, which is {inner!r}", param_hint="--set"
        )
    _assign(inner, path[1:], value, whole)


def value_of(text: str) -> Any:
    """A JSON value, or else the text itself."""
    try:
        return json_.loads(text)
    except ValueError:
        return text


def task(positive: list[str] | None, *, each: bool = False) -> Json | None:
    if each and positive:
        raise typer.BadParameter("expected --each or --positive, got both", param_hint="--each")
    if each:
        return {"each": True}
    return {"positive": positive} if positive else None


def number(text: str) -> float:
    """A number, also written as a fraction."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(
            f"expected a number such as 0.03 or 8/255, got {text!r}", param_hint="--epsilon"
        ) from error


def parse_json(text: str | bytes, *, option: str) -> Any:
    """A value of JSON in UTF-8. Raises BadParameter for what is none."""
    try:
        return json_.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"expected JSON: {error}", param_hint=option) from error


def without_none(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def corruptions(kinds: list[str] | None, severities: list[int] | None) -> dict[str, Any] | None:
    """What `--corruption` and `--severity` ask for; the service knows which there are."""
    if not kinds and not severities:
        return None
    if kinds == ["all"]:
        kinds = None
    found: dict[str, Any] = {} if not kinds else {"kinds": kinds}
    return found if not severities else {**found, "severities": sorted(severities)}
