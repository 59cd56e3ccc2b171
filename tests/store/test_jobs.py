"""The job state machine, on SQLite and on PostgreSQL."""

import contextlib
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from adap.store import jobs
from adap.store.database import Database, now
from adap.store.ids import new_id
from adap.store.jobs import TRANSITIONS, Claim, ClaimLostError, JobError
from adap.store.tables import (
    TERMINAL,
    AssetStatus,
    DatasetRow,
    JobEventRow,
    JobKind,
    JobRow,
    JobStatus,
    ModelRow,
)

ERROR = JobError("boom", "It went wrong.")


def enqueue(database: Database, kind: JobKind = JobKind.TRAIN, **columns: Any) -> str:
    with database.writing() as session:
        return jobs.enqueue(session, kind, tenant="local", request={}, **columns).id


def claim(
    database: Database, job_id: str, *, worker: str = "w", lease_s: float = 30
) -> Claim | None:
    with database.writing() as session:
        return jobs.claim(session, job_id, worker=worker, lease_s=lease_s)


def must_claim(database: Database, job_id: str, *, lease_s: float = 30) -> Claim:
    claimed = claim(database, job_id, lease_s=lease_s)
    assert claimed is not None
    return claimed


def read(database: Database, job_id: str) -> JobRow:
    with database.reading() as session:
        return session.get_one(JobRow, job_id)


def events(database: Database, job_id: str) -> list[tuple[int, str]]:
    with database.reading() as session:
        rows = session.scalars(
            select(JobEventRow).where(JobEventRow.job_id == job_id).order_by(JobEventRow.seq)
        )
        return [(row.seq, row.type) for row in rows]


def force(database: Database, job_id: str, **columns: Any) -> None:
    with database.writing() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(**columns))


# one way to each status, tried from every status
MOVES = {
    JobStatus.RUNNING: lambda s, c: jobs.claim(s, c.job_id, worker="w", lease_s=30),
    JobStatus.SUCCEEDED: lambda s, c: jobs.succeed(s, c, {}),
    JobStatus.FAILED: lambda s, c: jobs.fail(s, c, ERROR),
    JobStatus.CANCELLED: lambda s, c: jobs.finish_cancelled(s, c),
    JobStatus.CANCELLING: lambda s, c: jobs.request_cancel(s, c.job_id),
    JobStatus.QUEUED: lambda s, c: jobs.release(s, c),
}


@pytest.mark.parametrize(
    ("source", "target"), list(itertools.product(JobStatus, JobStatus)), ids=str
)
def test_exactly_the_moves_of_the_table_succeed(
    database: Database, source: JobStatus, target: JobStatus
) -> None:
    job_id = enqueue(database)
    held = must_claim(database, job_id)
    force(database, job_id, status=source)
    before = events(database, job_id)
    try:
        with database.writing() as session:
            MOVES[target](session, held)
    except ClaimLostError:
        pass
    after = read(database, job_id)
    allowed = target in TRANSITIONS[source]
    if source == JobStatus.QUEUED and target == JobStatus.CANCELLED:
        # a queued job is cancelled by the request itself, not by a worker that has lost it
        assert after.status == source
    elif source == JobStatus.QUEUED and target == JobStatus.CANCELLING:
        assert after.status == JobStatus.CANCELLED
    else:
        assert after.status == (target if allowed else source)
    assert len(events(database, job_id)) == len(before) + (after.status != source)


def test_a_job_leaves_one_event_a_move_without_gaps(database: Database) -> None:
    job_id = enqueue(database)
    held = must_claim(database, job_id)
    with database.writing() as session:
        jobs.record(session, held, "epoch", {"epoch": 1})
    with database.writing() as session:
        jobs.succeed(session, held, {"answer": 42})
    assert events(database, job_id) == [
        (1, "queued"),
        (2, "running"),
        (3, "epoch"),
        (4, "succeeded"),
    ]
    row = read(database, job_id)
    assert row.result == {"answer": 42}
    assert row.finished_at is not None
    assert row.created_at <= (row.started_at or 0) <= row.finished_at


def test_of_many_claimers_one_wins(database: Database) -> None:
    waiting = [enqueue(database) for _ in range(10)]
    with ThreadPoolExecutor(8) as pool:
        attempts = [
            pool.submit(claim, database, job_id, worker=str(n))
            for job_id in waiting
            for n in range(8)
        ]
        winners = [held for future in attempts if (held := future.result()) is not None]
    assert sorted(held.job_id for held in winners) == sorted(waiting)


def test_a_worker_taken_for_dead_writes_nothing(database: Database) -> None:
    job_id = enqueue(database)
    zombie = must_claim(database, job_id, lease_s=-1)
    with database.writing() as session:
        assert jobs.take_back_expired(session, max_lost=3) == [job_id]
    force(database, job_id, not_before=0.0)
    second = must_claim(database, job_id)
    assert second.attempt == 2
    for write in (
        lambda s: jobs.renew(s, zombie, lease_s=30),
        lambda s: jobs.record(s, zombie, "epoch", {}),
        lambda s: jobs.save_checkpoint(s, zombie, "0" * 64, epoch=1),
        lambda s: jobs.succeed(s, zombie, {"from": "zombie"}),
        lambda s: jobs.fail(s, zombie, ERROR),
        lambda s: jobs.release(s, zombie),
        lambda s: jobs.lose(s, zombie, max_lost=3),
    ):
        with pytest.raises(ClaimLostError), database.writing() as session:
            write(session)
    with database.writing() as session:
        jobs.succeed(session, second, {"from": "second"})
    assert read(database, job_id).result == {"from": "second"}


def test_a_renewed_lease_is_not_taken_back(database: Database) -> None:
    job_id = enqueue(database)
    held = must_claim(database, job_id, lease_s=-1)
    with database.writing() as session:
        assert jobs.renew(session, held, lease_s=30, progress={"completed": 1}) == "running"
        assert jobs.take_back_expired(session, max_lost=3) == []
    assert read(database, job_id).progress == {"completed": 1}


def test_a_job_whose_worker_dies_waits_longer_each_time_and_then_fails(database: Database) -> None:
    job_id = enqueue(database)
    pauses = []
    for _ in range(2):
        held = must_claim(database, job_id)
        with database.writing() as session:
            jobs.lose(session, held, max_lost=3)
        assert claim(database, job_id) is None, "claimed during the back-off"
        with database.reading() as session:
            pauses.append(
                session.get_one(JobRow, job_id).not_before - session.scalar(select(now()))
            )
        force(database, job_id, not_before=0.0)
    assert 0 < pauses[0] < pauses[1]
    held = must_claim(database, job_id)
    with database.writing() as session:
        jobs.lose(session, held, max_lost=3)
    row = read(database, job_id)
    assert row.status == JobStatus.FAILED
    assert row.error is not None
    assert row.error["code"] == "worker_lost"
    assert "3 times" in row.error["message"]


def test_a_job_that_is_given_up_says_what_stood_in_its_way(database: Database) -> None:
    job_id = enqueue(database)
    reason = jobs.JobError("device_error", "the device failed", retryable=True)
    for _ in range(2):
        held = must_claim(database, job_id)
        with database.writing() as session:
            jobs.lose(session, held, max_lost=2, reason=reason)
        force(database, job_id, not_before=0.0)
    row = read(database, job_id)
    assert (row.status, row.error) == (JobStatus.FAILED, reason.as_json())


def test_a_release_is_not_counted_as_a_loss(database: Database) -> None:
    job_id = enqueue(database)
    for _ in range(5):
        held = must_claim(database, job_id)
        with database.writing() as session:
            jobs.release(session, held)
    row = read(database, job_id)
    assert (row.status, row.lost, row.attempt) == (JobStatus.QUEUED, 0, 5)


def test_cancelling_a_queued_job_ends_it_at_once(database: Database) -> None:
    job_id = enqueue(database)
    with database.writing() as session:
        assert jobs.request_cancel(session, job_id) == JobStatus.CANCELLED
    assert claim(database, job_id) is None
    with database.writing() as session:
        assert jobs.request_cancel(session, job_id) is None


def test_cancelling_a_running_job_is_told_to_its_worker(database: Database) -> None:
    job_id = enqueue(database)
    held = must_claim(database, job_id)
    with database.writing() as session:
        assert jobs.request_cancel(session, job_id) == JobStatus.CANCELLING
    with database.writing() as session:
        assert jobs.renew(session, held, lease_s=30) == JobStatus.CANCELLING
        jobs.finish_cancelled(session, held)
    assert read(database, job_id).status == JobStatus.CANCELLED


def test_a_job_that_was_being_cancelled_when_its_worker_died_is_cancelled(
    database: Database,
) -> None:
    job_id = enqueue(database)
    must_claim(database, job_id, lease_s=-1)
    with database.writing() as session:
        jobs.request_cancel(session, job_id)
        assert jobs.take_back_expired(session, max_lost=3) == []
    assert read(database, job_id).status == JobStatus.CANCELLED


RACES = 200


def test_cancel_and_success_race_to_exactly_one_end(database: Database) -> None:
    """Hundreds of races of a client that cancels with the worker that ends the job in its way."""
    ends: dict[str, tuple[JobStatus, ...]] = {
        "succeed": (JobStatus.SUCCEEDED,),
        "fail": (JobStatus.FAILED,),
        "release": (JobStatus.CANCELLED, JobStatus.CANCELLING),
        "lose": (JobStatus.CANCELLED,),
    }

    def cancel(job_id: str) -> None:
        with database.writing() as session:
            jobs.request_cancel(session, job_id)

    def end(held: Claim, how: str) -> None:
        with contextlib.suppress(ClaimLostError), database.writing() as session:
            match how:
                case "succeed":
                    jobs.succeed(session, held, {})
                case "fail":
                    jobs.fail(session, held, ERROR)
                case "release":
                    jobs.release(session, held)
                case "lose":
                    jobs.lose(session, held, max_lost=9)

    random = Random(0)
    with ThreadPoolExecutor(6) as pool:
        with database.writing() as session:
            made = [
                jobs.enqueue(session, JobKind.TRAIN, tenant="local", request={}).id
                for _ in range(RACES)
            ]
            races = {
                claimed: random.choice(list(ends))
                for job_id in made
                if (claimed := jobs.claim(session, job_id, worker="w", lease_s=30))
            }
        calls = [(cancel, (held.job_id,)) for held in races] + [
            (end, (held, how)) for held, how in races.items()
        ]
        random.shuffle(calls)
        for future in [pool.submit(call, *arguments) for call, arguments in calls]:
            future.result()
    seen = set()
    for held, how in races.items():
        row = read(database, held.job_id)
        assert row.status in ends[how], how
        terminal = [name for _, name in events(database, held.job_id) if name in TERMINAL]
        assert terminal == ([row.status] if row.status in TERMINAL else []), how
        seen.add((how, row.status))
    assert len(seen) >= 4


def add_dataset(session: Session, status: AssetStatus) -> DatasetRow:
    row = DatasetRow(id=new_id("ds"), tenant="local", name="d", status=status)
    session.add(row)
    session.flush()
    return row


def test_a_job_waits_until_its_data_set_is_checked(database: Database) -> None:
    with database.writing() as session:
        dataset_id = add_dataset(session, AssetStatus.VALIDATING).id
    waiting = enqueue(database, dataset_id=dataset_id)
    checking = enqueue(database, JobKind.VALIDATE_DATASET, dataset_id=dataset_id)
    assert claim(database, waiting) is None
    with database.writing() as session:
        assert jobs.claim_next(session, "compute", worker="w", lease_s=60) is None
        taken = jobs.claim_next(session, "intake", worker="w", lease_s=60)
        assert taken is not None
        assert taken.job_id == checking
    with database.writing() as session:
        session.get_one(DatasetRow, dataset_id).status = AssetStatus.READY
    assert claim(database, waiting) is not None


@pytest.mark.parametrize("end", ["fail", "cancel", "lose"])
def test_an_upload_whose_check_ends_without_verdict_is_rejected(
    database: Database, end: str
) -> None:
    with database.writing() as session:
        model = ModelRow(id=new_id("mdl"), tenant="local", name="m", status=AssetStatus.VALIDATING)
        session.add(model)
        session.flush()
        job = jobs.enqueue(
            session, JobKind.VALIDATE_MODEL, tenant="local", request={}, model_id=model.id
        )
        model.job_id = job.id
    held = must_claim(database, job.id)
    with database.writing() as session:
        if end == "fail":
            jobs.fail(session, held, ERROR)
        elif end == "lose":
            jobs.lose(session, held, max_lost=1)
        else:
            jobs.request_cancel(session, job.id)
            jobs.finish_cancelled(session, held)
    with database.reading() as session:
        after = session.get_one(ModelRow, model.id)
    assert after.status == AssetStatus.REJECTED
    assert after.reasons


def test_shards_are_made_once_and_cancelled_with_their_audit(database: Database) -> None:
    audit_id = enqueue(database, JobKind.AUDIT)
    held = must_claim(database, audit_id)
    for _ in range(2):
        with database.writing() as session:
            jobs.add_shards(session, session.get_one(JobRow, audit_id), [{"n": 0}, {"n": 1}])
    with database.writing() as session:
        first = jobs.claim_shard(session, held, worker="w", lease_s=30)
        assert first is not None
        jobs.request_cancel(session, audit_id)
    with database.reading() as session:
        shards = session.scalars(
            select(JobRow).where(JobRow.parent_id == audit_id).order_by(JobRow.shard)
        ).all()
    assert [shard.status for shard in shards] == [JobStatus.CANCELLING, JobStatus.CANCELLED]


def test_queue_position_counts_what_is_ahead(database: Database) -> None:
    ids = [enqueue(database) for _ in range(3)]
    enqueue(database, JobKind.VALIDATE_DATASET)  # another queue
    with database.reading() as session:
        rows = [session.get_one(JobRow, job_id) for job_id in ids]
        assert [jobs.queue_position(session, row) for row in rows] == [0, 1, 2]
    must_claim(database, ids[0])
    with database.reading() as session:
        rows = [session.get_one(JobRow, job_id) for job_id in ids]
        assert [jobs.queue_position(session, row) for row in rows] == [None, 0, 1]


def test_a_clock_that_is_set_back_holds_no_job_for_longer_than_a_lease(database: Database) -> None:
    alive, dead, waits = (enqueue(database) for _ in range(3))
    held = must_claim(database, alive, lease_s=30)
    must_claim(database, dead, lease_s=30)
    in_hours = time.time() + 3 * 3600  # when it was written the clock was three hours ahead
    force(database, alive, lease_expires_at=in_hours)
    force(database, dead, lease_expires_at=in_hours)
    force(database, waits, not_before=in_hours)
    with database.writing() as session:
        jobs.cut_leases(session, lease_s=-2)  # as if a lease had passed since
        jobs.renew(session, held, lease_s=30)
        jobs.cut_waits(session)
        assert jobs.take_back_expired(session, max_lost=3) == [dead]
    assert read(database, alive).status == JobStatus.RUNNING
    assert read(database, waits).not_before < time.time() + jobs.MOST_BACKOFF_S + 60


def test_leases_are_held_by_the_databases_clock(database: Database) -> None:
    with database.reading() as session:
        told = session.scalar(select(now()))
    assert told == pytest.approx(time.time(), abs=5)
