"""Health: whether the process answers, and whether jobs will be worked on."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal

import redis
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import select

from adap.api.deps import Admin, House, HouseDep
from adap.api.errors import problems
from adap.api.guarded import GuardedRoute
from adap.api.schemas import Liveness, Readiness, WorkerInfo
from adap.store import disk, queues, storage
from adap.store.database import now
from adap.store.storage import BlobsAwayError
from adap.store.tables import QUEUES, WorkerRow
from adap.worker.scoring.link import ScoringGoneError

router = APIRouter(tags=["health"], route_class=GuardedRoute)

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/livez")
async def live() -> Liveness:
    """The process answers; looks at nothing else."""
    return Liveness()


StorageState = tuple[Literal["ok", "unavailable", "full"], str | None]
Scoring = Literal["ok", "unreachable", "none"]


async def scoring_status(house: HouseDep) -> dict[str, Any] | None:
    """What the scoring process says of itself, None where it does not answer or there is none."""
    return await house.health.look("scoring", lambda: _scoring(house))


async def _scoring(house: House) -> dict[str, Any] | None:
    if house.settings.scoring_url is None:
        return None
    try:
        async with asyncio.timeout(2):
            return await house.scoring.ask({"ask": "status"})
    except (ScoringGoneError, TimeoutError):
        return None


ScoringStatus = Annotated[dict[str, Any] | None, Depends(scoring_status)]


async def scoring_state(house: HouseDep, status: ScoringStatus) -> Scoring:
    """Whether the scoring process answers."""
    if house.settings.scoring_url is None:
        return "none"
    return "unreachable" if status is None else "ok"


ScoringState = Annotated[Scoring, Depends(scoring_state)]


async def blobs_state(house: HouseDep) -> StorageState:
    """Whether the store of files answers, and what is wrong where it does not."""
    return await house.health.look(
        "blobs", lambda: run_sync(_state_of, house.blobs.probe, limiter=house.health.threads)
    )


BlobsState = Annotated[StorageState, Depends(blobs_state)]


@router.get("/readyz", responses={503: problems()[503]})
async def ready(house: HouseDep, scoring: ScoringState) -> Readiness:
    """Whether jobs will be worked on. 503 without a database; `degraded` where work would wait."""
    return await house.health.look(
        "ready", lambda: run_sync(_readiness, house, scoring, limiter=house.health.threads)
    )


def _readiness(house: House, scoring: Scoring) -> Readiness:
    with house.database.reading() as session:
        rows = session.execute(
            select(WorkerRow, (now() - WorkerRow.seen_at).label("age"))
            .where(WorkerRow.seen_at > now() - house.settings.lease_s)
            .order_by(WorkerRow.id)
        ).all()
        paused = queues.paused(session)
    workers = [
        WorkerInfo(id=row.id, queue=row.queue, sandbox=row.sandbox, seen_s_ago=round(age, 1))
        for row, age in rows
    ]
    problems_found = [
        f"no worker of the queue {queue!r} is alive"
        for queue in QUEUES
        if all(worker.queue != queue for worker in workers)
    ]
    problems_found += paused.values()
    broker, broker_problem = _broker_state(house)
    blobs, blobs_problem = _state_of(house.blobs.probe)
    disk_state, disk_problem = _state_of(lambda: disk.probe(house.settings.home))
    problems_found += [
        f"{what}: {problem}"
        for what, problem in (
            ("the broker", broker_problem),
            ("the store of files", blobs_problem),
            (f"the disk of {house.settings.home}", disk_problem),
        )
        if problem
    ]
    if scoring == "unreachable":
        problems_found.append("the scoring process does not answer: no scores of single images")
    return Readiness(
        status="degraded" if problems_found else "ok",
        scoring=scoring,
        blobs=blobs,
        disk=disk_state,
        broker=broker,
        workers=workers,
        problems=problems_found,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses=problems() | {200: {"content": {METRICS_TYPE: {"schema": {"type": "string"}}}}},
)
def metrics(
    request: Request, _caller: Admin, scoring: ScoringStatus, blobs: BlobsState
) -> Response:
    """Figures for Prometheus, of all tenants together; needs the scope `admin`."""
    told = request.app.state.metrics.exposition(scoring, blobs_up=blobs[0] == "ok")
    return Response(told, media_type=METRICS_TYPE)


def _broker_state(house: HouseDep) -> tuple[Literal["ok", "unreachable", "full"], str | None]:
    """Whether bells can be rung: a broker without memory or disk answers, and takes none."""
    url = (house.settings.broker_url or "").replace("redis+socket://", "unix://")
    later = "jobs start some seconds later"
    try:
        with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
            client.set("adap:probe", "", px=1)
    except redis.ResponseError as error:
        return "full", f"it takes no message ({error}): {later}"
    except (redis.RedisError, OSError, ValueError):
        return "unreachable", f"it does not answer: {later}"
    return "ok", None


def _state_of(probe: Callable[[], None]) -> StorageState:
    """What a probe of a place where things are kept finds, and the sentence that tells it."""
    try:
        probe()
    except (OSError, BlobsAwayError) as error:
        trouble = storage.trouble(error)
        if trouble is not None and trouble.code == disk.CODE:
            return "full", "there is no room; uploads are refused by 507 and jobs wait for room"
        return "unavailable", f"{error}; uploads are refused by 503 and jobs wait"
    return "ok", None
