"""Lists in pages, sorted and searched; cursors are opaque, so that they may change."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Query
from sqlalchemy import ColumnElement, Select, func, or_, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from adap.api.errors import ApiError, ErrorItem
from adap.api.schemas import Page
from adap.faults import VISIBLE

Limit = Annotated[int, Query(ge=1, le=100, description="items on a page")]
After = Annotated[
    str | None,
    Query(min_length=1, max_length=200, description="`next_cursor` of the page before this one"),
]

Sort = Literal["newest", "oldest", "name"]
SortedBy = Annotated[Sort, Query(description="which come first")]
SortedByAge = Annotated[Literal["newest", "oldest"], Query(description="which come first")]
Search = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=200,
        pattern=VISIBLE,
        description="text that their names have in them",
    ),
]
Start = Annotated[
    int | None,
    Query(
        ge=0,
        le=2**31,
        description="instead of `after`: how many of what fits are passed over",
    ),
]

Match = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=200,
        pattern=VISIBLE,
        description="their whole name, or the start of their id",
    ),
]

Row = TypeVar("Row")
Item = TypeVar("Item")


def matching(
    query: Select[Row],
    id_column: InstrumentedAttribute[str],
    name: ColumnElement[Any] | InstrumentedAttribute[Any],
    match: str | None,
) -> Select[Row]:
    """Only those that are meant by a name or the start of an id."""
    if match is None:
        return query
    return query.where(or_(name == match, id_column.startswith(match, autoescape=True)))


def page(
    session: Session,
    query: Select[Row],
    id_column: InstrumentedAttribute[str],
    *,
    limit: int,
    after: str | None,
    answer: Callable[[Row], Item],
    sort: Sort = "newest",
) -> Page[Item]:
    """One page of rows; ids sort by creation time."""
    return page_of(
        session,
        query,
        id_column,
        limit=limit,
        after=after,
        answers=lambda rows: [answer(row) for row in rows],
        sort=sort,
    )


def page_of(
    session: Session,
    query: Select[Row],
    id_column: InstrumentedAttribute[str],
    *,
    limit: int,
    after: str | None,
    answers: Callable[[Sequence[Row]], list[Item]],
    sort: Sort = "newest",
) -> Page[Item]:
    """The same, where rows are better answered together than one by one."""
    ordered = _ordered(query, id_column, sort, after=None if after is None else read_cursor(after))
    rows = session.scalars(ordered.limit(limit + 1)).all()
    shown = rows[:limit]
    more = len(rows) > limit
    last: Any = shown[-1] if more else None
    return Page(
        data=answers(shown),
        has_more=more,
        next_cursor=make_cursor(last.id) if more else None,
    )


def _ordered(
    query: Select[Row], id_column: InstrumentedAttribute[str], sort: Sort, *, after: str | None
) -> Select[Row]:
    """The rows in this order, those that come after the one of this id."""
    if sort == "newest":
        return (query if after is None else query.where(id_column < after)).order_by(
            id_column.desc()
        )
    if sort == "oldest":
        return (query if after is None else query.where(id_column > after)).order_by(id_column)
    table = id_column.class_
    name = func.lower(table.name)
    if after is not None:
        # among what may be seen: a cursor of somebody else's row is one of no row
        seen = query.with_only_columns(name).where(id_column == after).order_by(None)
        of_last = seen.correlate(None).scalar_subquery()
        query = query.where(tuple_(name, id_column) > tuple_(of_last, after))
    return query.order_by(name, id_column)


def having(query: Select[Row], name: InstrumentedAttribute[str], text: str | None) -> Select[Row]:
    """Those of the rows whose name has this text in it, in capitals or not."""
    return query if text is None else query.where(name.icontains(text, autoescape=True))


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


def read_start(start: int | None, after: str | None) -> int:
    """The place at which a part of a list starts that may be asked for by number or by cursor."""
    if start is None:
        return read_offset(after)
    if after is not None:
        detail = "expected `start` or `after`, got both"
        item = ErrorItem(pointer="/query/start", detail=detail)
        raise ApiError("invalid_request", f"/query/start: {detail}", errors=[item])
    return start


def following(end: int, *, total: int) -> str | None:
    """The cursor of what follows the first `end` of a list; None where nothing does."""
    return make_cursor(str(end)) if end < total else None


def _bad_cursor() -> ApiError:
    detail = "expected a `next_cursor` that this list has given"
    return ApiError(
        "invalid_request",
        f"/query/after: {detail}",
        errors=[ErrorItem(pointer="/query/after", detail=detail)],
    )
