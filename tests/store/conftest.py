"""Databases (SQLite, a real PostgreSQL server) and stores of blobs (a folder, a real S3 server)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from adap.store.artifacts import open_blobs
from adap.store.blobs import Blobs
from adap.store.database import Database
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.tables import Table
from tests.postgres import Postgres
from tests.s3 import bucket_of, with_bucket


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


@pytest.fixture(params=["folder", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    """An empty store of each kind."""
    settings = Settings(home=tmp_path)
    if request.param == "s3":
        settings = with_bucket(settings, bucket_of(request.getfixturevalue("s3_endpoint")))
    return open_blobs(settings)
