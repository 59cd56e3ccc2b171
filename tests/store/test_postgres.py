"""A PostgreSQL server that is there and says nothing: nobody waits for it for long."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from adap.store.database import UNHURRIED, Database
from adap.store.settings import Settings
from tests.postgres import Postgres, postgres_server

LIMIT_S = 1.0
MANY = 8
NO_ANSWER, TRIED = "did not answer within", "is being tried"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """One that nobody else uses."""
    with postgres_server() as made:
        yield made
        made.thaw()


@pytest.fixture
def database(server: Postgres, tmp_path: Path) -> Iterator[Database]:
    made = Database(Settings(home=tmp_path, database_url=server.url, database_limit_s=LIMIT_S))
    assert answer(made) == 1
    yield made
    server.thaw()
    made.dispose()


def one(database: Database) -> int | None:
    with database.reading() as session:
        return session.scalar(text("SELECT 1"))


def answer(database: Database) -> int | None:
    """The answer, whenever it comes."""
    while True:
        with suppress(OperationalError):
            return one(database)


def sleep(database: Database, seconds: float, **options: float) -> None:
    with database.reading(**options) as session:
        session.execute(text(f"SELECT pg_sleep({seconds})"))


def test_who_waits_is_told_and_of_those_who_come_then_one_tries(
    database: Database, server: Postgres
) -> None:
    def said_to_many() -> list[str]:
        with ThreadPoolExecutor(MANY) as pool:
            asking = [pool.submit(one, database) for _ in range(MANY)]
        errors = [future.exception() for future in asking]
        assert all(isinstance(error, OperationalError) for error in errors), errors
        return [str(error) for error in errors]

    server.freeze()
    assert NO_ANSWER in "".join(said_to_many())
    told = "".join(said_to_many())
    assert TRIED in told
    assert NO_ANSWER in told
    server.thaw()
    with ThreadPoolExecutor(MANY) as pool:
        asking = [pool.submit(answer, database) for _ in range(MANY)]
    assert [future.result() for future in asking] == [1] * MANY


def test_a_slow_statement_is_given_up_and_does_no_harm_to_others(database: Database) -> None:
    over = Event()

    def ask() -> list[str]:
        said = []
        while not over.is_set():
            try:
                said.append(str(one(database)))
            except OperationalError as error:  # this machine may stand still for as long
                said.append(str(error))
        return said

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            with pytest.raises(OperationalError, match=NO_ANSWER):
                sleep(database, 20 * LIMIT_S)
        finally:
            over.set()
        said = asking.result()
        assert "1" in said
        assert TRIED not in "".join(said)


def test_work_that_nobody_waits_for_may_take_longer(database: Database) -> None:
    sleep(database, 1.5 * LIMIT_S, **UNHURRIED)
    with pytest.raises(OperationalError, match=NO_ANSWER):
        sleep(database, 20 * LIMIT_S)
