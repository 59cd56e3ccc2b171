"""A queue that is paused, on SQLite and on PostgreSQL: what is taken then, and what is not."""

import threading
import time

import pytest
from sqlalchemy import text

from adap.store import jobs, queues
from adap.store.database import Database
from adap.store.jobs import Claim
from adap.store.queues import QueueState
from adap.store.tables import JobKind, JobRow


def enqueue(database: Database, kind: JobKind = JobKind.TRAIN) -> str:
    with database.writing() as session:
        return jobs.enqueue(session, kind, tenant="t", request={}).id


def take(database: Database, queue: str = "compute") -> Claim | None:
    with database.writing() as session:
        return jobs.claim_next(session, queue, worker="w", lease_s=30)


def pause(database: Database, reason: str | None = None) -> None:
    with database.writing() as session:
        queues.pause(session, "compute", reason=reason)


def resume(database: Database) -> None:
    with database.writing() as session:
        queues.resume(session, "compute")


def states(database: Database) -> dict[str, QueueState]:
    with database.reading() as session:
        return {state.name: state for state in queues.states(session)}


def test_of_a_paused_queue_nothing_is_taken_until_it_is_resumed(database: Database) -> None:
    training, check = enqueue(database), enqueue(database, JobKind.VALIDATE_MODEL)
    pause(database)
    assert take(database) is None
    other = take(database, "intake")
    assert other is not None  # each queue has a pause of its own
    assert other.job_id == check
    resume(database)
    resumed = take(database)
    assert resumed is not None
    assert resumed.job_id == training
    assert resumed.attempt == 1


def test_of_a_queue_that_workers_knew_before_nothing_is_taken_either(database: Database) -> None:
    assert take(database) is None  # and its row is there
    enqueue(database)
    pause(database)
    assert take(database) is None


def test_a_pause_says_since_when_and_why_and_the_last_reason_counts(database: Database) -> None:
    assert states(database)["compute"].paused_at is None
    pause(database, "upgrade")
    first = states(database)["compute"]
    assert first.paused_at is not None
    pause(database, "upgrade, and a new disk")
    again = states(database)["compute"]
    assert again == QueueState("compute", first.paused_at, "upgrade, and a new disk", 0, 0)
    with database.reading() as session:
        said = queues.paused(session)
    assert said == {"compute": "the queue 'compute' is paused: upgrade, and a new disk"}
    resume(database)
    assert states(database)["compute"] == QueueState("compute", None, None, 0, 0)


def test_a_running_audit_takes_its_shards_while_its_queue_is_paused(database: Database) -> None:
    enqueue(database, JobKind.AUDIT)
    audit = take(database)
    assert audit is not None
    with database.writing() as session:
        jobs.add_shards(session, session.get_one(JobRow, audit.job_id), [{}, {}])
    pause(database)
    assert take(database) is None  # no other worker helps it
    with database.writing() as session:
        shard = jobs.claim_shard(session, audit, worker="w", lease_s=30)
    assert shard is not None
    told = states(database)["compute"]
    assert (told.queued, told.held) == (0, 2)  # a shard that waits is part of what runs


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_pause_waits_for_a_claim_that_is_being_made(database: Database) -> None:
    take(database)  # the row of the queue is there, as a worker has looked
    enqueue(database)
    held_at_pause: list[int] = []

    def pause_and_look() -> None:
        pause(database)
        held_at_pause.append(states(database)["compute"].held)

    pausing = threading.Thread(target=pause_and_look)
    try:
        with database.writing() as session:
            assert jobs.claim_next(session, "compute", worker="w", lease_s=30) is not None
            pausing.start()
            while not _somebody_waits(database):
                assert pausing.is_alive(), "the pause did not wait"
                time.sleep(0.01)
        pausing.join()
        assert held_at_pause == [1]  # a drain that looks now sees what was taken last
    finally:
        resume(database)


def _somebody_waits(database: Database) -> bool:
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    with database.reading() as session:
        return bool(session.scalar(waiting))
