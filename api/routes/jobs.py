"""Jobs of every kind: look, wait, follow, cancel, retry."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from sqlalchemy import bindparam, exists, or_, select, union_all
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, aliased
from starlette.types import Receive, Scope, Send

from adap import faults
from adap.api.assets import AssetId
from adap.api.deps import (
    Caller,
    House,
    HouseDep,
    Reader,
    ShownJob,
    Writer,
    house_of,
    require_still_admitted,
    still_admitted,
)
from adap.api.errors import POSTED, ApiError, not_found, problems
from adap.api.guarded import GuardedRoute
from adap.api.idempotency import IdempotencyDep
from adap.api.listing import (
    After,
    Limit,
    Match,
    SortedByAge,
    make_cursor,
    matching,
    page_of,
    read_offset,
)
from adap.api.pages import PAGE, views, wants_page
from adap.api.schemas import Job, JobEvent, Page, job_answer, timestamp
from adap.core.config.base import Identifier
from adap.store import jobs, queues, results, retries
from adap.store.database import now, row_by_id
from adap.store.sweeps import NoPlaceError
from adap.store.tables import (
    TERMINAL,
    AssetStatus,
    DatasetRow,
    JobEventRow,
    JobKind,
    JobRow,
    JobStatus,
    ModelRow,
    WorkerRow,
)

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=GuardedRoute)

POLL_S = 0.2
REFRESH_S = 2.0  # places in the queue change without news of the job
PING_S = 15.0
MOST_EVENTS = 1000  # of a stream, at once


@router.get("", responses=problems())
def list_jobs(
    house: HouseDep,
    caller: Reader,
    limit: Limit = 20,
    after: After = None,
    kind: JobKind | None = None,
    status: JobStatus | None = None,
    ended_within_s: Annotated[
        float | None, Query(ge=0, description="that ended at most so many seconds ago")
    ] = None,
    code: Annotated[
        str | None,
        Query(max_length=100, pattern=faults.CODE, description="that failed with this code"),
    ] = None,
    retried: Annotated[
        bool | None, Query(description="whether a retry of it was made already")
    ] = None,
    model_id: Annotated[
        Identifier | None, Query(description="that used or made this model")
    ] = None,
    dataset_id: Annotated[Identifier | None, Query(description="that used this data set")] = None,
    sort: SortedByAge = "newest",
    match: Match = None,
) -> Page[Job]:
    """The jobs, newest first; the shards of an audit are shown by the audit."""
    query = select(JobRow).where(JobRow.tenant == caller.tenant, JobRow.parent_id.is_(None))
    if kind is not None:
        query = query.where(JobRow.kind == kind)
    if status is not None:
        query = query.where(JobRow.status == status)
    if ended_within_s is not None:
        query = query.where(JobRow.finished_at >= now() - ended_within_s)
    if code is not None:
        query = query.where(JobRow.error["code"].as_string() == code)
    if retried is not None:
        again = aliased(JobRow)
        made = exists().where(again.retry_of == JobRow.id)
        query = query.where(made if retried else ~made)
    if model_id is not None:
        of_model = select(ModelRow.job_id).where(ModelRow.id == model_id).scalar_subquery()
        query = query.where(or_(JobRow.model_id == model_id, JobRow.id == of_model))
    if dataset_id is not None:
        query = query.where(JobRow.dataset_id == dataset_id)
    with house.database.reading() as session:
        return page_of(
            session,
            matching(query, JobRow.id, JobRow.request["name"].as_string(), match),
            JobRow.id,
            limit=limit,
            after=after,
            answers=lambda rows: describe_jobs(session, house, rows),
            sort=sort,
        )


@router.get(
    "/{job_id}", response_model=Job, responses=problems("not_found", "not_acceptable") | PAGE
)
async def show_job(
    job_id: AssetId,
    request: Request,
    response: Response,
    caller: Reader,
    prefer: Annotated[
        str | None,
        Header(max_length=200, description="`wait=N` waits up to N seconds for the end of the job"),
    ] = None,
) -> Response:
    """One job: status, progress, result or error; as `text/html` a page that loads itself again."""
    house = house_of(request)  # no dependency, which would cost more than all of this
    as_page = wants_page(request, response)
    shown = await _show(house, caller, job_id)
    wait_s = min(_wait_s(prefer), house.settings.max_wait_s)
    if wait_s > 0 and not shown.job.done and house.places.free(caller.tenant):  # a wish, RFC 7240
        with house.places.take(caller.tenant):
            await wait_until_done(house, job_id, wait_s=wait_s)
        await require_still_admitted(request, house)
        shown = await _show(house, caller, job_id)
    if as_page:
        return await run_in_threadpool(_page, request, house, caller, shown.job)
    return Response(shown.body, media_type="application/json", headers=dict(response.headers))


async def _show(house: House, caller: Caller, job_id: str) -> ShownJob:
    return await house.shown.ask((caller, job_id), partial(_read_all, house))


def _read_all(
    house: House, asked: Sequence[tuple[Caller, str]]
) -> dict[tuple[Caller, str], ShownJob | Exception]:
    """Jobs of these callers, in one transaction; what is wrong with one is no other's answer."""
    found: dict[tuple[Caller, str], ShownJob | Exception] = {}
    with house.database.reading() as session:
        for caller, job_id in asked:
            try:
                job = describe_job(session, house, find_job(session, job_id, caller))
                found[caller, job_id] = ShownJob(job, job.model_dump_json().encode())
            except SQLAlchemyError:
                raise
            except Exception as error:  # noqa: BLE001 - raised by who asked for this one
                found[caller, job_id] = error
    return found


def _page(request: Request, house: House, caller: Caller, job: Job) -> Response:
    with house.database.reading() as session:
        events = _last_events(session, job.id, limit=views.LAST_EVENTS)
        return views.job_page(request, session, caller, job, events)


@router.post(
    "/{job_id}/cancel",
    responses=problems("not_found", "already_finished", "idempotency_key_reused"),
)
def cancel_job(job_id: AssetId, house: HouseDep, caller: Writer, once: IdempotencyDep) -> Job:
    """Cancel a job: a queued one never starts, a running one stops within seconds."""
    with once.writing(None) as session:
        row = find_job(session, job_id, caller)
        if row.parent_id is not None:
            raise not_found("job", job_id)
        if jobs.request_cancel(session, job_id) is None:
            raise ApiError(
                "already_finished", f"The job {job_id} has ended already: it is {row.status.value}."
            )
        session.expire_all()
        row = session.get_one(JobRow, job_id)
        return once.keep(session, describe_job(session, house, row), status=200)


@router.post(
    "/{job_id}/retry",
    status_code=201,
    responses=problems("not_found", "conflict", "not_ready", *POSTED),
)
def retry_job(
    job_id: AssetId, house: HouseDep, caller: Writer, once: IdempotencyDep, response: Response
) -> Job:
    """Run the request of a failed or cancelled job again, as a new job.

    A training goes on from the last checkpoint, where there is one and it can help; `progress` then
    says after which epoch. A trial's new job takes its place in the sweep. The event `retry` of the
    new job tells what it took over.
    """
    with once.writing(None, new_jobs=1) as session:
        row = find_job(session, job_id, caller)
        if row.status not in (JobStatus.FAILED, JobStatus.CANCELLED) or row.parent_id is not None:
            raise ApiError(
                "conflict",
                f"Expected a job that failed or was cancelled, got {row.status.value}.",
            )
        if row.queue == "intake":
            raise ApiError(
                "conflict", "Checks of uploads are not retried: send the corrected file instead."
            )
        ids = [asset_id for asset_id in (row.model_id, row.surrogate_id) if asset_id is not None]
        needed: list[DatasetRow | ModelRow] = [session.get_one(ModelRow, one) for one in ids]
        if row.dataset_id is not None:
            needed.append(session.get_one(DatasetRow, row.dataset_id))
        for asset in needed:
            if asset.deleted_at is not None:
                raise ApiError(
                    "conflict", f"The job {job_id} needs {asset.id}, which was removed since."
                )
        try:
            job = retries.retry(session, row)
        except NoPlaceError as error:
            raise ApiError("conflict", str(error)) from error
        except retries.GoneError as error:
            raise not_found("job", job_id) from error
        location = response.headers["Location"] = f"/v1/jobs/{job.id}"
        answer = once.keep(session, describe_job(session, house, job), location=location)
    house.ring(job)
    return answer


@router.get(
    "/{job_id}/events",
    response_model=Page[JobEvent],
    responses=problems("not_found", "too_many_streams")
    | {
        200: {
            "description": "A list, or with `Accept: text/event-stream` a stream that ends with "
            "the job and resumes after `Last-Event-ID`",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def job_events(
    job_id: AssetId,
    request: Request,
    house: HouseDep,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: After = None,
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
) -> Page[JobEvent] | StreamingResponse:
    """What happened to a job, oldest first."""
    streams = "text/event-stream" in request.headers.get("accept", "")
    if streams:
        with house.places.take(caller.tenant):  # before the database is asked
            look = partial(_require_job, house, caller, job_id)
            await run_sync(look, limiter=house.watch.threads)
        seen = _seen(last_event_id)
        return _Stream(
            house,
            caller,
            _stream(house, job_id, seen, partial(still_admitted, request, house)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    def read() -> list[JobEvent]:
        with house.database.reading() as session:
            find_job(session, job_id, caller)
            return list(_events(session, job_id, after=read_offset(after), limit=limit + 1))

    events = await run_in_threadpool(read)
    more = len(events) > limit
    shown = events[:limit]
    return Page(
        data=shown,
        has_more=more,
        next_cursor=make_cursor(str(shown[-1].seq)) if more else None,
    )


def _seen(last_event_id: str | None) -> int:
    """The number of an event; 0, before all of them, for what can be none."""
    number = int(last_event_id) if last_event_id and last_event_id.isdecimal() else 0
    return number if number < 2**63 else 0


class _Stream(StreamingResponse):
    """A stream that holds one of its tenant's places as long as it is open."""

    def __init__(self, house: House, caller: Caller, *about: Any, **more: Any) -> None:
        super().__init__(*about, **more)
        self._house, self._caller = house, caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._house.places.take(self._caller.tenant):
            await super().__call__(scope, receive, send)


def _require_job(house: House, caller: Caller, job_id: str) -> None:
    with house.database.reading() as session:
        find_job(session, job_id, caller)


def find_job(session: Session, job_id: str, caller: Caller, kind: JobKind | None = None) -> JobRow:
    """A job of the caller's, of this kind if one is named; else 404."""
    row = row_by_id(session, JobRow, job_id)
    if row is None or row.tenant != caller.tenant or kind not in (None, row.kind):
        raise not_found("job" if kind is None else kind.about.noun, job_id)
    return row


def finished_blob(house: House, job_id: str, caller: Caller, kind: JobKind, name: str) -> str:
    """The hash of a file that a finished job made; 404 or 409 with the reason if there is none."""
    with house.database.reading() as session:
        blobs = _files(find_job(session, job_id, caller, kind))
    if name not in blobs:  # made before there was such a file
        raise ApiError(
            "not_acceptable",
            f"The {kind.about.noun} {job_id} has {', '.join(blobs)}, and no {name}: run it again.",
        )
    return str(blobs[name])


def remove_files(house: House, job_id: str, caller: Caller, kind: JobKind) -> Response:
    """Forget the files that a finished job made; errors as of `finished_blob`."""
    with house.database.writing() as session:
        _files(find_job(session, job_id, caller, kind))
        results.remove(session, JobRow.id == job_id)
    return Response(status_code=204)


def _files(row: JobRow) -> dict[str, str]:
    """The files that a job made, by name; 404 or 409 with the reason if there are none."""
    what = f"{row.kind.about.noun} {row.id}"
    if row.status != JobStatus.SUCCEEDED:
        reason = (row.error or {}).get("message")
        raise ApiError(
            "not_ready", f"The {what} is {row.status.value}" + (f": {reason}" if reason else ".")
        )
    if "blobs" not in (row.result or {}):
        raise ApiError("not_found", f"The files of the {what} were removed.")
    return dict((row.result or {})["blobs"])


async def wait_until_done(house: House, job_id: str, *, wait_s: float) -> JobRow:
    """The job once it has ended, or as it is after this long; holds no thread meanwhile."""

    def look() -> JobRow:
        with house.database.reading() as session:
            return session.get_one(JobRow, job_id)

    deadline = time.monotonic() + wait_s
    while True:
        row = await run_sync(look, limiter=house.watch.threads)
        if row.status in TERMINAL or time.monotonic() >= deadline:
            return row
        await asyncio.sleep(POLL_S)


def describe_job(session: Session, house: House, row: JobRow) -> Job:
    """A job as the API shows it, with its place in the queue."""
    return describe_jobs(session, house, [row])[0]


def describe_jobs(session: Session, house: House, rows: Sequence[JobRow]) -> list[Job]:
    """The same for several, by a few questions for all of them together."""
    queued = [row for row in rows if row.status == JobStatus.QUEUED]
    positions = jobs.queue_positions(session, queued)
    waiting_for = _waiting_for(session, house, queued)
    return [
        job_answer(row, queue_position=positions.get(row.id), waiting_for=waiting_for.get(row.id))
        for row in rows
    ]


_ALIVE = select(  # whether a queue has a worker
    exists().where(
        WorkerRow.queue == bindparam("queue"), WorkerRow.seen_at > now() - bindparam("lease_s")
    )
)
_BEING_CHECKED = union_all(
    *(
        select(table.id).where(
            table.id.in_(bindparam("ids", expanding=True)), table.status == AssetStatus.VALIDATING
        )
        for table in (DatasetRow, ModelRow)
    )
)


def _waiting_for(session: Session, house: House, queued: Sequence[JobRow]) -> dict[str, str]:
    """Why queued jobs do not start, where it is not only the queue."""
    reasons: dict[str, str] = {}
    for queue in {row.queue for row in queued}:
        if reason := _why_halted(session, house, queue):
            reasons |= {row.id: reason for row in queued if row.queue == queue}
    needs = {
        row.id: {
            row.dataset_id: "data set",
            row.model_id: "model",
            row.surrogate_id: "surrogate model",
        }
        for row in queued
        if row.id not in reasons and row.queue == "compute"
    }
    ids = {asset_id for assets in needs.values() for asset_id in assets if asset_id is not None}
    if not ids:
        return reasons
    checked = set(session.scalars(_BEING_CHECKED, {"ids": sorted(ids)}))
    for job_id, assets in needs.items():
        if what := next((assets[asset_id] for asset_id in assets if asset_id in checked), None):
            reasons[job_id] = f"its {what} is being checked"
    return reasons


def _why_halted(session: Session, house: House, queue: str) -> str:
    """Why nothing of a queue is taken, as half a sentence; empty where its workers take jobs."""
    why = house.halted.get(queue)
    if why is None:
        asked_at = time.monotonic()
        why = queues.paused(session).get(queue, "")
        if not why and not session.scalar(
            _ALIVE, {"queue": queue, "lease_s": house.settings.lease_s}
        ):
            why = f"no worker of the queue {queue!r} is alive"
        house.halted.keep(queue, why, asked_at=asked_at)
    return why


def _wait_s(prefer: str | None) -> float:
    """The N of `Prefer: wait=N`; anything else is ignored, as RFC 7240 asks."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.strip().partition("=")
        if name == "wait" and value.isdecimal():
            return float(value[:6])
    return 0.0


def _events(session: Session, job_id: str, *, after: int, limit: int) -> list[JobEvent]:
    query = (
        select(JobEventRow)
        .where(JobEventRow.job_id == job_id, JobEventRow.seq > after)
        .order_by(JobEventRow.seq)
        .limit(limit)
    )
    return [_event(row) for row in session.scalars(query)]


def _last_events(session: Session, job_id: str, *, limit: int) -> list[JobEvent]:
    """The newest events, newest first."""
    query = (
        select(JobEventRow)
        .where(JobEventRow.job_id == job_id)
        .order_by(JobEventRow.seq.desc())
        .limit(limit)
    )
    return [_event(row) for row in session.scalars(query)]


def _event(row: JobEventRow) -> JobEvent:
    return JobEvent(seq=row.seq, at=timestamp(row.at), type=row.type, data=row.data)


@dataclass(frozen=True)
class _Look:
    """What a follower of a job is sent who has seen some of its events."""

    events: bytes
    seen: int
    state: str | None  # None while there are more events, which come first
    done: bool


def _look(house: House, job_id: str, seen: int) -> _Look:
    with house.database.reading() as session:
        job = describe_job(session, house, session.get_one(JobRow, job_id))
        events = _events(session, job_id, after=seen, limit=MOST_EVENTS)
    more = len(events) == MOST_EVENTS
    state = job.model_dump_json(include={"status", "progress", "queue_position"})
    return _Look(
        events=b"".join(
            format_sse_event(data_str=event.model_dump_json(), event=event.type, id=str(event.seq))
            for event in events
        ),
        seen=events[-1].seq if events else seen,
        state=None if more else state,
        done=job.done and not events,
    )


async def _stream(
    house: House, job_id: str, seen: int, admitted: Callable[[], Awaitable[bool]]
) -> AsyncIterator[bytes]:
    """Events as they happen and progress as it changes; ends when the job or the key has ended."""
    shown = ""
    quiet_since = time.monotonic()
    async with house.watch.follow(job_id) as watched:
        while await admitted():
            news = watched.news
            look = await watched.look(seen, partial(_look, house, job_id))
            seen = look.seen
            if look.events:
                yield look.events
            if (
                look.state is not None and look.state != shown
            ):  # without id: only events are resumed
                shown = look.state
                yield format_sse_event(data_str=shown, event="progress")
                quiet_since = time.monotonic()
            if look.done:
                return
            if look.events:  # there may be more, or an end after them
                continue
            if time.monotonic() - quiet_since > PING_S:
                quiet_since = time.monotonic()
                yield format_sse_event(comment="ping")
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await news.wait()
