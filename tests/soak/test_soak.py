"""The shortest soak: every part is killed once while jobs run, and nothing is lost.

`make soak` does the same for hours, on PostgreSQL and S3 too. It goes from state to state: a slow
machine makes it longer, and nothing else.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adap.store import jobs
from adap.store.database import Database
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.tables import JobKind
from tests.soak.__main__ import Length, Soak
from tests.soak.ground import Ground, ground
from tests.store.test_jobs import must_claim


@pytest.mark.slow
def test_each_part_is_killed_once_while_jobs_run_and_nothing_is_lost(tmp_path: Path) -> None:
    with ground("sqlite+folder", tmp_path) as on:
        run = Soak(on, seed=1, length=Length(rounds=1))
        row = run.run()
        assert run.faults == [], row
        assert run.happened == dict.fromkeys(("api", "broker", "child", "compute", "intake"), 1)


@pytest.mark.parametrize("ever", [False, True], ids=["no job ever runs", "the last job ends"])
def test_rounds_in_which_nothing_runs_any_more_end_with_a_fault(tmp_path: Path, ever: bool) -> None:
    settings = Settings(home=tmp_path)
    database = Database(settings)
    migrate(database)
    with database.writing() as session:
        job_id = jobs.enqueue(session, JobKind.AUDIT, tenant="local", request={}).id
    held = must_claim(database, job_id) if ever else None

    def come_too_late(_: float) -> bool:
        assert held is not None
        with database.writing() as session:
            jobs.succeed(session, held, {})
        return False

    on = Ground(settings, database, "http://127.0.0.1:9", {}, {"child": come_too_late})
    run = Soak(on, seed=1, length=Length(rounds=1, patience_s=0.3))
    with ThreadPoolExecutor(1) as pool:
        assert run.disturb(pool) == []
    assert run.faults == ["waited 0.3 s in vain until a job runs"]
    for tenant in run.tenants:
        tenant.client.http.close()
    database.dispose()
