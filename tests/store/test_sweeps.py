"""Sweeps in real databases: each trial is made once, whoever makes it, and none is lost."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import delete

from adap.store import jobs, sweeps
from adap.store.database import Database
from adap.store.ids import new_id
from adap.store.tables import AssetStatus, DatasetRow, JobKind, JobRow, JobStatus, SweepRow
from tests.postgres import until_somebody_waits


def make(database: Database, *, planned: int = 4, made: int = 0) -> str:
    """A sweep with its first trials."""
    with database.writing() as session:
        dataset = DatasetRow(id=new_id("ds"), tenant="local", name="set", status=AssetStatus.READY)
        session.add(dataset)
        session.flush()
        sweep = sweeps.create(
            session,
            tenant="local",
            name=None,
            request={"any": 1},
            dataset_id=dataset.id,
            planned=planned,
        )
        for number in range(made):
            sweeps.add_trial(session, sweep, parameters={"seed": number}, request={"n": number})
        return sweep.id


def read(database: Database, sweep_id: str) -> list[tuple[int, str]]:
    with database.reading() as session:
        statuses = [job.status for _, job in sweeps.trials(session, sweep_id)]
        assert sweeps.counts(session, sweep_id) == Counter(statuses)
        return [(trial.number, job.status.value) for trial, job in sweeps.trials(session, sweep_id)]


def test_trials_are_jobs_in_order(database: Database) -> None:
    sweep_id = make(database, made=3)
    with database.reading() as session:
        found = sweeps.trials(session, sweep_id)
        sweep = session.get_one(SweepRow, sweep_id)
        assert [(trial.number, trial.parameters) for trial, _ in found] == [
            (0, {"seed": 0}),
            (1, {"seed": 1}),
            (2, {"seed": 2}),
        ]
        for number, (_, job) in enumerate(found):
            assert (job.kind, job.status, job.request) == (
                JobKind.TRAIN,
                JobStatus.QUEUED,
                {"n": number},
            )
            assert (job.tenant, job.dataset_id) == (sweep.tenant, sweep.dataset_id)
            assert sweeps.sweep_of(session, job.id) == sweep_id
        assert sweeps.sweep_of(session, new_id("job")) is None


def test_a_sweep_is_unfinished_until_its_last_trial_is_made(database: Database) -> None:
    sweep_id = make(database, planned=2, made=1)
    with database.writing() as session:
        assert sweeps.unfinished(session) == [sweep_id]
        assert session.get_one(SweepRow, sweep_id).unfinished
        sweeps.add_trial(session, sweeps.lock(session, sweep_id), parameters={}, request={})
    with database.reading() as session:
        assert sweeps.unfinished(session) == []
        assert not session.get_one(SweepRow, sweep_id).unfinished


def test_many_who_make_the_next_trial_at_once_make_each_once(database: Database) -> None:
    sweep_id = make(database, planned=12)

    def one(_: int) -> int:
        with database.writing() as session:
            sweep = sweeps.lock(session, sweep_id)
            if not sweep.unfinished:
                return 0
            sweeps.add_trial(session, sweep, parameters={}, request={})
            return 1

    with ThreadPoolExecutor(6) as pool:
        made = sum(pool.map(one, range(30)))
    assert made == 12
    assert read(database, sweep_id) == [(number, "queued") for number in range(12)]


def test_a_trial_that_is_not_committed_leaves_no_job(database: Database) -> None:
    sweep_id = make(database, made=1)

    def fail() -> None:
        with database.writing() as session:
            sweeps.add_trial(session, sweeps.lock(session, sweep_id), parameters={}, request={})
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with database.reading() as session:
        assert len(session.query(JobRow).all()) == 1
        assert session.get_one(SweepRow, sweep_id).made == 1


def test_cancelling_ends_what_lives_and_makes_no_more(database: Database) -> None:
    sweep_id = make(database, planned=4, made=3)
    with database.writing() as session:
        (_, first), (_, second), _ = sweeps.trials(session, sweep_id)
        done = jobs.claim(session, first.id, worker="w", lease_s=30)
        running = jobs.claim(session, second.id, worker="w", lease_s=30)
        assert done is not None
        assert running is not None
        jobs.succeed(session, done, {})
        assert sweeps.cancel(session, sweep_id)
    assert read(database, sweep_id) == [(0, "succeeded"), (1, "cancelling"), (2, "cancelled")]
    with database.reading() as session:
        assert sweeps.unfinished(session) == []
    with database.writing() as session:
        assert sweeps.cancel(session, sweep_id), "a trial is still stopping"
        jobs.finish_cancelled(session, running)
        assert not sweeps.cancel(session, sweep_id)


def test_a_data_set_is_in_use_while_trials_are_still_to_be_made(database: Database) -> None:
    sweep_id = make(database, planned=2, made=1)

    def in_use() -> bool:
        with database.reading() as session:
            return jobs.uses(session, session.get_one(SweepRow, sweep_id).dataset_id)

    with database.writing() as session:
        ((_, job),) = sweeps.trials(session, sweep_id)
        jobs.request_cancel(session, job.id)
    assert in_use(), "between two trials"
    with database.writing() as session:
        assert sweeps.cancel(session, sweep_id)
    assert not in_use()


def test_what_is_stored_comes_back(database: Database) -> None:
    parameters: dict[str, Any] = {"method.lambda": 0.1, "method": {"name": "ce"}, "x": [1, None]}
    sweep_id = make(database)
    with database.writing() as session:
        sweeps.add_trial(session, sweeps.lock(session, sweep_id), parameters=parameters, request={})
    with database.reading() as session:
        ((trial, _),) = sweeps.trials(session, sweep_id)
        assert trial.parameters == parameters


def test_who_cancels_a_sweep_while_it_goes_finds_that_all_has_ended(postgres: Database) -> None:
    sweep_id = make(postgres, planned=1, made=0)

    def cancel() -> bool:
        with postgres.writing() as session:
            session.get_one(SweepRow, sweep_id)  # as it was before the lock is waited for
            return sweeps.cancel(session, sweep_id)

    with ThreadPoolExecutor(1) as pool:
        with postgres.writing() as session:
            session.execute(delete(SweepRow).where(SweepRow.id == sweep_id))
            cancelled = pool.submit(cancel)
            until_somebody_waits(postgres, cancelled)
        assert cancelled.result() is False
