"""Many followers of jobs are served by few looks at the database, and miss nothing."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from adap.api.watch import Watch
from adap.store import jobs
from adap.store.database import Database
from adap.store.tables import LOCAL_TENANT, JobKind
from tests.api.conftest import Api

FOLLOWERS = 80


def test_many_followers_see_the_same_events_to_the_end(api: Api) -> None:
    with api.database.writing() as session:
        job_id = jobs.enqueue(session, JobKind.TRAIN, tenant=LOCAL_TENANT, request={}).id

    def work() -> None:
        with api.database.writing() as session:
            claim = jobs.claim(session, job_id, worker="w", lease_s=60)
        assert claim is not None
        for epoch in range(5):
            time.sleep(0.2)
            with api.database.writing() as session:
                jobs.record(session, claim, "epoch", {"epoch": epoch})
        with api.database.writing() as session:
            jobs.succeed(session, claim, {})

    async def follow(client: httpx.AsyncClient, after: int) -> list[int]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        async with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            lines: AsyncIterator[str] = response.aiter_lines()
            return [int(line.removeprefix("id: ")) async for line in lines if line[:4] == "id: "]

    async def follow_all() -> list[list[int]]:
        limits = httpx.Limits(max_connections=FOLLOWERS)
        async with httpx.AsyncClient(
            base_url=api.http.base_url, limits=limits, timeout=30
        ) as client:
            return await asyncio.gather(*(follow(client, i % 2) for i in range(FOLLOWERS)))

    timer = threading.Timer(1, work)
    timer.start()
    seen = asyncio.run(follow_all())
    timer.join()
    assert [ids for ids in seen if ids[0] == 1] == [list(range(1, 9))] * (FOLLOWERS // 2)
    assert [ids for ids in seen if ids[0] == 2] == [list(range(2, 9))] * (FOLLOWERS // 2)
    with api.http.stream(
        "GET", f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}
    ) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line[:6] == "data: "]
    assert [e["type"] for e in events if "type" in e] == [
        "queued",
        "running",
        *["epoch"] * 5,
        "succeeded",
    ]


def test_the_looks_do_not_grow_with_the_followers(tmp_path: Path, api: Api) -> None:
    with api.database.writing() as session:
        job_id = jobs.enqueue(session, JobKind.TRAIN, tenant=LOCAL_TENANT, request={}).id
    database = Database(api.settings)
    statements: list[str] = []
    event.listen(
        database.engine, "before_cursor_execute", lambda *about: statements.append(about[2])
    )
    looks: list[int] = []

    async def follow(watching: Watch) -> None:
        async with watching.follow(job_id) as watched:
            news = watched.news
            await watched.look(1, looks.append)
            await news.wait()  # the first look at the state of the job
            await watched.look(1, looks.append)

    async def follow_all() -> None:
        watching = Watch(database)
        await asyncio.gather(*(follow(watching) for _ in range(FOLLOWERS)))
        assert watching._jobs == {}
        async with asyncio.timeout(30):
            while watching._looking is not None:  # nobody is there to be told
                await asyncio.sleep(0.02)

    asyncio.run(follow_all())
    database.dispose()
    assert len(looks) <= 4
    assert sum("jobs" in statement for statement in statements) <= 3


def test_a_database_that_does_not_answer_ends_no_watch(tmp_path: Path, api: Api) -> None:
    with api.database.writing() as session:
        job_id = jobs.enqueue(session, JobKind.TRAIN, tenant=LOCAL_TENANT, request={}).id
    database = Database(api.settings)
    broken = iter([True, True])

    @event.listens_for(database.engine, "begin")
    def fail(_: object) -> None:
        if next(broken, False):
            raise OperationalError("BEGIN", {}, Exception("disk I/O error"))

    async def follow() -> None:
        async with Watch(database).follow(job_id) as watched, asyncio.timeout(10):
            await watched.news.wait()

    asyncio.run(follow())
    database.dispose()
