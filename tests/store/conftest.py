"""Databases (SQLite, a real PostgreSQL server) and stores of blobs (a folder, a real S3 server)."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from adap.store.artifacts import open_blobs
from adap.store.blobs import Blobs
from adap.store.database import Database
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.tables import Table
from tests.postgres import Postgres


@pytest.fixture(scope="session")
def postgres(postgres_server: Postgres) -> Iterator[Database]:
    """A migrated PostgreSQL database."""
    database = Database(Settings(database_url=postgres_server.url))
    migrate(database)
    yield database
    database.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty, migrated database of each kind."""
    if request.param == "postgres":
        shared: Database = request.getfixturevalue("postgres")
        names = ", ".join(Table.metadata.tables)
        with shared.writing() as session:
            session.execute(text(f"TRUNCATE {names} CASCADE"))
        yield shared
        return
    fresh = Database(Settings(home=tmp_path))
    migrate(fresh)
    yield fresh
    fresh.dispose()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return open_blobs(Settings(home=tmp_path))
    endpoint = request.getfixturevalue("s3_endpoint")
    bucket = f"b{time.time_ns()}"
    httpx.put(f"{endpoint}/{bucket}").raise_for_status()
    return open_blobs(
        Settings(
            home=tmp_path,
            blobs_url=f"s3://{bucket}/prefix",
            s3_endpoint=endpoint,
            s3_access_key_id="test",
            s3_secret_access_key="test",  # type: ignore[arg-type]
        )
    )
