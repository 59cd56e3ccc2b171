"""The database: one engine, short transactions, and the database's own clock.

`reading()` and `writing()` are the only ways to a session; each is one transaction. On SQLite a
writing transaction takes the write lock at its start, so it waits for another writer instead of
failing in the middle.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from time import monotonic
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Double, Engine, Select, bindparam, create_engine, event, select
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.expression import FunctionElement

from adap.store.settings import Settings

# An option of statements that PostgreSQL may keep prepared, as it can plan them as well for values
# that it does not know: inserts, and those that find one row by its key.
BY_KEY = {"by_key": True}

# An option of transactions that go through whole tables while nobody waits for them: PostgreSQL may
# take ten minutes over an answer.
UNHURRIED = {"limit_s": 600.0}


class now(FunctionElement[float]):  # noqa: N801 - reads as a SQL function
    """Seconds since the epoch on the database's clock, the only clock that leases are held by."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(*_: Any, **__: Any) -> str:
    # clock_timestamp moves on inside a transaction, as SQLite's clock does
    return "extract(epoch from clock_timestamp())::double precision"


Row = TypeVar("Row")


def row_by_id(session: Session, table: type[Row], row_id: str) -> Row | None:
    """The row of this id, as `session.get` finds it in twice the time."""
    found: Row | None = session.scalar(_by_id(cast(Any, table)), {"row_id": row_id})
    return found


@cache  # to build a statement takes longer than to run it
def _by_id(table: Any) -> Select[Any]:
    return select(table).where(table.id == bindparam("row_id"))


class Database:
    """Sessions on the database of the settings."""

    def __init__(self, settings: Settings) -> None:
        self.engine = _engine(settings)
        self._wait_s = settings.database_wait_s
        # SQLite has one writer, and a second one polls for its turn: within a process it waits here
        self._turn = Lock() if self.engine.dialect.name == "sqlite" else None

    @contextmanager
    def reading(self, **options: Any) -> Iterator[Session]:
        """One transaction that sees a consistent state and writes nothing."""
        with self._session(sqlite_begin="BEGIN", **options) as session:
            yield session

    @contextmanager
    def snapshot(self, **options: Any) -> Iterator[Session]:
        """The same for many statements, which all see the state of the first."""
        if self.engine.dialect.name == "postgresql":
            options["isolation_level"] = "REPEATABLE READ"
        with self._session(sqlite_begin="BEGIN", **options) as session:
            yield session

    @contextmanager
    def writing(self, **options: Any) -> Iterator[Session]:
        """One transaction, committed at the end, rolled back on any error."""
        if self._turn is None:
            with self._session(**options) as session:
                yield session
            return
        asked_at = monotonic()
        if not self._turn.acquire(timeout=self._wait_s):
            raise _held(self._wait_s)
        try:
            # one clock for both: this process's other writers, and other processes
            left_s = max(0.0, self._wait_s - (monotonic() - asked_at))
            with self._session(sqlite_begin="BEGIN IMMEDIATE", sqlite_wait_s=left_s, **options) as (
                session
            ):
                yield session
        finally:
            self._turn.release()

    @contextmanager
    def _session(self, **options: Any) -> Iterator[Session]:
        with (
            self.engine.connect().execution_options(**options) as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _held(wait_s: float) -> OperationalError:
    """What a writer meets that has waited for its turn in vain, as SQLite itself would say it."""
    said = sqlite3.OperationalError(
        f"database is locked: another process or writer has held it for {wait_s:g} s"
    )
    return OperationalError("BEGIN IMMEDIATE", None, said)


def _engine(settings: Settings) -> Engine:
    url = settings.database
    if url.startswith("sqlite"):
        return _sqlite(url, wait_s=settings.database_wait_s)
    from adap.store import postgres  # its packages are an extra

    return postgres.engine(url, limit_s=settings.database_limit_s)


def _sqlite(url: str, *, wait_s: float) -> Engine:
    engine = create_engine(
        url, pool_size=20, connect_args={"timeout": wait_s, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "handle_error")
    def _tell_apart(context: ExceptionContext) -> None:
        # SQLite's error of a table or column that is not there is no sign that it is away: it gets
        # the class that PostgreSQL's has
        said = context.original_exception
        if getattr(said, "sqlite_errorname", None) == "SQLITE_ERROR":
            raise ProgrammingError(context.statement, None, said) from said

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        left_s = options.get("sqlite_wait_s", wait_s)
        connection.exec_driver_sql(f"PRAGMA busy_timeout={round(1000 * left_s)}")
        connection.exec_driver_sql(options.get("sqlite_begin", "BEGIN IMMEDIATE"))

    return engine
