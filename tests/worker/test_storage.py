"""Jobs while the store of files is away, cannot be written, or has lost something."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from adap.store.artifacts import open_blobs
from adap.store.storage import MISSING, UNAVAILABLE
from adap.store.tables import TERMINAL, JobRow, JobStatus
from tests.disk import remount, small_disk
from tests.s3 import Line, bucket_of
from tests.standstill import suspend
from tests.worker.conftest import Plant, children_that_work, plant_on


@pytest.fixture(params=["sqlite", "postgres"])
def far(
    request: pytest.FixtureRequest, line: Line, s3_endpoint: str, tmp_path: Path
) -> Iterator[Plant]:
    """A plant whose files lie in a bucket at the end of a line."""
    of_bucket = bucket_of(s3_endpoint) | {"ADAP_S3_ENDPOINT": line.endpoint}
    named = {name.removeprefix("ADAP_").lower(): value for name, value in of_bucket.items()}
    if request.param == "postgres":
        named["database_url"] = request.getfixturevalue("postgres_url")
    with plant_on(tmp_path / "home", **named) as plant:
        plant.environment |= of_bucket
        yield plant


def names(plant: Plant, job: str) -> list[str]:
    return [name for name, _ in plant.events(job)]


def reasons(plant: Plant, job: str) -> list[str]:
    """Why the job was queued again, each time."""
    return [data["reason"] for name, data in plant.events(job) if name == "queued" and data]


@pytest.mark.parametrize("mode", ["reset", "hang", "slow"])
def test_a_training_goes_on_through_an_outage_of_the_store(
    far: Plant, line: Line, mode: str
) -> None:
    job = far.train(far.dataset(), epochs=4)
    far.start_worker(ADAP_BLOBS_LIMIT_S="1")
    far.wait_epoch(job, 1)
    line.be(mode)
    if mode == "slow":
        before = line.passed
        far.wait(lambda: line.passed > before + 20_000 or far.read(job).status in TERMINAL)
    else:
        far.wait(
            lambda: "blobs.away" in far.log_of(0) or far.read(job).status in TERMINAL,
            because="the worker noticed",
        )
    line.be("open")
    row = far.wait_done(job)
    assert (row.status, row.attempt, row.lost) == (JobStatus.SUCCEEDED, 1, 0), row.error
    assert names(far, job).count("epoch") == 4


def test_an_outage_that_outlasts_a_lease_gives_the_job_back_unharmed(
    far: Plant, line: Line
) -> None:
    job = far.train(far.dataset(), epochs=1)
    line.be("reset")
    far.start_worker(ADAP_LEASE_S="10")
    far.wait(lambda: UNAVAILABLE in reasons(far, job), because="given back")
    line.be("open")
    row = far.wait_done(job)
    assert row.status == JobStatus.SUCCEEDED, row.error


def test_a_training_whose_checkpoint_is_lost_begins_again_and_says_so(plant: Plant) -> None:
    epochs = 40  # enough for it not to end before it is suspended
    job = plant.train(plant.dataset(), epochs=epochs)
    first = plant.start_worker()
    plant.wait_epoch(job, 3)
    held = children_that_work(first)
    suspend(*held)
    first.kill()
    first.wait()
    for child in held:  # it would stand still for ever
        child.kill()
    plant.end_leases(first)
    checkpoint = plant.read(job).checkpoint_sha256
    assert checkpoint is not None
    open_blobs(plant.settings).delete(checkpoint)
    plant.start_worker()
    row = plant.wait_done(job)
    assert row.status == JobStatus.SUCCEEDED, row.error
    assert "checkpoint_lost" in names(plant, job)
    after = names(plant, job)[names(plant, job).index("checkpoint_lost") :]
    assert after.count("epoch") == epochs


def test_a_job_whose_data_are_lost_says_so_and_succeeds_once_they_are_back(plant: Plant) -> None:
    dataset = plant.dataset()
    blobs = plant.settings.home / "blobs"
    plant.start_worker()
    blobs.rename(blobs.with_name("elsewhere"))
    blobs.mkdir()
    row = plant.wait_done(plant.train(dataset, epochs=1))
    assert row.error is not None
    assert (row.error["code"], row.error["retryable"]) == (MISSING, True)
    blobs.rmdir()
    blobs.with_name("elsewhere").rename(blobs)
    row = plant.wait_done(plant.train(dataset, epochs=1))
    assert row.status == JobStatus.SUCCEEDED, row.error


def test_a_disk_that_cannot_be_written_is_tried_again_later(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", mib=32) as disk,
        plant_on(tmp_path / "home", blobs_url=str(disk)) as plant,
    ):
        plant.environment["ADAP_BLOBS_URL"] = str(disk)
        job = plant.train(plant.dataset(), epochs=1)
        remount(disk, "ro")
        plant.start_worker()
        plant.wait(lambda: UNAVAILABLE in reasons(plant, job), because="queued again")
        assert "checkpoint_not_kept" in names(plant, job)
        remount(disk, "rw")
        with plant.database.writing() as session:
            session.execute(update(JobRow).values(not_before=0))
        row = plant.wait_done(job)
        assert (row.status, row.lost) == (JobStatus.SUCCEEDED, 1), row.error
