"""The job state machine: every move is one guarded update and one event, in one transaction.

    queued -> running | cancelled
    running -> succeeded | failed | cancelling | queued      (queued: lease lost, or released)
    cancelling -> cancelled | succeeded | failed

Whoever works on a job holds a `Claim`. Its attempt number is a fencing token: a worker that was
taken for dead and comes back finds that its updates match no row.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Integer,
    Row,
    ScalarSelect,
    Select,
    String,
    bindparam,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased

from store import webhooks
from store.database import now
from store.ids import new_id
from store.tables import (
    LIVE,
    TERMINAL,
    AssetStatus,
    DatasetRow,
    JobEventRow,
    JobKind,
    JobRow,
    JobStatus,
    ModelRow,
    SweepRow,
)

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLING, JobStatus.QUEUED}
    ),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED, JobStatus.SUCCEEDED, JobStatus.FAILED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}

_NOBODY: dict[str, Any] = {"worker": None, "lease_expires_at": None}

MOST_AHEAD = 1000  # further jobs before one are not counted
BACKOFF_S = (1.0, 5.0, 15.0)  # after the first, second, … lost attempt


class ClaimLostError(Exception):
    """Somebody else has the job now, or it is finished: stop, and write nothing."""


@dataclass(frozen=True)
class Claim:
    """The right to work on a job, as long as the lease is renewed."""

    job_id: str
    attempt: int


@dataclass(frozen=True)
class JobError:
    """Why a job failed: `code` for programs, `message` for people."""

    code: str
    message: str
    retryable: bool = False

    def as_json(self) -> dict[str, Any]:
        """The value of the job's `error` column."""
        return {"code": self.code, "message": self.message, "retryable": self.retryable}


_FIRST_EVENT = insert(JobEventRow).values(job_id=bindparam("job_id"), seq=1, type="queued", data={})


def enqueue(session: Session, kind: JobKind, *, tenant: str, **columns: Any) -> JobRow:
    """Insert a queued job and its first event; ring for it after the commit."""
    job = JobRow(
        id=new_id("job"),
        kind=kind,
        queue=kind.queue,
        status=JobStatus.QUEUED,
        tenant=tenant,
        last_event=1,
        **columns,
    )
    session.add(job)
    session.flush()
    session.execute(_FIRST_EVENT, {"job_id": job.id})
    return job


def claim(session: Session, job_id: str, *, worker: str, lease_s: float) -> Claim | None:
    """Take a queued job whose data set and models are no longer being checked.

    None if the job is not to be had: somebody else took it, it ended, or its time has not come.
    """
    moved = _move(
        session,
        job_id,
        JobStatus.RUNNING,
        sources={JobStatus.QUEUED},
        where=_READY,
        values={
            "attempt": JobRow.attempt + 1,
            "worker": worker,
            "lease_expires_at": now() + lease_s,
            "started_at": func.coalesce(JobRow.started_at, now()),
        },
        event=lambda row: {"attempt": row.attempt, "worker": worker},
    )
    return None if moved is None else Claim(job_id, moved.attempt)


def claim_next(session: Session, queue: str, *, worker: str, lease_s: float) -> Claim | None:
    """Take the queued job whose turn it is.

    It is the turn of the tenant that holds the fewest workers, of several such tenants of the one
    that was served longest ago; each tenant's jobs are taken oldest first.
    """
    for turn in session.execute(_TURNS, {"queue": queue}).all():
        job_id = session.scalar(_NEXT, {"queue": queue, "tenant": turn.tenant})
        taken = None if job_id is None else claim(session, job_id, worker=worker, lease_s=lease_s)
        if taken is not None:
            return taken
    return None


def claim_shard(session: Session, parent: Claim, *, worker: str, lease_s: float) -> Claim | None:
    """Take any queued shard of an audit."""
    for shard in session.scalars(
        select(JobRow.id)
        .where(JobRow.parent_id == parent.job_id, JobRow.status == JobStatus.QUEUED)
        .order_by(JobRow.shard)
    ):
        taken = claim(session, shard, worker=worker, lease_s=lease_s)
        if taken is not None:
            return taken
    return None


def renew(
    session: Session, claim: Claim, *, lease_s: float, progress: dict[str, Any] | None = None
) -> JobStatus:
    """Prolong the lease, optionally with progress; returns whether the job is being cancelled."""
    values: dict[str, Any] = {"lease_expires_at": now() + lease_s}
    if progress is not None:
        values["progress"] = progress
    row = session.execute(
        update(JobRow).where(*_held(claim)).values(values).returning(JobRow.status)
    ).first()
    if row is None:
        raise ClaimLostError(claim)
    return JobStatus(row.status)


def record(session: Session, claim: Claim, type: str, data: dict[str, Any]) -> None:  # noqa: A002
    """Append an event to a job that this claim still holds."""
    row = session.execute(
        update(JobRow)
        .where(*_held(claim))
        .values(last_event=JobRow.last_event + 1)
        .returning(JobRow.last_event)
    ).first()
    if row is None:
        raise ClaimLostError(claim)
    session.add(JobEventRow(job_id=claim.job_id, seq=row.last_event, type=type, data=data))


def save_checkpoint(session: Session, claim: Claim, sha256: str, *, epoch: int) -> str | None:
    """Point the job at its newest checkpoint; returns the one it replaces."""
    previous = session.scalar(select(JobRow.checkpoint_sha256).where(JobRow.id == claim.job_id))
    changed = session.execute(
        update(JobRow)
        .where(*_held(claim))
        .values(checkpoint_sha256=sha256, checkpoint_epoch=epoch)
        .returning(JobRow.id)
    ).first()
    if changed is None:
        raise ClaimLostError(claim)
    return previous


def succeed(session: Session, claim: Claim, result: dict[str, Any]) -> None:
    """Publish the one result of the job; what it made is written in the same transaction.

    Nobody will go on from its checkpoint any more, so the row lets go of it.
    """
    _finish(session, claim, JobStatus.SUCCEEDED, {"result": result, "checkpoint_sha256": None})


def fail(session: Session, claim: Claim, error: JobError) -> None:
    """End the job with a reason."""
    _finish(session, claim, JobStatus.FAILED, {"error": error.as_json()}, error.as_json())


def finish_cancelled(session: Session, claim: Claim) -> None:
    """End a job that was asked to stop, once its work has stopped."""
    _finish(session, claim, JobStatus.CANCELLED, {})


def release(session: Session, claim: Claim) -> None:
    """Give a running job back unharmed, because this worker is shutting down."""
    moved = _move(
        session,
        claim.job_id,
        JobStatus.QUEUED,
        sources={JobStatus.RUNNING},
        where=(JobRow.attempt == claim.attempt,),
        values=_NOBODY,
        event=lambda _: {"reason": "worker_shutdown"},
    )
    if moved is None:
        raise ClaimLostError(claim)


def lose(session: Session, claim: Claim, *, max_lost: int, reason: JobError | None = None) -> None:
    """The process that did the work died, or could not: queue the job again, or give up in the end.

    `reason` is what to say where it did not just die.
    """
    if not _take_back(session, claim.job_id, claim.attempt, max_lost=max_lost, reason=reason):
        raise ClaimLostError(claim)


def request_cancel(session: Session, job_id: str) -> JobStatus | None:
    """Cancel a queued job at once, ask a running one to stop; None if it had already ended.

    The shards of an audit are cancelled with it.
    """
    _lock(session, job_id)
    for shard in session.scalars(
        select(JobRow.id)
        .where(JobRow.parent_id == job_id, JobRow.status.in_(LIVE))
        .order_by(JobRow.id)
    ).all():
        request_cancel(session, shard)
    if _move(
        session,
        job_id,
        JobStatus.CANCELLED,
        sources={JobStatus.QUEUED},
        values={"finished_at": now()},
    ):
        return JobStatus.CANCELLED
    if _move(
        session,
        job_id,
        JobStatus.CANCELLING,
        sources={JobStatus.RUNNING},
    ):
        return JobStatus.CANCELLING
    status = session.scalar(select(JobRow.status).where(JobRow.id == job_id))
    return status if status == JobStatus.CANCELLING else None


def take_back_expired(session: Session, *, max_lost: int) -> list[str]:
    """Queue again, end or cancel the jobs whose worker is silent; returns the queued ones."""
    expired = session.execute(
        select(JobRow.id, JobRow.attempt)
        .where(
            JobRow.status.in_((JobStatus.RUNNING, JobStatus.CANCELLING)),
            JobRow.lease_expires_at < now(),
        )
        .order_by(JobRow.id)
    ).all()
    return [
        row.id
        for row in expired
        if _take_back(session, row.id, row.attempt, max_lost=max_lost, expired_only=True)
        is JobStatus.QUEUED
    ]


def add_shards(session: Session, parent: JobRow, requests: Sequence[dict[str, Any]]) -> None:
    """Create the shards of an audit, unless an earlier attempt already has."""
    present = session.scalar(select(exists().where(JobRow.parent_id == parent.id)))
    if present:
        return
    for number, request in enumerate(requests):
        enqueue(
            session,
            JobKind.AUDIT_SHARD,
            tenant=parent.tenant,
            parent_id=parent.id,
            shard=number,
            request=request,
            dataset_id=parent.dataset_id,
            model_id=parent.model_id,
            surrogate_id=parent.surrogate_id,
        )


def queue_position(session: Session, job: JobRow) -> int | None:
    """How many jobs would be taken before a queued one, as things are; None if it is not queued."""
    if job.status != JobStatus.QUEUED:
        return None
    return queue_positions(session, [job])[job.id]


def queue_positions(session: Session, queued: Sequence[JobRow]) -> dict[str, int]:
    """How many jobs would be taken before each of these queued ones of one tenant.

    Counted up to `MOST_AHEAD`. Shards count with their audit.
    """
    positions: dict[str, int] = {}
    for queue in {job.queue for job in queued}:
        here = [job for job in queued if job.queue == queue]
        mine = {"queue": queue, "tenant": here[0].tenant}
        if len(here) == 1:
            before, others = session.execute(_PLACE, {**mine, "job_id": here[0].id}).one()
            ahead = {here[0].id: before}
        else:
            line = session.scalars(_LINE, mine).all()
            ahead = {job.id: bisect_left(line, job.id) for job in here}
            others = session.scalar(select(_OTHERS), mine)
        if others:
            ahead = _among_tenants(session, queue, here[0].tenant, ahead)
        positions |= ahead
    return positions


def _among_tenants(
    session: Session, queue: str, tenant: str, ahead: dict[str, int]
) -> dict[str, int]:
    """Positions of a tenant's jobs among those of all tenants, from those among its own."""
    mine = {"queue": queue, "tenant": tenant}
    held = session.scalar(_HELD, mine) or 0
    most = held + max(ahead.values())
    turns = session.execute(_COUNTED_TURNS, {"queue": queue, "count_up_to": most + 1}).all()
    own = next((turn for turn in turns if turn.tenant == tenant), None)
    if own is None:  # they were taken just now
        return dict.fromkeys(ahead, 0)

    def position(before: int) -> int:
        # Each job that is taken gives its tenant one more worker, so a job that has n others of
        # its tenant before it is taken when its tenant holds n more, and all others as many.
        level = held + before
        place = before
        for turn in turns:
            if turn is not own:
                sooner = (-turn.held, turn.served, turn.oldest) < (-held, own.served, own.oldest)
                place += max(0, min(turn.waiting, level - turn.held + sooner))
        return min(place, MOST_AHEAD)

    return {job_id: position(before) for job_id, before in ahead.items()}


def uses(session: Session, asset_id: str) -> bool:
    """Whether a job that has not ended, or one that a sweep has still to make, refers to this."""
    return bool(
        session.scalar(
            select(
                exists().where(
                    SweepRow.unfinished,
                    or_(SweepRow.dataset_id == asset_id, SweepRow.model_id == asset_id),
                )
                | exists().where(
                    JobRow.status.in_(LIVE),
                    or_(
                        JobRow.dataset_id == asset_id,
                        JobRow.model_id == asset_id,
                        JobRow.surrogate_id == asset_id,
                    ),
                )
            )
        )
    )


def _line(queue: Any, tenant: Any) -> Select[str]:
    """The queued jobs of a tenant, oldest first.

    Tenants are a range of one, so that the order is by tenant and id and only the index of queued
    jobs has it. For an order by id alone PostgreSQL may walk through all jobs that there ever were.
    """
    return (
        select(JobRow.id)
        .where(
            JobRow.status == JobStatus.QUEUED,
            JobRow.queue == queue,
            JobRow.tenant.between(tenant, tenant),
        )
        .order_by(JobRow.tenant, JobRow.id)
    )


def _workers_of(queue: Any, tenant: Any) -> ScalarSelect[int]:
    """How many workers work for a tenant; the worker of an audit has one of its shards too."""
    return (
        select(func.count(JobRow.worker.distinct()))
        .where(JobRow.queue == queue, JobRow.tenant == tenant, JobRow.worker.is_not(None))
        .scalar_subquery()
    )


def _turns(queue: Any, *, count_up_to: Any = None) -> Select[Any]:
    """The tenants with queued jobs in the order of their turns.

    tenant; held: how many workers work for it; served: when one last began a job of it, or 0;
    oldest: its oldest queued job; waiting: if asked for, its queued jobs without shards, up to so
    many.

    However many jobs are queued, a few entries of an index are read for each tenant: the tenants
    themselves are found by leaps from one to the next.
    """
    line = (
        select(JobRow.tenant)
        .where(JobRow.status == JobStatus.QUEUED, JobRow.queue == queue)
        .order_by(JobRow.tenant, JobRow.id)
        .limit(1)
    )
    found = select(line.scalar_subquery().label("tenant")).cte(recursive=True)
    leap = line.where(JobRow.tenant > found.c.tenant).correlate(found).scalar_subquery()
    found = found.union_all(select(leap).where(found.c.tenant.is_not(None)))
    tenant = found.c.tenant
    served = select(func.coalesce(func.max(JobRow.started_at), 0.0)).where(
        JobRow.queue == queue, JobRow.tenant == tenant, JobRow.started_at.is_not(None)
    )
    oldest = _line(queue, tenant).limit(1)
    query = (
        select(
            tenant,
            _workers_of(queue, tenant).label("held"),
            served.correlate(found).scalar_subquery().label("served"),
            oldest.correlate(found).scalar_subquery().label("oldest"),
        )
        .where(tenant.is_not(None))
        .order_by("held", "served", "oldest")
    )
    if count_up_to is None:
        return query
    some = _line(queue, tenant).where(JobRow.parent_id.is_(None)).limit(count_up_to)
    waiting = select(func.count()).select_from(some.correlate(found).subquery())
    return query.add_columns(waiting.correlate(found).scalar_subquery().label("waiting"))


def _held(claim: Claim) -> tuple[Any, ...]:
    return (
        JobRow.id == claim.job_id,
        JobRow.attempt == claim.attempt,
        JobRow.status.in_((JobStatus.RUNNING, JobStatus.CANCELLING)),
    )


def _inputs_settled() -> Any:
    """No data set or model that the job needs is still being checked.

    The checks themselves work on an asset in exactly that state, so they are exempt.
    """
    surrogate = aliased(ModelRow)
    checking = or_(
        exists().where(
            DatasetRow.id == JobRow.dataset_id, DatasetRow.status == AssetStatus.VALIDATING
        ),
        exists().where(ModelRow.id == JobRow.model_id, ModelRow.status == AssetStatus.VALIDATING),
        exists().where(
            surrogate.id == JobRow.surrogate_id, surrogate.status == AssetStatus.VALIDATING
        ),
    )
    return or_(JobRow.queue == "intake", ~checking)


def _finish(
    session: Session,
    claim: Claim,
    to: JobStatus,
    values: dict[str, Any],
    event: dict[str, Any] | None = None,
) -> None:
    held = {JobStatus.RUNNING, JobStatus.CANCELLING}
    moved = _move(
        session,
        claim.job_id,
        to,
        sources={status for status in held if to in TRANSITIONS[status]},
        where=(JobRow.attempt == claim.attempt,),
        values={**_NOBODY, "finished_at": now(), **values},
        event=lambda _: event or {},
    )
    if moved is None:
        raise ClaimLostError(claim)


def _take_back(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    max_lost: int,
    reason: JobError | None = None,
    expired_only: bool = False,
) -> JobStatus | None:
    """Move a job whose worker died to queued, failed or cancelled; None if it has moved on."""
    _lock(session, job_id)
    mine: tuple[Any, ...] = (JobRow.attempt == attempt,)
    if expired_only:
        mine += (JobRow.lease_expires_at < now(),)
    if _move(
        session,
        job_id,
        JobStatus.CANCELLED,
        sources={JobStatus.CANCELLING},
        where=mine,
        values={**_NOBODY, "finished_at": now()},
    ):
        return JobStatus.CANCELLED
    lost = session.scalar(select(JobRow.lost).where(JobRow.id == job_id)) or 0
    if lost + 1 >= max_lost:
        died = JobError(
            "worker_lost",
            f"The process that ran this job died {lost + 1} times, so it was given up. "
            "It may need more memory than there is, or crash on its input.",
            retryable=True,
        )
        error = (reason or died).as_json()
        failed = _move(
            session,
            job_id,
            JobStatus.FAILED,
            sources={JobStatus.RUNNING},
            where=mine,
            values={**_NOBODY, "finished_at": now(), "lost": JobRow.lost + 1, "error": error},
            event=lambda _: error,
        )
        return JobStatus.FAILED if failed else None
    wait_s = BACKOFF_S[min(lost, len(BACKOFF_S) - 1)]
    queued = _move(
        session,
        job_id,
        JobStatus.QUEUED,
        sources={JobStatus.RUNNING},
        where=mine,
        values={**_NOBODY, "lost": JobRow.lost + 1, "not_before": now() + wait_s},
        event=lambda _: {"reason": reason.code if reason else "worker_lost"},
    )
    return JobStatus.QUEUED if queued else None


def _lock(session: Session, job_id: str) -> None:
    """Keep a job as it is while several moves are tried, or none may find it where it was.

    Of several jobs always the older first, so that no two transactions wait for each other.
    """
    session.execute(select(JobRow.id).where(JobRow.id == job_id).with_for_update())


def _move(
    session: Session,
    job_id: str,
    to: JobStatus,
    *,
    sources: Collection[JobStatus],
    where: tuple[Any, ...] = (),
    values: dict[str, Any] | None = None,
    event: Callable[[Any], dict[str, Any]] = lambda _: {},
) -> Row[int, int] | None:
    """Change the status of one row that still matches, with its event; returns its attempt.

    The answer is a row and not a number, as an attempt may be 0.
    """
    assert all(to in TRANSITIONS[source] for source in sources), f"{sources} -> {to}"
    row = session.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.status.in_(sources), *where)
        .values(status=to, last_event=JobRow.last_event + 1, **(values or {}))
        .returning(JobRow.attempt, JobRow.last_event)
        .execution_options(synchronize_session=False)
    ).first()
    if row is None:
        return None
    session.execute(
        insert(JobEventRow).values(job_id=job_id, seq=row.last_event, type=str(to), data=event(row))
    )
    if to in (JobStatus.FAILED, JobStatus.CANCELLED):
        error = (values or {}).get("error")
        _reject_upload(session, job_id, error["message"] if error else "its check was cancelled")
    if to in TERMINAL:
        webhooks.announce(session, job_id, to)
    session.expire_all()
    return row


def _reject_upload(session: Session, job_id: str, reason: str) -> None:
    """An upload whose check ended without a verdict will never be ready."""
    for table in (DatasetRow, ModelRow):
        session.execute(
            update(table)
            .where(table.job_id == job_id, table.status == AssetStatus.VALIDATING)
            .values(status=AssetStatus.REJECTED, reasons=[reason], upload_sha256=None)
            .execution_options(synchronize_session=False)
        )


# Statements that run often, built once: to build one takes longer than to run it.

_MINE: Any = (bindparam("queue", type_=String), bindparam("tenant", type_=String))
_READY = (JobRow.not_before <= now(), _inputs_settled())
_TURNS = _turns(_MINE[0])
_COUNTED_TURNS = _turns(_MINE[0], count_up_to=bindparam("count_up_to", type_=Integer))
_HELD = select(_workers_of(*_MINE))
_NEXT = (
    _line(*_MINE)
    .where(*_READY)
    .limit(1)
    .with_for_update(skip_locked=True)  # claimers on PostgreSQL do not wait in a row
)
_LINE = _line(*_MINE).where(JobRow.parent_id.is_(None)).limit(MOST_AHEAD)
_BEFORE = _LINE.where(JobRow.id < bindparam("job_id")).subquery()
_AHEAD = select(func.count()).select_from(_BEFORE).scalar_subquery()
_TENANTS = select(JobRow.tenant).where(JobRow.status == JobStatus.QUEUED, JobRow.queue == _MINE[0])
_FIRST = _TENANTS.order_by(JobRow.tenant, JobRow.id).limit(1).scalar_subquery()
_LAST = _TENANTS.order_by(JobRow.tenant.desc(), JobRow.id.desc()).limit(1).scalar_subquery()
_OTHERS = or_(_MINE[1] > _FIRST, _MINE[1] < _LAST)  # whether other tenants have queued jobs
_PLACE = select(_AHEAD, _OTHERS)
