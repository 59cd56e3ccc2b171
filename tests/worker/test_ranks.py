"""Trainings on several devices, here processes on the cores of one machine, by a real worker."""

import os
import subprocess
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from adap.store import jobs
from adap.store.tables import JobStatus
from tests.worker.conftest import Plant, descendants, still_alive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores"),
]


def ranks_of(worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The further processes of the training that runs."""
    found = []
    for process in descendants(worker):
        try:
            if "adap.worker.pipelines.ranks" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_killed_rank_ends_all_and_the_training_goes_on_from_its_checkpoint(plant: Plant) -> None:
    dataset = plant.dataset()
    # CE without BatchNorm and few steps: what is left of rounding in float32 stays small
    alike = {"method": "ce", "architecture": "thin_cnn", "epochs": 12}
    alone = plant.train(dataset, **alike)
    worker = plant.start_worker()
    reference = plant.wait_done(alone)
    for _ in range(10):  # a training this short may end before its rank is killed
        shared = plant.train(dataset, devices=2, **alike)
        plant.wait_epoch(shared, 2)
        for rank in ranks_of(worker):
            rank.kill()
        finished = plant.wait_done(shared)
        if finished.attempt > 1:
            break
    assert finished.status == JobStatus.SUCCEEDED, finished.error
    assert finished.attempt == 2
    events = plant.events(shared)
    assert next(data["epoch"] for name, data in events if name == "resumed") >= 1
    assert finished.result is not None
    weights = [load_file(plant.model_path(job)) for job in (reference, finished)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=2e-3)
    plant.wait(lambda: not ranks_of(worker))


def test_cancel_stops_all_ranks_within_seconds(plant: Plant) -> None:
    job = plant.train(plant.dataset(), epochs=1000, devices=2)
    worker = plant.start_worker()
    plant.wait_epoch(job, 1)
    ranks = ranks_of(worker)
    assert len(ranks) == 1
    started = time.monotonic()
    with plant.database.writing() as session:
        jobs.request_cancel(session, job)
    assert plant.wait_done(job, timeout_s=5).status == JobStatus.CANCELLED
    assert time.monotonic() - started < 5
    assert not still_alive(ranks, after_s=5)


def test_more_devices_than_there_are_fail_before_any_step(plant: Plant) -> None:
    job = plant.train(plant.dataset(), devices=64, batch_size=64)
    plant.start_worker()
    failed = plant.wait_done(job)
    assert failed.status == JobStatus.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "invalid_config"
    there = len(os.sched_getaffinity(0))
    assert failed.error["message"] == (
        f"expected at most {there} devices, the CPU cores of this worker, got 64"
    )
