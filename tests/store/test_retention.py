"""What goes when it is old and what stays, on both databases; the clock is a value."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select

from adap.store import jobs, retention, retries, sweeps
from adap.store.database import Database
from adap.store.ids import new_id
from adap.store.tables import (
    AssetStatus,
    DeliveryRow,
    DeliveryStatus,
    JobEventRow,
    JobFileRow,
    JobKind,
    JobRow,
    ModelRow,
    SweepRow,
    TrialRow,
    WebhookRow,
)
from tests.postgres import until_somebody_waits
from tests.store.test_jobs import must_claim, read
from tests.store.test_retries import fail, retry, train
from tests.store.test_sweeps import make

DAY_S = 86400.0
FILES = {"report": "a" * 64, "scores": "b" * 64}


def ended(database: Database, kind: JobKind = JobKind.AUDIT, **columns: Any) -> str:
    """A job that has succeeded with two files."""
    with database.writing() as session:
        job_id = jobs.enqueue(session, kind, tenant="local", request={}, **columns).id
    held = must_claim(database, job_id)
    with database.writing() as session:
        jobs.succeed(session, held, {"blobs": FILES, "ap": 0.5})
        session.get_one(JobRow, job_id).result_bytes = 7
    return job_id


def after(database: Database, job_id: str, days: float) -> float:
    """The clock so many days after the end of a job."""
    finished = read(database, job_id).finished_at
    assert finished is not None
    return finished + days * DAY_S


def forget(database: Database, job_id: str, *, days: float = 31) -> int:
    """Forget jobs of thirty days, so many days after this one has ended."""
    at = after(database, job_id, days)
    return retention.forget_jobs(database, older_s=30 * DAY_S, at=at)


def trials_of(database: Database, sweep_id: str) -> list[str]:
    with database.reading() as session:
        return [job.id for _, job in sweeps.trials(session, sweep_id)]


def count(database: Database, table: type[Any]) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_an_old_job_goes_with_its_shards_events_and_files_and_a_young_one_stays(
    database: Database,
) -> None:
    old = ended(database)
    shard = ended(database, JobKind.AUDIT_SHARD, parent_id=old, shard=0)
    assert forget(database, old, days=29) == 0
    assert read(database, shard).parent_id == old
    assert forget(database, old) == 1
    for table in (JobRow, JobEventRow, JobFileRow):
        assert count(database, table) == 0


def test_what_has_not_ended_is_never_old(database: Database) -> None:
    waiting, running = train(database), train(database)
    must_claim(database, running)
    done = ended(database)
    assert forget(database, done, days=10_000) == 1
    assert read(database, waiting).id == waiting
    assert read(database, running).id == running


def test_more_jobs_than_one_batch_all_go(database: Database) -> None:
    *_, last = (ended(database) for _ in range(retention.AT_ONCE + 1))
    assert forget(database, last) == retention.AT_ONCE + 1
    assert count(database, JobRow) == 0


def test_a_job_that_made_a_model_stays_until_the_model_is_removed(database: Database) -> None:
    made_it = ended(database, JobKind.TRAIN)
    model = ModelRow(
        id=new_id("mdl"), tenant="local", name="m", status=AssetStatus.READY, job_id=made_it
    )
    with database.writing() as session:
        session.add(model)
    assert forget(database, made_it) == 0
    with database.writing() as session:
        session.get_one(ModelRow, model.id).deleted_at = 1.0
    assert forget(database, made_it) == 1


def test_a_sweep_goes_with_its_trials_once_all_of_them_would_go(database: Database) -> None:
    sweep = make(database, made=2, planned=2)
    first, second = trials_of(database, sweep)
    fail(database, first)
    assert forget(database, first) == 0, "the second has not ended"
    fail(database, second)
    assert forget(database, second, days=29) == 0
    assert trials_of(database, sweep) == [first, second]
    assert forget(database, second) == 2
    for table in (SweepRow, TrialRow, JobRow, JobEventRow):
        assert count(database, table) == 0


def test_a_sweep_that_makes_more_trials_stays_with_those_that_ended(database: Database) -> None:
    sweep = make(database, made=1, planned=2)
    (trial,) = trials_of(database, sweep)
    fail(database, trial)
    assert forget(database, trial) == 0
    with database.writing() as session:
        session.get_one(SweepRow, sweep).cancelled_at = 1.0
    assert forget(database, trial) == 1
    assert count(database, SweepRow) == 0


def test_a_sweep_stays_while_a_model_of_one_trial_is_there(database: Database) -> None:
    sweep = make(database, made=2, planned=2)
    first, second = trials_of(database, sweep)
    model = ModelRow(
        id=new_id("mdl"), tenant="local", name="m", status=AssetStatus.READY, job_id=first
    )
    with database.writing() as session:
        session.add(model)
    for trial in (first, second):
        fail(database, trial)
    assert forget(database, second) == 0
    assert trials_of(database, sweep) == [first, second]
    with database.writing() as session:
        session.get_one(ModelRow, model.id).deleted_at = 1.0
    assert forget(database, second) == 2
    assert count(database, SweepRow) == 0


def test_a_trial_that_was_run_again_goes_with_its_sweep(database: Database) -> None:
    sweep = make(database, made=1, planned=1)
    (trial,) = trials_of(database, sweep)
    fail(database, trial)
    second, _ = retry(database, trial)
    assert forget(database, trial) == 0
    fail(database, second.id)
    assert forget(database, second.id) == 1  # it refers to the first, which goes the next time
    assert forget(database, trial) == 1
    for table in (SweepRow, TrialRow, JobRow):
        assert count(database, table) == 0


def test_a_job_that_was_retried_stays_as_long_as_its_retry(database: Database) -> None:
    first = train(database)
    fail(database, first)
    second, _ = retry(database, first)
    assert forget(database, first) == 0
    fail(database, second.id)
    assert forget(database, second.id) == 1  # nothing refers to the retry
    assert forget(database, first) == 1


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_job_that_is_retried_while_it_would_go_stays(database: Database) -> None:
    first = train(database)
    fail(database, first)
    with ThreadPoolExecutor(1) as pool:
        with database.writing() as session:
            second = retries.retry(session, session.get_one(JobRow, first)).id
            forgotten = pool.submit(forget, database, first)
            until_somebody_waits(database, forgotten)
        assert forgotten.result() == 0
    assert read(database, second).retry_of == read(database, first).id


def test_a_job_stays_until_its_webhooks_were_told(database: Database) -> None:
    done = ended(database)
    hook = WebhookRow(id=new_id("whk"), tenant="local", url="https://a.example", events=[], key="k")
    told = DeliveryRow(
        id=new_id("msg"), webhook_id=hook.id, job_id=done, event="job.succeeded", payload="{}"
    )
    with database.writing() as session:
        session.add(hook)
        session.flush()
        session.add(told)
    assert forget(database, done) == 0
    with database.writing() as session:
        session.get_one(DeliveryRow, told.id).status = DeliveryStatus.DELIVERED
    assert forget(database, done) == 1
    assert count(database, DeliveryRow) == 0


def test_of_old_results_the_files_go_and_the_figures_stay(database: Database) -> None:
    done = ended(database)
    for days, forgotten in ((29, 0), (31, 1), (31, 0)):
        at = after(database, done, days)
        assert retention.forget_files(database, older_s=30 * DAY_S, at=at) == forgotten
    job = read(database, done)
    assert (job.result, job.result_bytes) == ({"ap": 0.5}, None)
    assert count(database, JobFileRow) == 0
