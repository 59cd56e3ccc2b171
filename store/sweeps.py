"""Sweeps and their trials. Each trial is an ordinary job: what happens to it, happens to the job.

A trial's row and its job are written in one transaction, under the lock of the sweep's row, so each
number is made once, whoever makes it; nothing else has to be remembered, and no trial can be lost.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, literal, select
from sqlalchemy.orm import Session

from adap.store import jobs
from adap.store.database import now
from adap.store.ids import new_id
from adap.store.tables import LIVE, JobKind, JobRow, JobStatus, SweepRow, TrialRow


class NoPlaceError(Exception):
    """A trial cannot be run again in its sweep; the message says why, and what to do."""


def create(
    session: Session,
    *,
    tenant: str,
    name: str | None,
    request: dict[str, Any],
    planned: int,
    **columns: str | None,
) -> SweepRow:
    """A sweep without trials; `columns` are the rows that its jobs refer to."""
    sweep = SweepRow(
        id=new_id("swp"),
        tenant=tenant,
        name=name,
        request=request,
        planned=planned,
        made=0,
        **columns,
    )
    session.add(sweep)
    session.flush()
    return sweep


def add_trial(
    session: Session, sweep: SweepRow, *, parameters: dict[str, Any], request: dict[str, Any]
) -> JobRow:
    """The next trial of a sweep that this transaction has made or locked; ring for its job."""
    assert sweep.made < sweep.planned
    job = jobs.enqueue(
        session,
        JobKind.TRAIN,
        tenant=sweep.tenant,
        request=request,
        dataset_id=sweep.dataset_id,
        model_id=sweep.model_id,
    )
    session.add(
        TrialRow(sweep_id=sweep.id, number=sweep.made, job_id=job.id, parameters=parameters)
    )
    sweep.made += 1
    session.flush()
    return job


def lock(session: Session, sweep_id: str) -> SweepRow | None:
    """The row as it is now, with every other transaction that wants to change it waiting.

    None where it was deleted before the lock was had: all of its trials have ended then.
    """
    return session.get(SweepRow, sweep_id, with_for_update=True, populate_existing=True)


def trials(session: Session, sweep_id: str) -> Sequence[tuple[TrialRow, JobRow]]:
    """The trials in order, with their jobs."""
    query = (
        select(TrialRow, JobRow)
        .join(JobRow, JobRow.id == TrialRow.job_id)
        .where(TrialRow.sweep_id == sweep_id)
        .order_by(TrialRow.number)
    )
    return [(trial, job) for trial, job in session.execute(query)]


def counts(session: Session, sweep_id: str) -> dict[JobStatus, int]:
    """How many trials are in each status."""
    query = (
        select(JobRow.status, func.count().label("trials"))
        .join(TrialRow, TrialRow.job_id == JobRow.id)
        .where(TrialRow.sweep_id == sweep_id)
        .group_by(JobRow.status)
    )
    return {row.status: row.trials for row in session.execute(query)}


def unfinished(session: Session) -> Sequence[str]:
    """The sweeps that have trials still to be made, oldest first."""
    return session.scalars(
        select(SweepRow.id).where(SweepRow.unfinished).order_by(SweepRow.id)
    ).all()


def sweep_of(session: Session, job_id: str) -> str | None:
    """The sweep that a job is a trial of."""
    return session.scalar(select(TrialRow.sweep_id).where(TrialRow.job_id == job_id))


def place(session: Session, job: JobRow) -> TrialRow | None:
    """The place of a job in a sweep, for the job that will have it from now on; None outside.

    None, too, where the sweep is deleted while its lock is waited for.

    Locks the sweep. Raises NoPlaceError where another job has the place, or nobody shall have it.
    """
    later = select(literal(job.id).label("id")).cte(recursive=True)  # the job and its retries
    later = later.union_all(select(JobRow.id).where(JobRow.retry_of == later.c.id))
    query = select(TrialRow).where(TrialRow.job_id.in_(select(later.c.id)))
    trial = session.scalar(query)
    if trial is None:
        return None
    sweep = lock(session, trial.sweep_id)
    if sweep is None:
        return None
    session.refresh(trial)
    if trial.job_id != job.id:
        raise NoPlaceError(
            f"The job {trial.job_id} runs trial {trial.number} of the sweep {sweep.id} in place of "
            f"{job.id} already: retry that one."
        )
    if sweep.cancelled_at is not None:
        raise NoPlaceError(
            f"The sweep {sweep.id}, whose trial {trial.number} this was, is cancelled: to train "
            "outside of it, send the job's request to /v1/training-jobs."
        )
    return trial


def cancel(session: Session, sweep_id: str) -> bool:
    """Make no more trials and cancel those that have not ended; False if all had ended already."""
    sweep = lock(session, sweep_id)
    if sweep is None:
        return False
    live = [job.id for _, job in trials(session, sweep_id) if job.status in LIVE]
    if not live and not sweep.unfinished:
        return False
    if sweep.cancelled_at is None:
        sweep.cancelled_at = session.scalar(now().select())
    session.flush()
    for job_id in live:
        jobs.request_cancel(session, job_id)
    return True
