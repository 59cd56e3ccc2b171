"""Databases for the tests of the store: SQLite in a file, and a real PostgreSQL server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

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
