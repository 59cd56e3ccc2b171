"""Training on a disk that becomes full: the last good checkpoint stays, and the work goes on."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sqlalchemy.exc import OperationalError

from adap.store.artifacts import open_blobs
from adap.store.tables import JobKind, JobStatus
from tests.disk import fill, make_room, small_disk
from tests.standstill import suspend
from tests.worker.conftest import Plant, children_that_work, plant_on


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", mib=32) as folder:
        yield folder


def names(plant: Plant, job: str) -> list[str]:
    return [name for name, _ in plant.events(job)]


def kept_epoch(plant: Plant, job: str) -> int:
    """The epoch of the checkpoint that the job would go on from."""
    sha256 = plant.read(job).checkpoint_sha256
    assert sha256 is not None
    path = open_blobs(plant.settings).local_path(sha256)
    return int(torch.load(path, weights_only=True)["epoch"])


def test_a_training_goes_on_without_a_checkpoint_and_fails_without_room_for_its_weights(
    tmp_path: Path, disk: Path
) -> None:
    with plant_on(disk, database_url=f"sqlite:///{tmp_path / 'adap.db'}") as plant:
        run_out_of_room_twice(plant, disk)


def fill_between_checkpoints(plant: Plant, disk: Path) -> None:
    """Fill the disk while the child stands still, and its worker has kept all that it was sent."""
    (child,) = children_that_work(plant.processes[0])

    def settled() -> bool:
        """Whether there are the data set and one checkpoint, and nothing on its way."""
        moving = list((plant.settings.home / "work").glob("*/*/checkpoint-*"))
        return not moving and len(list((plant.settings.home / "blobs").glob("??/*"))) == 2

    suspend(child)
    while not settled():
        child.resume()  # it may have been in the middle of one
        time.sleep(0.05)
        suspend(child)
        time.sleep(0.2)
    fill(disk, but=64 * 1024)
    child.resume()


def run_out_of_room_twice(plant: Plant, disk: Path) -> None:
    dataset = plant.dataset()
    job = plant.train(dataset, epochs=100)
    plant.start_worker(ADAP_MAX_STORAGE_ATTEMPTS="1")
    plant.wait_epoch(job, 1)
    fill_between_checkpoints(plant, disk)
    plant.wait(lambda: names(plant, job).count("checkpoint_not_kept") >= 2)
    before = kept_epoch(plant, job)
    assert before < names(plant, job).count("epoch")
    plant.wait(lambda: list((plant.settings.home / "blobs").glob("*.part")) == [])
    make_room(disk)
    plant.wait(
        lambda: (plant.read(job).checkpoint_epoch or 0) > before, because="there is room again"
    )
    fill_between_checkpoints(plant, disk)
    row = plant.wait_done(job)
    assert (row.status, row.attempt) == (JobStatus.FAILED, 1)
    assert row.error is not None
    assert (row.error["code"], row.error["retryable"]) == ("disk_full", True)
    assert "no room" in row.error["message"]
    assert names(plant, job).count("epoch") == 100
    assert kept_epoch(plant, job) > before
    (work,) = (plant.settings.home / "work").iterdir()
    assert list(work.iterdir()) == []
    make_room(disk)
    again = plant.wait_done(plant.train(dataset, epochs=1))
    assert again.status == JobStatus.SUCCEEDED, again.error


def test_a_database_without_room_is_waited_for(disk: Path) -> None:
    """Not a byte is left: nothing can be noted, not even that the worker lives."""
    with plant_on(disk) as plant:
        run_out_of_all_room(plant, disk)


def enqueue_many(plant: Plant) -> None:
    for _ in range(10_000):
        plant.enqueue(JobKind.RANK, {})


def run_out_of_all_room(plant: Plant, disk: Path) -> None:
    job = plant.train(plant.dataset(), epochs=200)
    plant.start_worker(ADAP_LEASE_S="300")  # however long it takes to write the rest full
    plant.wait_epoch(job, 2)
    fill(disk)
    with pytest.raises(OperationalError):
        enqueue_many(plant)
    time.sleep(1)  # the worker finds out for itself; its log has no room either
    make_room(disk)
    row = plant.wait_done(job)
    assert (row.status, row.lost) == (JobStatus.SUCCEEDED, 0), row.error
    assert row.attempt == 1, "the worker waited"
    assert sorted({data["epoch"] for name, data in plant.events(job) if name == "epoch"}) == [
        *range(1, 201)
    ]
