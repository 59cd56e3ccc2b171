"""Migrations and transactions."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from adap.store import keys
from adap.store.database import Database
from adap.store.ids import new_id
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.start import open_database
from adap.store.tables import ApiKeyRow, AssetStatus, DatasetRow, Table


def test_the_migrations_make_the_tables_that_the_code_uses(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Table.metadata) == []


def test_migrating_twice_changes_nothing(database: Database) -> None:
    migrate(database)


def test_an_error_undoes_the_whole_transaction(database: Database) -> None:
    def write_half() -> None:
        with database.writing() as session:
            session.add(
                DatasetRow(id=new_id("ds"), tenant="t", name="n", status=AssetStatus.VALIDATING)
            )
            session.flush()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        write_half()
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(DatasetRow)) == 0


def test_many_writers_wait_for_each_other(database: Database) -> None:
    with database.writing() as session:
        row, _ = keys.create(session, name="counter", scopes=["read"])

    def add_one(_: int) -> None:
        with database.writing() as session:
            key = session.get_one(ApiKeyRow, row.id, with_for_update=True)
            key.expires_at = (key.expires_at or 0) + 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add_one, range(100)))
    with database.reading() as session:
        assert session.get_one(ApiKeyRow, row.id).expires_at == 100


def test_a_connection_that_the_server_closed_is_not_used_again(postgres: Database) -> None:
    url = postgres.engine.url.render_as_string(hide_password=False)
    own = Database(Settings(database_url=url))
    backends = set()
    for _ in range(3):
        with own.reading() as session:
            backends.add(session.scalar(text("SELECT pg_backend_pid()")))
        with postgres.reading() as session:
            for backend in backends:
                session.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": backend})
    own.dispose()
    assert len(backends) == 3


def test_a_kill_in_the_middle_of_commits_leaves_a_sound_database(tmp_path: Path) -> None:
    script = f"""
import os, threading, time
from pathlib import Path
from adap.store.database import Database
from adap.store.settings import Settings
from adap.store.start import open_database
from adap.store.migrate import migrate
from adap.store import keys
database = Database(Settings(home=Path({str(tmp_path)!r})))
migrate(database)
timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), 9))
while True:
    with database.writing() as session:
        keys.create(session, name="k", scopes=["read"])
    print("committed", flush=True)
    if timer.ident is None:
        timer.start()
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    committed = killed.stdout.count("committed")
    assert killed.returncode == -9
    assert committed > 0, killed.stderr
    database = Database(Settings(home=tmp_path))
    with database.reading() as session:
        assert session.connection().exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        kept = session.scalar(select(func.count()).select_from(ApiKeyRow))
    database.dispose()
    assert kept is not None
    assert kept >= committed


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another program holds the write lock of an SQLite file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_a_process_starts_and_reads_while_another_holds_sqlite(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_wait_s=1)
    migrate(Database(settings))
    with held(tmp_path / "adap.db"):
        started = open_database(settings)
        migrate(started)
        with started.reading() as session:
            assert session.scalar(select(func.count()).select_from(DatasetRow)) == 0
        with pytest.raises(OperationalError, match="locked"), started.writing() as session:
            session.connection()  # begins the transaction
    with started.writing() as session:
        session.add(DatasetRow(id="ds", tenant="t", name="n", status=AssetStatus.VALIDATING))
    started.dispose()


def test_writers_who_wait_for_another_process_wait_by_one_clock(tmp_path: Path) -> None:
    database = Database(Settings(home=tmp_path, database_wait_s=3))
    migrate(database)

    def write(_: int) -> None:
        with pytest.raises(OperationalError, match="locked"), database.writing() as session:
            session.connection()  # begins the transaction

    with held(tmp_path / "adap.db"), ThreadPoolExecutor(10) as pool:
        began = time.monotonic()
        list(pool.map(write, range(10)))
        assert time.monotonic() - began < 20, "one after the other they would wait for 30 s"
    database.dispose()
