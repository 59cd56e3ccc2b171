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
from typing import Any, cast

from sqlalchemy import (
    Float,
    Integer,
    Row,
    ScalarSelect,
    Select,
    String,
    Table,
    bindparam,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, make_transient_to_detached
from sqlalchemy.sql.dml import ReturningUpdate

from adap.store import freed, queues, webhooks
from adap.store.database import BY_KEY, now
from adap.store.ids import new_id
from adap.store.tables import (
    LIVE,
    TERMINAL,
    WORKED_ON,
    AssetStatus,
    DatasetRow,
    JobEventRow,
    JobFileRow,
    JobKind,
    JobRow,
    JobStatus,
    ModelRow,
    SweepRow,
    WebhookRow,
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

_JOBS = cast(Table, JobRow.__table__)
_JOB = _JOBS.c

MOST_AHEAD = 1000  # further jobs before one are not counted
MOST_BACKOFF_S = 3600.0  # no job waits longer before it may be taken again
CLOCK_SLACK_S = 1.0  # between a time that was written and the same time read
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


def enqueue(session: Session, kind: JobKind, *, tenant: str, **columns: Any) -> JobRow:
    """Insert a queued job and its first event; ring for it after the commit."""
    session.flush()  # what the job refers to
    values = {
        "id": new_id("job"),
        "kind": kind,
        "queue": kind.queue,
        "status": JobStatus.QUEUED,
        "tenant": tenant,
        "last_event": 1,
        **columns,
    }
    row = session.connection().execute(_ENQUEUE, values).one()
    job = JobRow(**row._mapping)
    make_transient_to_detached(job)  # as if it had been read: a flush takes three times as long
    session.add(job)
    _append(session, job.id, 1, "queued", {})
    return job


def claim(session: Session, job_id: str, *, worker: str, lease_s: float) -> Claim | None:
    """Take a queued job whose data set and models are no longer being checked.

    None if the job is not to be had: somebody else took it, it ended, or its time has not come.
    """
    moved = _move(
        session,
        _CLAIM,
        {"job_id": job_id, "by": worker, "lease_s": lease_s},
        event=lambda row: {"attempt": row.attempt, "worker": worker},
    )
    return None if moved is None else Claim(job_id, moved.attempt)


def claim_next(session: Session, queue: str, *, worker: str, lease_s: float) -> Claim | None:
    """Take the queued job whose turn it is.

    It is the turn of the tenant that holds the fewest workers, of several such tenants of the one
    that was served longest ago; each tenant's jobs are taken oldest first. Of a paused queue none.
    """
    if queues.is_paused(session, queue):
        return None
    connection = session.connection()  # at half the cost of the session's own execute
    only = connection.scalar(_NEXT_OF_ONLY, {"in_queue": queue})
    if only is not None:  # as most often: to find whose turn it is takes longer than all the rest
        taken = claim(session, only, worker=worker, lease_s=lease_s)
        if taken is not None:
            return taken
    for turn in connection.execute(_TURNS, {"in_queue": queue}).all():
        job_id = connection.scalar(_NEXT, {"in_queue": queue, "of_tenant": turn.tenant})
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
    if progress is None:
        return JobStatus(_change(session, claim, _RENEW, lease_s=lease_s).status)
    return JobStatus(_change(session, claim, _REPORT, lease_s=lease_s, so_far=progress).status)


def record(session: Session, claim: Claim, type: str, data: dict[str, Any]) -> None:  # noqa: A002
    """Append an event to a job that this claim still holds."""
    seq = _change(session, claim, _RECORD).last_event
    _append(session, claim.job_id, seq, type, data)


def drop_checkpoint(session: Session, claim: Claim) -> None:
    """Point the job at no checkpoint any more, as its file is lost: it begins again."""
    _change(session, claim, _SAVE, newest=None, after_epoch=None)


def save_checkpoint(session: Session, claim: Claim, sha256: str, *, epoch: int) -> str | None:
    """Point the job at its newest checkpoint; returns the one it replaces."""
    previous = session.scalar(select(JobRow.checkpoint_sha256).where(JobRow.id == claim.job_id))
    _change(session, claim, _SAVE, newest=sha256, after_epoch=epoch)
    return previous


def succeed(session: Session, claim: Claim, result: dict[str, Any]) -> None:
    """Publish the one result of the job; what it made is written in the same transaction.

    Nobody will go on from its checkpoint any more, so the row lets go of it. The caller has seen to
    it that the files of the result stay (`garbage.refer`).
    """
    _move_held(session, claim, _SUCCEED, {"outcome": result})
    if files := set(result.get("blobs", {}).values()):
        rows = [{"sha256": sha256, "job_id": claim.job_id} for sha256 in sorted(files)]
        session.execute(insert(JobFileRow), rows)


def fail(session: Session, claim: Claim, error: JobError) -> None:
    """End the job with a reason."""
    _move_held(session, claim, _FAIL, {"why": error.as_json()}, error.as_json())


def finish_cancelled(session: Session, claim: Claim) -> None:
    """End a job that was asked to stop, once its work has stopped."""
    _move_held(session, claim, _FINISH_CANCELLED)


def release(
    session: Session, claim: Claim, *, reason: str = "worker_shutdown", wait_s: float = 0.0
) -> None:
    """Give a running job back unharmed, not to be taken again before so many seconds."""
    _move_held(session, claim, _RELEASE, {"wait_s": wait_s}, {"reason": reason})


def lose(
    session: Session,
    claim: Claim,
    *,
    max_lost: int,
    reason: JobError | None = None,
    backoff_s: Sequence[float] = BACKOFF_S,
) -> None:
    """The process that did the work died, or could not: queue the job again, or give up in the end.

    `reason` is what to say where it did not just die. backoff_s: how long the job then waits, after
    the first, second, … lost attempt.
    """
    if not _take_back(
        session,
        claim.job_id,
        claim.attempt,
        max_lost=max_lost,
        reason=reason,
        backoff_s=backoff_s,
    ):
        raise ClaimLostError(claim)


def request_cancel(session: Session, job_id: str) -> JobStatus | None:
    """Cancel a queued job at once, ask a running one to stop; None if it had already ended.

    The shards of an audit are cancelled with it.
    """
    session.execute(_LOCK, {"job_id": job_id})
    for shard in session.scalars(
        select(JobRow.id)
        .where(JobRow.parent_id == job_id, JobRow.status.in_(LIVE))
        .order_by(JobRow.id)
    ).all():
        request_cancel(session, shard)
    for move in (_CANCEL, _ASK_TO_CANCEL):
        if _move(session, move, {"job_id": job_id}):
            return move.to
    status = session.scalar(select(JobRow.status).where(JobRow.id == job_id))
    return status if status == JobStatus.CANCELLING else None


def cut_leases(session: Session, *, lease_s: float) -> None:
    """Hold from now on what is held for longer than a lease lasts: its clock was set back since.

    Whoever lives renews it, and that of the dead runs out.
    """
    session.execute(
        update(_JOBS)
        .where(
            _JOB.status.in_(WORKED_ON),
            _JOB.lease_expires_at > now() + lease_s + CLOCK_SLACK_S,
        )
        .values(lease_expires_at=now() + lease_s)
    )


def cut_waits(session: Session) -> None:
    """The same for jobs that wait after a lost attempt: none waits longer than an hour."""
    session.execute(
        update(_JOBS)
        .where(
            _JOB.status == JobStatus.QUEUED,
            _JOB.not_before > now() + MOST_BACKOFF_S + CLOCK_SLACK_S,
        )
        .values(not_before=now() + MOST_BACKOFF_S)
    )


def take_back_expired(session: Session, *, max_lost: int) -> list[str]:
    """Queue again, end or cancel the jobs whose worker is silent; returns the queued ones."""
    expired = session.execute(
        select(JobRow.id, JobRow.attempt)
        .where(
            JobRow.status.in_(WORKED_ON),
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
        mine = {"in_queue": queue, "of_tenant": here[0].tenant}
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
    mine = {"in_queue": queue, "of_tenant": tenant}
    held = session.scalar(_HELD, mine) or 0
    most = held + max(ahead.values())
    turns = session.execute(_COUNTED_TURNS, {"in_queue": queue, "count_up_to": most + 1}).all()
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


def _line(queue: Any, tenant: Any, last: Any = None) -> Select[str]:
    """The queued jobs of a tenant, oldest first, or of those from one to the last.

    Tenants are a range of one, so that the order is by tenant and id and only the index of queued
    jobs has it. For an order by id alone PostgreSQL may walk through all jobs that there ever were.
    """
    return (
        select(JobRow.id)
        .where(
            JobRow.status == JobStatus.QUEUED,
            JobRow.queue == queue,
            JobRow.tenant.between(tenant, tenant if last is None else last),
        )
        .order_by(JobRow.tenant, JobRow.id)
    )


def _first_free(line: Select[str]) -> Select[str]:
    """The first of these jobs that no other transaction holds, as none has to wait for another."""
    return line.limit(1).with_for_update(skip_locked=True)


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


def _inputs_settled() -> Any:
    """No data set or model that the job needs is still being checked.

    The checks themselves work on an asset in exactly that state, so they are exempt.
    """
    dataset, model = DatasetRow.__table__.c, ModelRow.__table__.c
    surrogate = ModelRow.__table__.alias().c
    checking = or_(
        *(
            exists().where(asset.id == needed, asset.status == AssetStatus.VALIDATING)
            for asset, needed in (
                (dataset, _JOB.dataset_id),
                (model, _JOB.model_id),
                (surrogate, _JOB.surrogate_id),
            )
        )
    )
    return or_(_JOB.queue == "intake", ~checking)


def _change(
    session: Session, claim: Claim, change: ReturningUpdate[Any], **values: Any
) -> Row[Any]:
    """Change a job that this claim still holds, but not its status; returns its row."""
    held = {"job_id": claim.job_id, "held": claim.attempt, **values}
    row = session.connection().execute(change, held).first()
    if row is None:
        raise ClaimLostError(claim)
    return row


def _move_held(
    session: Session,
    claim: Claim,
    move: "_Move",
    values: dict[str, Any] | None = None,
    event: dict[str, Any] | None = None,
) -> None:
    held = {"job_id": claim.job_id, "held": claim.attempt, **(values or {})}
    if _move(session, move, held, event=lambda _: event or {}) is None:
        raise ClaimLostError(claim)


def _take_back(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    max_lost: int,
    reason: JobError | None = None,
    expired_only: bool = False,
    backoff_s: Sequence[float] = BACKOFF_S,
) -> JobStatus | None:
    """Move a job whose worker died to queued, failed or cancelled; None if it has moved on."""
    job = session.execute(_LOCK, {"job_id": job_id}).first()
    if job is None or (expired_only and not job.expired):
        return None
    mine = {"job_id": job_id, "held": attempt}
    if _move(session, _FINISH_CANCELLED, mine):
        return JobStatus.CANCELLED
    if job.lost + 1 >= max_lost:
        died = JobError(
            "worker_lost",
            f"The process that ran this job died {job.lost + 1} times, so it was given up. "
            "It may need more memory than there is, or crash on its input.",
            retryable=True,
        )
        error = (reason or died).as_json()
        failed = _move(session, _GIVE_UP, {**mine, "why": error}, event=lambda _: error)
        return JobStatus.FAILED if failed else None
    wait_s = backoff_s[min(job.lost, len(backoff_s) - 1)]
    queued = _move(
        session,
        _QUEUE_AGAIN,
        {**mine, "wait_s": wait_s},
        event=lambda _: {"reason": reason.code if reason else "worker_lost"},
    )
    return JobStatus.QUEUED if queued else None


@dataclass(frozen=True)
class _Move:
    """A change of status: the update that makes it of a job that still matches."""

    to: JobStatus
    update: ReturningUpdate[Any]


def _to(to: JobStatus, *where: Any, sources: Collection[JobStatus], **values: Any) -> _Move:
    """A move to one status from any of several."""
    assert all(to in TRANSITIONS[source] for source in sources), f"{sources} -> {to}"
    moved: list[Any] = [_JOB.id, _JOB.attempt, _JOB.last_event]
    if to in TERMINAL:
        heard = exists().where(WebhookRow.tenant == _JOB.tenant)
        moved += [_JOB.tenant, _JOB.kind, _JOB.parent_id, heard.label("heard")]
    return _Move(
        to,
        update(_JOBS)
        .where(_THIS, *where, _any_of(sources))
        .values(status=to, last_event=_JOB.last_event + 1, **values)
        .returning(*moved)
        .execution_options(**BY_KEY),
    )


def _of_held(**values: Any) -> ReturningUpdate[Any]:
    """An update of a job that a claim still holds."""
    return (
        update(_JOBS)
        .where(_THIS, _STILL_HELD, _any_of(WORKED_ON))
        .values(**values)
        .returning(_JOB.status, _JOB.last_event)
        .execution_options(**BY_KEY)
    )


def _any_of(statuses: Collection[JobStatus]) -> Any:
    """Whether a job has one of these, at half the cost of IN, whose text is made at every call."""
    return or_(*(_JOB.status == status for status in sorted(statuses)))


def _move(
    session: Session,
    move: _Move,
    which: dict[str, Any],
    *,
    event: Callable[[Any], dict[str, Any]] = lambda _: {},
) -> Row[Any] | None:
    """Change the status of one row that still matches, with its event; returns the row.

    `which` are the parameters of the update: which row, and what it gets.
    """
    session.flush()
    row = session.connection().execute(move.update, which).first()
    if row is None:
        return None
    _append(session, row.id, row.last_event, str(move.to), event(row))
    if move.to in (JobStatus.FAILED, JobStatus.CANCELLED):
        error = which.get("why")
        _reject_upload(session, row.id, error["message"] if error else "its check was cancelled")
    if move.to in TERMINAL and row.heard:
        webhooks.announce(session, row, move.to)
    session.expire_all()
    return row


def _append(session: Session, job_id: str, seq: int, name: str, data: dict[str, Any]) -> None:
    event = {"job_id": job_id, "seq": seq, "type": name, "data": data}
    session.connection().execute(_EVENT, event)


def _reject_upload(session: Session, job_id: str, reason: str) -> None:
    """An upload whose check ended without a verdict will never be ready."""
    for table in (DatasetRow, ModelRow):
        rejected = session.execute(
            update(table)
            .where(table.job_id == job_id, table.status == AssetStatus.VALIDATING)
            .values(status=AssetStatus.REJECTED, reasons=[reason], upload_sha256=None)
            .returning(table.tenant, table.stored_bytes)
            .execution_options(synchronize_session=False)
        )
        for tenant, size in rejected:
            freed.note(session, tenant, size)


# Statements that run often, built once: to build one takes longer than to run it. A parameter of an
# update has a name that no column has: SQLAlchemy sets the columns that parameters are named after.

_MINE: Any = (bindparam("in_queue", type_=String), bindparam("of_tenant", type_=String))
_READY = (_JOB.not_before <= now(), _inputs_settled())
_TURNS = _turns(_MINE[0])
_COUNTED_TURNS = _turns(_MINE[0], count_up_to=bindparam("count_up_to", type_=Integer))
_HELD = select(_workers_of(*_MINE))
_LINE = _line(*_MINE).where(JobRow.parent_id.is_(None)).limit(MOST_AHEAD)
_BEFORE = _LINE.where(JobRow.id < bindparam("job_id")).subquery()
_AHEAD = select(func.count()).select_from(_BEFORE).scalar_subquery()
_TENANTS = select(JobRow.tenant).where(JobRow.status == JobStatus.QUEUED, JobRow.queue == _MINE[0])
_FIRST = _TENANTS.order_by(JobRow.tenant, JobRow.id).limit(1).scalar_subquery()
_LAST = _TENANTS.order_by(JobRow.tenant.desc(), JobRow.id.desc()).limit(1).scalar_subquery()
_NEXT = _first_free(_line(*_MINE).where(*_READY))
_NEXT_OF_ONLY = _first_free(_line(_MINE[0], _LAST, _FIRST))  # none where several tenants wait
_OTHERS = or_(_MINE[1] > _FIRST, _MINE[1] < _LAST)  # whether other tenants have queued jobs
_PLACE = select(_AHEAD, _OTHERS)

_THIS = _JOB.id == bindparam("job_id")
_STILL_HELD = _JOB.attempt == bindparam("held")
_LEASE_S = bindparam("lease_s", type_=Float)
# Keeps a job as it is while several moves are tried, or none may find it where it was. Of several
# jobs always the older first, so that no two transactions wait for each other.
_LOCK = (
    select(_JOB.lost, (_JOB.lease_expires_at < now()).label("expired"))
    .where(_THIS)
    .with_for_update()
    .execution_options(**BY_KEY)
)
_ENQUEUE = insert(_JOBS).returning(*_JOB).execution_options(**BY_KEY)
_EVENT = insert(cast(Table, JobEventRow.__table__)).execution_options(**BY_KEY)

_RENEW = _of_held(lease_expires_at=now() + _LEASE_S)
_REPORT = _of_held(lease_expires_at=now() + _LEASE_S, progress=bindparam("so_far"))
_RECORD = _of_held(last_event=_JOB.last_event + 1)
_SAVE = _of_held(checkpoint_sha256=bindparam("newest"), checkpoint_epoch=bindparam("after_epoch"))

_CLAIM = _to(
    JobStatus.RUNNING,
    *_READY,
    sources={JobStatus.QUEUED},
    attempt=_JOB.attempt + 1,
    worker=bindparam("by"),
    lease_expires_at=now() + _LEASE_S,
    started_at=func.coalesce(_JOB.started_at, now()),
)
_FREE: dict[str, Any] = {"worker": None, "lease_expires_at": None}
_ENDED = {**_FREE, "finished_at": now()}
_SUCCEED = _to(
    JobStatus.SUCCEEDED,
    _STILL_HELD,
    sources=WORKED_ON,
    result=bindparam("outcome"),
    checkpoint_sha256=None,
    **_ENDED,
)
_FAIL = _to(JobStatus.FAILED, _STILL_HELD, sources=WORKED_ON, error=bindparam("why"), **_ENDED)
_FINISH_CANCELLED = _to(JobStatus.CANCELLED, _STILL_HELD, sources={JobStatus.CANCELLING}, **_ENDED)
_RELEASE = _to(
    JobStatus.QUEUED,
    _STILL_HELD,
    sources={JobStatus.RUNNING},
    not_before=now() + bindparam("wait_s", type_=Float),
    **_FREE,
)
_GIVE_UP = _to(
    JobStatus.FAILED,
    _STILL_HELD,
    sources={JobStatus.RUNNING},
    error=bindparam("why"),
    lost=_JOB.lost + 1,
    **_ENDED,
)
_QUEUE_AGAIN = _to(
    JobStatus.QUEUED,
    _STILL_HELD,
    sources={JobStatus.RUNNING},
    lost=_JOB.lost + 1,
    not_before=now() + bindparam("wait_s", type_=Float),
    **_FREE,
)
_CANCEL = _to(JobStatus.CANCELLED, sources={JobStatus.QUEUED}, finished_at=now())
_ASK_TO_CANCEL = _to(JobStatus.CANCELLING, sources={JobStatus.RUNNING})
