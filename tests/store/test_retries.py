"""Retries, on both databases: a place in a sweep has one job, a checkpoint one owner."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select

from adap.store import jobs, retries, sweeps
from adap.store.blobs import FolderBlobs
from adap.store.database import Database
from adap.store.garbage import collect
from adap.store.jobs import JobError
from adap.store.tables import JobEventRow, JobKind, JobRow, SweepRow, TrialRow
from tests.postgres import until_somebody_waits
from tests.store.test_jobs import must_claim, read
from tests.store.test_sweeps import make
from tests.store.test_sweeps import read as statuses

LOST = JobError("worker_lost", "It died.", retryable=True)


def fail(database: Database, job_id: str, error: JobError = LOST, sha256: str = "") -> None:
    """End a job in failure, after three epochs where it has a checkpoint."""
    held = must_claim(database, job_id)
    with database.writing() as session:
        if sha256:
            jobs.save_checkpoint(session, held, sha256, epoch=3)
        jobs.fail(session, held, error)


def train(database: Database) -> str:
    with database.writing() as session:
        return jobs.enqueue(session, JobKind.TRAIN, tenant="local", request={"epochs": 8}).id


def retry(database: Database, job_id: str) -> tuple[JobRow, dict[str, Any]]:
    """The new job, and what its event tells."""
    with database.writing() as session:
        new = retries.retry(session, session.get_one(JobRow, job_id))
    with database.reading() as session:
        events = session.scalars(select(JobEventRow).where(JobEventRow.job_id == new.id)).all()
    assert [(event.seq, event.type) for event in events] == [(1, "queued"), (2, "retry")]
    return new, events[1].data


def first_trial(database: Database, sweep_id: str) -> str:
    with database.reading() as session:
        return sweeps.trials(session, sweep_id)[0][1].id


def test_a_retry_takes_the_place_of_its_trial_once(database: Database) -> None:
    sweep_id = make(database, planned=2, made=2)
    first = first_trial(database, sweep_id)
    fail(database, first)
    second, told = retry(database, first)
    assert told == {"of": first, "sweep_id": sweep_id, "trial": 0, "epoch": 0} | {
        "reason": "no_checkpoint"
    }
    assert statuses(database, sweep_id) == [(0, "queued"), (1, "queued")]
    fail(database, second.id)
    third, _ = retry(database, second.id)
    assert first_trial(database, sweep_id) == third.id
    for earlier in (first, second.id):
        with pytest.raises(sweeps.NoPlaceError, match=f"{third.id} runs trial 0"):
            retry(database, earlier)


def test_of_many_retries_at_once_one_has_the_place(database: Database) -> None:
    sweep_id = make(database, made=1)
    first = first_trial(database, sweep_id)
    fail(database, first)

    def one(_: int) -> str | None:
        try:
            return retry(database, first)[0].id
        except sweeps.NoPlaceError:
            return None

    with ThreadPoolExecutor(6) as pool:
        (won,) = filter(None, pool.map(one, range(6)))
    assert first_trial(database, sweep_id) == won


def test_a_trial_of_a_cancelled_sweep_is_not_run_again(database: Database) -> None:
    sweep_id = make(database, made=1)
    with database.writing() as session:
        sweeps.cancel(session, sweep_id)
    with pytest.raises(sweeps.NoPlaceError, match="is cancelled"):
        retry(database, first_trial(database, sweep_id))
    assert statuses(database, sweep_id) == [(0, "cancelled")]


def test_a_checkpoint_goes_to_the_first_retry(database: Database) -> None:
    job_id, sha256 = train(database), "a" * 64
    fail(database, job_id, sha256=sha256)
    new, told = retry(database, job_id)
    assert told == {"of": job_id, "epoch": 3}
    assert (new.checkpoint_sha256, new.checkpoint_epoch) == (sha256, 3)
    assert new.progress is not None
    assert (new.progress["completed"], new.progress["total"]) == (3, 8)
    assert read(database, job_id).checkpoint_sha256 is None
    other, told = retry(database, job_id)
    assert (other.checkpoint_sha256, other.progress) == (None, None)
    assert told == {"of": job_id, "epoch": 0, "reason": "no_checkpoint"}


@pytest.mark.parametrize("code", retries.REPEATED)
def test_what_a_checkpoint_would_repeat_is_begun_anew(database: Database, code: str) -> None:
    job_id = train(database)
    fail(database, job_id, JobError(code, "The loss is NaN."), sha256="a" * 64)
    new, told = retry(database, job_id)
    assert told == {"of": job_id, "epoch": 0, "reason": code}
    assert (new.checkpoint_sha256, new.progress) == (None, None)


def test_a_checkpoint_is_kept_for_a_while_and_then_garbage(
    database: Database, tmp_path: Path
) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    (tmp_path / "file").write_bytes(b"weights")
    sha256 = blobs.put(tmp_path / "file")
    fail(database, train(database), sha256=sha256)
    for older_s, left in ((3600, True), (0, False)):
        with database.writing() as session:
            retries.forget_checkpoints(session, older_s=older_s)
        collect(database, blobs, grace_s=-1)
        assert (blobs.root / sha256[:2] / sha256).exists() is left


def test_a_retry_that_waited_while_its_sweep_went_is_a_job_of_its_own(postgres: Database) -> None:
    sweep_id = make(postgres, planned=1, made=1)
    first = first_trial(postgres, sweep_id)
    fail(postgres, first)
    with ThreadPoolExecutor(1) as pool:
        with postgres.writing() as session:
            sweeps.lock(session, sweep_id)
            session.execute(delete(TrialRow).where(TrialRow.sweep_id == sweep_id))
            session.execute(delete(SweepRow).where(SweepRow.id == sweep_id))
            again = pool.submit(retry, postgres, first)
            until_somebody_waits(postgres, again)
        new, told = again.result()
    assert (new.retry_of, told) == (first, {"of": first, "epoch": 0, "reason": "no_checkpoint"})


def test_a_retry_that_waited_while_its_job_went_says_so(postgres: Database) -> None:
    first = train(postgres)
    fail(postgres, first)
    with ThreadPoolExecutor(1) as pool:
        with postgres.writing() as session:
            session.execute(delete(JobEventRow).where(JobEventRow.job_id == first))
            session.execute(delete(JobRow).where(JobRow.id == first))
            again = pool.submit(retry, postgres, first)
            until_somebody_waits(postgres, again)
        with pytest.raises(retries.GoneError):
            again.result()
