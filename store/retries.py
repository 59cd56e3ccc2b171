"""A job that failed or was cancelled, run again: its request as a new job.

The new job takes over what the old one leaves: its place in a sweep, and the checkpoint of a
training. So each place has one job and each checkpoint one owner, which deletes it when it is done
with it; a checkpoint that nobody takes over goes some time after its job has ended.
"""

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from adap.store import jobs, sweeps
from adap.store.database import now
from adap.store.tables import JobEventRow, JobKind, JobRow, JobStatus

REPEATED = ("training_failed", "invalid_config")  # from its checkpoint a job would fail so again


class GoneError(Exception):
    """The job that was to be run again is deleted, as retention had it."""


def retry(session: Session, job: JobRow) -> JobRow:
    """The new job, with an event that tells what it took over; ring for it after the commit.

    `job` has failed or was cancelled. Raises sweeps.NoPlaceError for a trial whose place in its
    sweep is not to be had, and GoneError where the job is deleted meanwhile.
    """
    place = sweeps.place(session, job) if job.kind == JobKind.TRAIN else None
    held = select(JobRow.id).where(JobRow.id == job.id).with_for_update()  # after its sweep's row
    if session.scalar(held) is None:  # until the commit nobody deletes what `retry_of` names
        raise GoneError
    new = jobs.enqueue(
        session,
        job.kind,
        tenant=job.tenant,
        request=job.request,
        dataset_id=job.dataset_id,
        model_id=job.model_id,
        surrogate_id=job.surrogate_id,
        retry_of=job.id,
    )
    told: dict[str, Any] = {"of": job.id}
    if place is not None:
        place.job_id = new.id
        told |= {"sweep_id": place.sweep_id, "trial": place.number}
    if job.kind == JobKind.TRAIN:
        told |= _take_checkpoint(session, job, new)
    new.last_event += 1
    session.add(JobEventRow(job_id=new.id, seq=new.last_event, type="retry", data=told))
    session.flush()
    return new


def _take_checkpoint(session: Session, job: JobRow, new: JobRow) -> dict[str, Any]:
    """Go on from the checkpoint if that may help; tells after which epoch, or why from none."""
    if job.error is not None and job.error["code"] in REPEATED:
        return {"epoch": 0, "reason": job.error["code"]}
    session.refresh(job, with_for_update=True)  # of two retries one has it
    if job.checkpoint_sha256 is None or job.checkpoint_epoch is None:
        return {"epoch": 0, "reason": "no_checkpoint"}
    new.checkpoint_sha256, new.checkpoint_epoch = job.checkpoint_sha256, job.checkpoint_epoch
    job.checkpoint_sha256 = None
    new.progress = {
        "phase": "training",
        "completed": new.checkpoint_epoch,
        "total": job.request["epochs"],
        "unit": "epochs",
        "eta_s": None,
    }
    return {"epoch": new.checkpoint_epoch}


def forget_checkpoints(session: Session, *, older_s: float) -> None:
    """Let go of the checkpoints of jobs that ended this long ago; then they are garbage."""
    session.execute(
        update(JobRow)
        .where(
            JobRow.status.in_((JobStatus.FAILED, JobStatus.CANCELLED)),
            JobRow.finished_at < now() - older_s,
            JobRow.checkpoint_sha256.is_not(None),
        )
        .values(checkpoint_sha256=None)
    )
