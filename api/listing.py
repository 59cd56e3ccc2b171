"""Lists in pages: opaque cursors, so that the order may change without breaking a client."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from adap.api.errors import ApiError, ErrorItem
from adap.api.schemas import Page

Limit = Annotated[int, Query(ge=1, le=100, description="items on a page")]
After = Annotated[
    str | None,
    Query(min_length=1, max_length=200, description="`next_cursor` of the page before this one"),
]

Row = TypeVar("Row")
Item = TypeVar("Item")


def page(
    session: Session,
    query: Select[Row],
    id_column: InstrumentedAttribute[str],
    *,
    limit: int,
    after: str | None,
    answer: Callable[[Row], Item],
) -> Page[Item]:
    """One page of rows, newest first; ids sort by creation time."""
    return page_of(
        session,
        query,
        id_column,
        limit=limit,
        after=after,
        answers=lambda rows: [answer(row) for row in rows],
    )


def page_of(
    session: Session,
    query: Select[Row],
    id_column: InstrumentedAttribute[str],
    *,
    limit: int,
    after: str | None,
    answers: Callable[[Sequence[Row]], list[Item]],
) -> Page[Item]:
    """The same, where rows are better answered together than one by one."""
    if after is not None:
        query = query.where(id_column < read_cursor(after))
    rows = session.scalars(query.order_by(id_column.desc()).limit(limit + 1)).all()
    shown = rows[:limit]
    more = len(rows) > limit
    last: Any = shown[-1] if more else None
    return Page(
        data=answers(shown),
        has_more=more,
        next_cursor=make_cursor(last.id) if more else None,
    )


def make_cursor(position: str) -> str:
    """A cursor that a client has no reason to look into."""
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> str:
    """The position that a cursor stands for. ApiError if it is none of ours."""
    try:
        return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise _bad_cursor() from error


def read_offset(cursor: str | None) -> int:
    """The line at which a page of a stored file starts."""
    if cursor is None:
        return 0
    position = read_cursor(cursor)
    if not position.isascii() or not position.isdigit() or len(position) > 12:
        raise _bad_cursor()
    return int(position)


def _bad_cursor() -> ApiError:
    detail = "expected a `next_cursor` that this list has given"
    return ApiError(
        "invalid_request",
        f"/query/after: {detail}",
        errors=[ErrorItem(pointer="/query/after", detail=detail)],
    )
