"""Bodies in JSON: how much one may hold, and reading it; what is long is read off the event loop.

What a body may hold is counted in its bytes before anything is made of them: a name needs a colon,
a value a comma or a bracket. So neither the reading, nor the checking of fields, nor the list of
faults can be made long by what is sent.
"""

import json
from collections import Counter
from typing import Any, NoReturn

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from adap.api.errors import ApiError

SHORT_BYTES = 64 * 1024  # of a body that is read in less time than a thread takes to start
MAX_NAMES = 2000
MAX_VALUES = 20_000
MAX_DEPTH = 64


def check_size(
    body: bytes, *, most_values: int | None = MAX_VALUES, pointer: str = "/body"
) -> None:
    """Raise ApiError for a body that holds too much. Signs within text count too."""
    names, values = body.count(b":"), body.count(b",")
    nested = body.count(b"[") + body.count(b"{")
    if names > MAX_NAMES:
        raise _too_much(f"at most {MAX_NAMES} names of fields, got {names}", pointer)
    if most_values is not None and values + nested > most_values:
        raise _too_much(f"at most {most_values} values, got {values + nested}", pointer)


def parse(body: bytes, *, pointer: str = "/body") -> Any:
    """The value of a body. ApiError for what is no JSON (RFC 8259), or too much of it.

    pointer: where it stands, if it is the text of a field.
    """
    check_size(body, pointer=pointer)
    try:
        value = json.loads(body, parse_constant=_no_number, object_pairs_hook=_no_name_twice)
        _check_depth(value)
    except (ValueError, RecursionError) as error:  # of numbers with thousands of digits, too
        raise ApiError(
            "invalid_request", f"{pointer}: expected JSON, got {error!s:.200}"
        ) from error
    return value


async def replace(request: Request) -> None:
    """Have FastAPI find the value of a body that was read here, where there is a body at all."""
    if await _body(request):
        request._json = await read(request)  # where Request.json() keeps what it has read


async def read(request: Request) -> Any:
    """The value of the body of a request; what is long is read in a thread."""
    body = await _body(request)
    return parse(body) if len(body) <= SHORT_BYTES else await run_in_threadpool(parse, body)


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise ApiError("bad_request", "Expected a whole body; the connection broke.") from error


def is_json(content_type: str) -> bool:
    """Whether a body of this content type is JSON."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(f"values that are nested more than {MAX_DEPTH} deep")


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {twice[:50]!r} twice in one object")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no number of JSON: numbers are finite")


def _too_much(expected: str, pointer: str) -> ApiError:
    return ApiError("invalid_request", f"{pointer}: expected {expected}.")
