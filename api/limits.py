"""Limits of one request: each is a setting, and named where it is exceeded."""

from collections.abc import Iterator
from typing import Any

from adap.api.errors import ApiError, ErrorItem
from adap.store.settings import Settings

LIMITS = {
    "epochs": "max_epochs",
    "steps": "max_attack_steps",
    "queries": "max_attack_queries",
    "restarts": "max_attack_restarts",
}
"""The setting that bounds a field of a request, wherever in it the field stands."""


def check(settings: Settings, content: Any) -> None:
    """Raise ApiError for the fields of a request's JSON that ask for more than is allowed."""
    items = [
        ErrorItem(pointer=f"/body{pointer}", detail=f"expected at most {most} ({name}), got {got}")
        for pointer, setting, got in _found(content, "")
        if got > (most := getattr(settings, setting))
        for name in (f"ADAP_{setting.upper()}",)
    ]
    if items:
        first = items[0]
        raise ApiError("limit_exceeded", f"{first.pointer}: {first.detail}", errors=items)


def _found(value: Any, pointer: str) -> Iterator[tuple[str, str, int]]:
    """Every number below this value that a setting bounds."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _found(item, f"{pointer}/{i}")
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in LIMITS and isinstance(item, int):
                yield f"{pointer}/{key}", LIMITS[key], item
            else:
                yield from _found(item, f"{pointer}/{key}")
