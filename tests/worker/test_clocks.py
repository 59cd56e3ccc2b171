"""Workers whose clocks are hours wrong: leases go by the database's clock."""

import time
from pathlib import Path

import pytest

from adap.store.database import now
from adap.store.tables import JobStatus
from tests.worker.conftest import Plant, plant_on

LEASE_S = 10.0
HOURS_S = 3 * 3600.0
# read by Python when it starts, in the worker and in all that it starts
WRONG_CLOCK = """
import os, sys, time

right, right_ns, shift = time.time, time.time_ns, float(os.environ["TEST_CLOCK_SHIFT_S"])
time.time = lambda: right() + shift
time.time_ns = lambda: right_ns() + int(shift * 1e9)
sys.stderr.write(f"clock {time.time():.0f}\\n")
"""


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    folder = tmp_path / "wrong"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WRONG_CLOCK)
    return folder


def clock_of(plant: Plant, number: int) -> float:
    """What time a worker believed it was when it started."""
    (first, *_) = (line for line in plant.log_of(number).splitlines() if line.startswith("clock "))
    return float(first.split()[1])


def test_workers_whose_clocks_are_wrong_take_keep_and_inherit_jobs(
    tmp_path: Path, wrong: Path, postgres_url: str
) -> None:
    with plant_on(tmp_path, database_url=postgres_url) as plant:
        run_jobs_with_wrong_clocks(plant, wrong)


def run_jobs_with_wrong_clocks(plant: Plant, wrong: Path) -> None:
    def start(shift_s: float) -> None:
        plant.start_worker(
            PYTHONPATH=str(wrong), TEST_CLOCK_SHIFT_S=str(shift_s), ADAP_LEASE_S=str(LEASE_S)
        )

    kept, inherited = (plant.train(plant.dataset(), epochs=epochs) for epochs in (2, 1000))
    start(HOURS_S)
    plant.wait(lambda: plant.read(kept).status == JobStatus.RUNNING)
    start(-HOURS_S)
    plant.wait(lambda: plant.read(inherited).status == JobStatus.RUNNING)
    with plant.database.reading() as session:
        told = session.scalar(now().select()) or 0.0
    for job in (kept, inherited):
        lease = plant.read(job).lease_expires_at
        assert lease is None or 0 < lease - told < LEASE_S + 5
    assert clock_of(plant, 0) == pytest.approx(time.time() + HOURS_S, abs=300)
    assert clock_of(plant, 1) == pytest.approx(time.time() - HOURS_S, abs=300)
    row = plant.wait_done(kept)
    assert (row.status, row.attempt, row.lost) == (JobStatus.SUCCEEDED, 1, 0)
    assert row.started_at is not None
    assert row.finished_at is not None
    assert 0 < row.finished_at - row.started_at < 300

    plant.wait_epoch(inherited, 1)
    before = plant.read(inherited)
    (owner,) = (n for n in (0, 1) if f":{plant.processes[n].pid}:" in (before.worker or ""))
    killed = time.monotonic()
    plant.processes[owner].kill()
    plant.wait(lambda: plant.read(inherited).attempt == 2)
    assert time.monotonic() - killed < LEASE_S + 30  # its back-off of a second included
    assert plant.read(inherited).lost == 1
