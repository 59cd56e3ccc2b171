"""Retention: old jobs and old files of results go, where an operator has said so; off by default.

A job goes with its events, its shards and what webhooks were told of it, and so does its place in
lists and on the leaderboard. What something else refers to stays: a job whose data set or model is
there, a job that was retried, one of which a webhook is still to be told. A sweep goes as a whole,
once each of its trials would go: until then all of them stay.
"""

from collections.abc import Collection, Iterator

from sqlalchemy import ColumnElement, Select, delete, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from adap.store import results
from adap.store.database import Database, now
from adap.store.tables import (
    TERMINAL,
    DatasetRow,
    DeliveryRow,
    DeliveryStatus,
    JobEventRow,
    JobFileRow,
    JobRow,
    ModelRow,
    SweepRow,
    TrialRow,
)

AT_ONCE = 50  # jobs in one transaction: it holds the writers of SQLite up

Clock = float | ColumnElement[float]


def forget_jobs(database: Database, *, older_s: float, at: Clock | None = None) -> int:
    """Delete the jobs that ended this long before `at`, by default now; returns how many.

    Sweeps come first: their trials are then jobs as any other.
    """
    old = _ended_before(older_s, at)
    for ids in _in_batches(database, _sweeps_of(old), SweepRow.id):
        _dissolve(database, ids, old)
    free = old.where(_unneeded(), JobRow.id.not_in(select(TrialRow.job_id)))
    return sum(_forget(database, ids) for ids in _in_batches(database, free, JobRow.id))


def forget_files(database: Database, *, older_s: float, at: Clock | None = None) -> int:
    """Let go of the files that jobs made which ended this long before `at`; the figures stay.

    Returns of how many jobs. The files themselves go with the garbage.
    """
    forgotten = 0
    with_files = _ended_before(older_s, at).where(JobRow.result_bytes.is_not(None))
    for ids in _in_batches(database, with_files, JobRow.id):
        with database.writing() as session:
            results.remove(session, JobRow.id.in_(ids))
        forgotten += len(ids)
    return forgotten


def _ended_before(older_s: float, at: Clock | None) -> Select[str]:
    """Jobs, without shards, that have ended this long ago."""
    return select(JobRow.id).where(
        JobRow.status.in_(TERMINAL),
        JobRow.parent_id.is_(None),
        JobRow.finished_at < (now() if at is None else at) - older_s,
    )


def _sweeps_of(old: Select[str]) -> Select[str]:
    """Sweeps that make no more trials, of which each is one of these old jobs that nobody needs."""
    staying = select(TrialRow.job_id).where(
        TrialRow.sweep_id == SweepRow.id, TrialRow.job_id.not_in(old.where(_unneeded()))
    )
    return select(SweepRow.id).where(~SweepRow.unfinished, ~staying.exists())


def _unneeded() -> ColumnElement[bool]:
    """Whether no row that stays, but for the trial that it may be, refers to a job."""
    needed: tuple[Select[str | None] | Select[str], ...] = (
        *(
            select(asset.job_id).where(asset.job_id.is_not(None), asset.deleted_at.is_(None))
            for asset in (DatasetRow, ModelRow)
        ),
        select(JobRow.retry_of).where(JobRow.retry_of.is_not(None)),
        select(DeliveryRow.job_id).where(DeliveryRow.status == DeliveryStatus.PENDING),
    )
    return ~or_(*map(JobRow.id.in_, needed))


def _in_batches(
    database: Database, query: Select[str], by: InstrumentedAttribute[str]
) -> Iterator[Collection[str]]:
    """What a query finds, some at a time and each once, whatever becomes of it meanwhile."""
    last = ""
    while True:
        with database.reading() as session:
            page = query.where(by > last).order_by(by).limit(AT_ONCE)
            ids = session.scalars(page).all()
        if not ids:
            return
        yield ids
        last = ids[-1]


def _dissolve(database: Database, ids: Collection[str], old: Select[str]) -> None:
    """Delete these sweeps, and leave their trials as jobs, but where one came to be needed since.

    Whoever runs a trial again or makes one holds the row of its sweep, and is waited for.
    """
    with database.writing() as session:
        held = select(SweepRow.id).where(SweepRow.id.in_(ids)).order_by(SweepRow.id)
        session.execute(held.with_for_update())
        going = session.scalars(_sweeps_of(old).where(SweepRow.id.in_(ids))).all()
        session.execute(delete(TrialRow).where(TrialRow.sweep_id.in_(going)))
        session.execute(delete(SweepRow).where(SweepRow.id.in_(going)))


def _forget(database: Database, ids: Collection[str]) -> int:
    """Delete these jobs, but for what has come to refer to one since it was looked at.

    Whoever makes a row that refers to one holds it, and is waited for.
    """
    with database.writing() as session:
        held = select(JobRow.id).where(JobRow.id.in_(ids)).order_by(JobRow.id)
        session.execute(held.with_for_update())
        # another statement, which sees what was committed while the locks were waited for
        free = _unneeded() & JobRow.id.not_in(select(TrialRow.job_id))
        going = session.scalars(held.where(free)).all()
        shards = session.scalars(select(JobRow.id).where(JobRow.parent_id.in_(going))).all()
        for table in (JobEventRow, JobFileRow, DeliveryRow):
            session.execute(delete(table).where(table.job_id.in_([*going, *shards])))
        session.execute(delete(JobRow).where(JobRow.id.in_(shards)))
        session.execute(delete(JobRow).where(JobRow.id.in_(going)))
    return len(going)
