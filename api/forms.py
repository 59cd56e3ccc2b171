"""Forms and queries: each field once, and texts that say what lists and objects say in JSON."""

import json
from collections import Counter
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any, TypedDict, get_args, get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant
from pydantic import BaseModel, BeforeValidator
from starlette.requests import ClientDisconnect

from adap import faults
from adap.api import bodies
from adap.api.errors import MAX_ITEMS, ApiError, ErrorItem

MAX_TEXT = 60_000  # characters of the longest text of a form: a thousand names of a usual length


class FormLimits(TypedDict):
    """Of a form: how many files and other fields, and how many bytes each of these may have."""

    max_files: int
    max_fields: int
    max_part_size: int


# one file more than is taken, so that of two the one too many is told by its name
FORM_LIMITS: FormLimits = {"max_files": 2, "max_fields": 64, "max_part_size": 4 * MAX_TEXT}
LISTS_LIMITS: FormLimits = {**FORM_LIMITS, "max_fields": 1064}  # a thousand classes to score by


def lists_of(kind: type[BaseModel]) -> frozenset[str]:
    """The fields of a form that may come several times."""
    return frozenset(
        field.alias or name
        for name, field in kind.model_fields.items()
        if any(get_origin(one) is list for one in (field.annotation, *get_args(field.annotation)))
    )


def lists_of_route(dependant: Dependant) -> frozenset[str]:
    """The same, of the form that a route takes as one value; none of a few single fields."""
    kinds = [param.field_info.annotation for param in dependant.body_params]
    return frozenset[str]().union(
        *(
            lists_of(kind)
            for kind in kinds
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        )
    )


def refuse_twice(items: Iterable[tuple[str, Any]], *, lists: Collection[str]) -> None:
    """Raise ApiError for a field that came twice: of two, one reader takes the first."""
    counts = Counter(name for name, _ in items)
    twice = [name for name, count in counts.items() if count > 1 and name not in lists]
    faulty = [
        ErrorItem(
            pointer=f"/body/{faults.shown(name)[1:-1]}",
            detail=f"expected the field once, got it {counts[name]} times",
        )
        for name in twice[:MAX_ITEMS]
    ]
    if faulty:
        first = faulty[0]
        raise ApiError("invalid_request", f"{first.pointer}: {first.detail}", errors=faulty)


async def require_once(request: Request, *, lists: Collection[str]) -> None:
    """Read a form, which the request keeps for whoever asks next, and refuse fields of two values.

    Raises ApiError, and gives back then what the form stored; HTTPException for more than any form
    of the route may have, which ends the reading.
    """
    try:
        form = await request.form(**(LISTS_LIMITS if lists else FORM_LIMITS))
    except ClientDisconnect as error:
        raise ApiError("bad_request", "Expected a whole body; the connection broke.") from error
    try:
        refuse_twice(form.multi_items(), lists=lists)
    except ApiError:
        await form.close()
        raise


def class_names(text: str, *, pointer: str, separator: str | None) -> list[str]:
    """The names of classes in a text: a JSON list, or one name, or several between separators.

    A text that begins as a list, an object or a quoted text is JSON and nothing else, as who writes
    `["cat"]` means no class with brackets in its name.

    pointer: where the text stands.
    """
    text = text.strip()
    if not text.startswith(("[", "{", '"')):
        return [text] if separator is None else [name.strip() for name in text.split(separator)]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        several = "once for each" if separator is None else f"with {separator!r} between several"
        raise ApiError(
            "invalid_request",
            f"{pointer}: expected names of classes as they are, {several}, or as a JSON list "
            f'such as ["cat", "dog"], got {faults.shown(text)}',
        )
    return names


def several_classes(pointer: str) -> BeforeValidator:
    """Reads a field that may come several times: each time a name, or a JSON list of names."""
    return BeforeValidator(partial(_all_named, pointer=pointer))


def _all_named(values: Any, *, pointer: str) -> Any:
    if not isinstance(values, list):
        return values
    return [
        name
        for value in values
        for name in (
            class_names(value, pointer=pointer, separator=None)
            if isinstance(value, str)
            else [value]
        )
    ]


def json_of(text: str, *, field: str) -> Any:
    """The value of a field that is JSON. Raises ApiError as for a whole body."""
    return bodies.parse(text.encode(), pointer=f"/body/{field}")
