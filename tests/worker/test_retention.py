"""A worker lets go of what is old, where its settings say so."""

from sqlalchemy import select, update

from adap.store import jobs
from adap.store.tables import ChoreRow, JobKind, JobRow
from tests.worker.conftest import Plant

DAY_S = 86400


def test_a_worker_forgets_old_jobs_and_results_where_it_is_told_to(plant: Plant) -> None:
    audit, young = (plant.enqueue(JobKind.AUDIT, {}) for _ in range(2))
    with plant.database.writing() as session:
        for job_id in (audit, young):
            claim = jobs.claim(session, job_id, worker="w", lease_s=30)
            assert claim is not None
            jobs.succeed(session, claim, {"blobs": {}, "ap": 0.5})
        for job_id, days in ((audit, 31), (young, 11)):
            session.execute(
                update(JobRow)
                .where(JobRow.id == job_id)
                .values(finished_at=JobRow.finished_at - days * DAY_S, result_bytes=7)
            )
        session.add(ChoreRow(name="garbage", due_at=0.0))  # it is due
    kept = {"ADAP_JOBS_KEPT_S": str(30 * DAY_S), "ADAP_RESULTS_KEPT_S": str(10 * DAY_S)}
    plant.start_worker("intake", **kept)

    def left() -> list[str]:
        with plant.database.reading() as session:
            return list(session.scalars(select(JobRow.id)))

    plant.wait(lambda: left() == [young], because="the old job is gone")
    assert plant.read(young).result == {"ap": 0.5}
