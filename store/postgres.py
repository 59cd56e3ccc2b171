"""PostgreSQL: an engine whose connections do not wait for ever.

A server may be there and say nothing: it is frozen, its disk hangs, or the network drops what it
sends. So an answer is waited for up to a limit, then the connection is closed. Where no other
connection of the process was answered meanwhile the server counts as silent until it takes a new
one: the pool is emptied, one caller at a time tries to connect, and all others fail at once, as
else those that queue for a thread would each wait for the limit in their turn.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from select import POLLIN, poll
from threading import Lock
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.errors import ConnectionTimeout, _WaitTimeout
from psycopg.pq import PGconn, Ping
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError

CONNECTIONS = 20  # kept open, once they were needed
IDLE_S = 10.0  # a connection that was idle for longer is tried before it is used

Answer = TypeVar("Answer")


class SilentError(psycopg.OperationalError):
    """The server does not answer; the connection is closed."""


class Server:
    """Whether the server answers, as all connections of this process find together."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.silent = False
        self._answered_at = 0.0
        self._trying = Lock()

    def answered(self) -> None:
        """A statement was."""
        self._answered_at = monotonic()

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Within the block it is waited for an answer."""
        since = monotonic()
        try:
            yield
        except (_WaitTimeout, ConnectionTimeout) as error:
            self.silent = self.silent or self._answered_at < since
            waited = f"PostgreSQL did not answer within {monotonic() - since:.1f} s."
            raise SilentError(waited) from error

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """Within the block a connection is made; raises SilentError while somebody else tries."""
        turn = self.silent
        if turn and not self._trying.acquire(blocking=False):
            raise SilentError("PostgreSQL does not answer, and is being tried.")
        try:
            with self.asked():
                yield
            self.silent = False
        finally:
            if turn:
                self._trying.release()


class Connection(psycopg.Connection[Any]):
    """A connection that is closed when its server is silent for too long."""

    server: Server
    limit_s: float | None = None

    def wait(
        self, gen: PQGen[Answer], interval: float = 0.1, timeout: float | None = None
    ) -> Answer:
        """The answer that a generator of psycopg waits for, within the connection's limit."""
        try:
            with self.server.asked():
                return super().wait(gen, interval, self.limit_s if timeout is None else timeout)
        except SilentError:
            self.close()
            raise


def takes_connections(engine: Engine, *, limit_s: float) -> bool:
    """Whether its server runs and is ready, whoever asks: a wrong password does not matter.

    libpq tells no code of what a server says while a connection is made, but asks this itself.
    """
    _, parameters = engine.dialect.create_connect_args(engine.url)
    wanted = {**parameters, "connect_timeout": math.ceil(limit_s)}
    del wanted["context"]  # SQLAlchemy's, for psycopg alone
    return PGconn.ping(make_conninfo(**wanted).encode()) == Ping.OK


def engine(url: str, *, limit_s: float) -> Engine:
    """An engine on a PostgreSQL server.

    limit_s: seconds for each answer. Statements whose execution option `limit_s` is None may take
    as long as they take.
    """
    server = Server(limit_s)
    made = create_engine(
        url,
        pool_size=CONNECTIONS,
        # No statement is prepared because it ran often: PostgreSQL would then plan it for values
        # that it does not know, and walk through the whole queue.
        connect_args={"connect_timeout": math.ceil(limit_s), "prepare_threshold": sys.maxsize},
    )

    @event.listens_for(made, "do_connect")
    def _connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> Connection:
        with server.connecting():
            connection = Connection.connect(*arguments, **options)
        connection.server, connection.limit_s = server, limit_s
        return connection

    @event.listens_for(made, "do_execute")
    def _execute(cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        options = context.execution_options
        cursor.connection.limit_s = options.get("limit_s", limit_s)
        kept = {"prepare": True} if options.get("by_key") else {}  # cursors of streams take none
        cursor.execute(statement, parameters, **kept)
        server.answered()
        return True

    @event.listens_for(made, "checkin")
    def _note(_: Any, record: Any) -> None:
        record.info["used_at"] = monotonic()

    @event.listens_for(made, "checkout")
    def _try(connection: Any, record: Any, _: Any) -> None:
        # What the server closed can be read from, so that of most no round trip has to tell.
        used_at = record.info.pop("used_at", None)
        if used_at is None:
            return  # it is new
        if server.silent:
            raise InvalidatePoolError
        said = poll()
        said.register(connection, POLLIN)
        if monotonic() - used_at > IDLE_S or said.poll(0):
            try:
                made.dialect.do_ping(connection)
            except SilentError:
                raise
            except psycopg.Error as error:
                raise InvalidatePoolError from error

    return made
