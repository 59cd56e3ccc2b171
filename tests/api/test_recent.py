"""Answers kept for a second: never older, and forgotten where this process changed them."""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import event
from structlog.contextvars import get_contextvars

from adap.api.recent import KEPT_S, MOST, Recent
from adap.store import jobs, keys
from adap.store.tables import LOCAL_TENANT, JobKind, JobStatus
from tests.api.conftest import Api, running_in, wait_for
from tests.api.test_routes import finish

Check = Callable[..., dict[str, Any]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that values are kept by, which stands still until it is changed."""
    at = [100.0]
    monkeypatch.setattr("adap.api.recent.time", SimpleNamespace(monotonic=lambda: at[0]))
    return at


def test_a_value_is_kept_for_a_second(clock: list[float]) -> None:
    values: Recent[str, int] = Recent()
    values.keep("a", 1, asked_at=99.5)
    assert values.get("a") == 1
    assert values.get("b") is None
    clock[0] = 99.5 + KEPT_S + 0.01
    assert values.get("a") is None


def test_what_was_read_before_a_change_is_not_kept_after_it(clock: list[float]) -> None:
    values: Recent[str, int] = Recent()
    values.forget()  # while somebody reads
    values.keep("a", 1, asked_at=99.9)
    assert values.get("a") is None
    clock[0] = 100.1
    values.keep("a", 2, asked_at=100.1)
    assert values.get("a") == 2


def test_memory_is_bounded(clock: list[float]) -> None:
    values: Recent[int, int] = Recent()
    for number in range(2 * MOST + 1):
        values.keep(number, number, asked_at=clock[0])
    assert len(values._values) <= MOST
    assert values.get(2 * MOST) == 2 * MOST


def test_a_key_that_was_revoked_elsewhere_is_refused_within_a_second(
    api: Api, problem: Check
) -> None:
    with api.database.writing() as session:
        row, secret = keys.create(session, name="k", scopes=["read"])
    mine = {"Authorization": f"Bearer {secret}"}
    assert api.http.get("/v1/jobs", headers=mine).status_code == 200
    with api.database.writing() as session:
        keys.revoke(session, row.id)
    time.sleep(KEPT_S + 0.05)
    problem(api.http.get("/v1/jobs", headers=mine), 401, "unauthorized")


def test_a_first_key_that_was_made_elsewhere_is_asked_for_within_a_second(
    api: Api, problem: Check
) -> None:
    assert api.http.get("/v1/jobs").status_code == 200
    with api.database.writing() as session:
        keys.create(session, name="k", scopes=["read"])
    time.sleep(KEPT_S + 0.05)
    problem(api.http.get("/v1/jobs"), 401, "unauthorized")


def test_a_first_key_that_was_made_elsewhere_is_asked_for_as_soon_as_it_is_used(
    api: Api, problem: Check
) -> None:
    assert api.http.get("/v1/jobs").status_code == 200
    with api.database.writing() as session:
        _, secret = keys.create(session, name="k", scopes=["read"])
    mine = {"Authorization": f"Bearer {secret}"}
    assert api.http.get("/v1/jobs", headers=mine).status_code == 200
    problem(api.http.get("/v1/jobs"), 401, "unauthorized")


def test_those_who_wait_for_jobs_keep_nobody_else_waiting(tmp_path: Path) -> None:
    """More of them than there are threads."""
    looks: Counter[str] = Counter()  # at the database, of each request
    with running_in(tmp_path, max_wait_s=60) as api:
        assert api.house is not None
        event.listen(
            api.house.database.engine,
            "begin",
            lambda _: looks.update([get_contextvars()["request_id"]]),
        )
        job_id = queued(api)

        def wait(_: int) -> str:
            with httpx.Client(base_url=api.http.base_url, timeout=90) as client:
                answer = client.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=60"})
                return str(answer.json()["status"])

        with ThreadPoolExecutor(60) as pool:
            waiting = [pool.submit(wait, number) for number in range(60)]
            wait_for(
                lambda: sum(count > 5 for count in list(looks.values())) == 60,
                because="all of them look again and again",
            )
            assert api.http.get("/v1/jobs").status_code == 200
            assert not any(future.done() for future in waiting)
            finish(api, job_id, {})
            assert {future.result() for future in waiting} == {JobStatus.SUCCEEDED}


def queued(api: Api) -> str:
    with api.database.writing() as session:
        return jobs.enqueue(session, JobKind.TRAIN, tenant=LOCAL_TENANT, request={}).id
