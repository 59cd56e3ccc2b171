"""Workers under fire: real processes, really killed. Every job ends once, with one result."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from sqlalchemy import delete, select, update

from adap.core.config.audits import AuditRequest
from adap.core.config.rankings import RankingRequest
from adap.core.datasets import ImageSet
from adap.core.scores import Scores, load_scores, save_scores
from adap.store import jobs, retries
from adap.store.artifacts import open_blobs
from adap.store.tables import (
    TERMINAL,
    DatasetRow,
    JobEventRow,
    JobKind,
    JobRow,
    JobStatus,
    ModelRow,
    ScoresRow,
)
from adap.worker.app import make_app
from adap.worker.intake import summarise
from tests.standstill import suspend
from tests.worker.conftest import (
    Plant,
    broker,
    children_that_work,
    descendants,
    kill_children,
    plant_on,
    ringing,
    same_weights,
    still_alive,
)


def resume(*family: psutil.Process) -> None:
    """Let processes go on; one may be ended by its parent before its own turn comes."""
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.resume()


def freeze(process: subprocess.Popen[bytes], plant: Plant) -> list[psutil.Process]:
    """Stop a worker and its children, at a moment when it does not hold SQLite's write lock."""
    connection = sqlite3.connect(plant.settings.home / "adap.db", timeout=0.2)
    while True:
        family = descendants(process)
        suspend(*family)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            resume(*family)
            time.sleep(0.1)
        else:
            connection.rollback()
            connection.close()
            return family


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """A home with a worker that nobody harms, for what comes of jobs when nothing happens."""
    with plant_on(tmp_path_factory.mktemp("busy")) as made:
        made.start_worker()
        yield made


def test_a_killed_training_goes_on_elsewhere_to_the_same_weights(plant: Plant) -> None:
    dataset = plant.dataset()
    whole = plant.train(dataset, epochs=30)
    killed = plant.train(dataset, epochs=30)
    first = plant.start_worker()
    reference = plant.wait_done(whole)
    plant.wait_epoch(killed, 2)
    first.kill()
    assert plant.read(killed).status == JobStatus.RUNNING, "it ended before it could be killed"
    plant.end_leases(first)
    plant.start_worker()
    plant.wait(lambda: "worker.started" in plant.log_of(1))
    started = time.monotonic()
    finished = plant.wait_done(killed)
    assert finished.status == JobStatus.SUCCEEDED, finished.error
    assert time.monotonic() - started < 49
    events = plant.events(killed)
    epochs = [data["epoch"] for name, data in events if name == "epoch"]
    assert sorted(set(epochs)) == [*range(1, 31)]
    assert len(epochs) <= 31, "more than the epoch in hand was done again"
    assert next(data["epoch"] for name, data in events if name == "resumed") >= 1
    assert same_weights(plant.model_path(reference), plant.model_path(finished))
    assert finished.attempt == 2
    assert finished.checkpoint_sha256 is None, "checkpoints go when the job has ended"


def test_kills_at_random_moments_never_change_the_weights(plant: Plant) -> None:
    """Five trainings that are the same, in whose midst a process is killed five times.

    While one waits to be tried again the next one runs, which a late kill may hit too.
    """
    dataset, random = plant.dataset(), Random(4)
    worker = plant.start_worker(ADAP_MAX_LOST_ATTEMPTS="9")
    for _ in range(2):  # the first waits until torch is loaded
        whole = plant.wait_done(plant.train(dataset, epochs=8))
    assert whole.started_at is not None
    assert whole.finished_at is not None
    lasts_s = whole.finished_at - whole.started_at
    queued = [plant.train(dataset, epochs=8) for _ in range(5)]
    for job in queued:
        plant.wait_epoch(job, random.randrange(6))
        plant.wait(lambda job=job: plant.read(job).status != JobStatus.QUEUED)
        time.sleep(random.uniform(0, lasts_s / 8))
        kill_children(worker)
    rows = [plant.wait_done(job) for job in queued]
    for row in rows:
        assert row.status == JobStatus.SUCCEEDED, row.error
        assert same_weights(plant.model_path(whole), plant.model_path(row))
    assert sum(row.lost for row in rows) >= 2, "too few of the kills came in time"


def test_a_killed_training_of_all_classes_with_everything_on_goes_on_to_the_same_weights(
    plant: Plant,
) -> None:
    dataset = plant.dataset()
    everything: dict[str, Any] = {
        "task": {"each": True},
        "method": "adap_lz",
        "epochs": 20,
        "ema": 0.9,
        "optimizer": {"name": "sgd", "nesterov": True, "lr": 0.01},
        "validation": {"patience": 20},
    }
    plant.start_worker()
    source = (plant.wait_done(plant.train(dataset, method="ce")).result or {})["model_id"]
    # from a model of one logit, so with a fresh last layer
    everything["warm_start"] = {"model_id": source, "fresh_head": True}
    whole = plant.train(dataset, model_id=source, **everything)
    reference = plant.wait_done(whole)
    assert reference.status == JobStatus.SUCCEEDED, reference.error
    killed = plant.train(dataset, model_id=source, **everything)
    plant.wait_epoch(killed, 2)
    plant.processes[0].kill()
    assert plant.read(killed).status == JobStatus.RUNNING, "it ended before it could be killed"
    plant.end_leases(plant.processes[0])
    plant.start_worker()
    finished = plant.wait_done(killed)
    assert finished.status == JobStatus.SUCCEEDED, finished.error
    assert "resumed" in [name for name, _ in plant.events(killed)]
    assert same_weights(plant.model_path(reference), plant.model_path(finished))


def test_retries_go_on_from_what_failed_and_was_cancelled_to_the_same_weights(plant: Plant) -> None:
    dataset = plant.dataset()
    worker = plant.start_worker(ADAP_MAX_LOST_ATTEMPTS="1")
    reference = plant.wait_done(plant.train(dataset, epochs=40))

    def retry(job: str) -> tuple[str, int]:
        with plant.database.writing() as session:
            new = retries.retry(session, session.get_one(JobRow, job)).id
        return new, dict(plant.events(new))["retry"]["epoch"]

    failed = plant.train(dataset, epochs=40)
    plant.wait_epoch(failed, 2)
    kill_children(worker)
    error = plant.wait_done(failed).error
    assert error is not None
    assert error["code"] == "worker_lost", "it ended before its process could be killed"
    cancelled, first = retry(failed)
    plant.wait_epoch(cancelled, 2)
    with plant.database.writing() as session:
        assert jobs.request_cancel(session, cancelled) == JobStatus.CANCELLING
    assert plant.wait_done(cancelled).status == JobStatus.CANCELLED
    last, second = retry(cancelled)
    finished = plant.wait_done(last)
    assert finished.status == JobStatus.SUCCEEDED, finished.error
    assert 1 <= first < second < 40
    assert [dict(plant.events(job))["resumed"]["epoch"] for job in (cancelled, last)] == [
        first,
        second,
    ]
    assert [data["epoch"] for name, data in plant.events(last) if name == "epoch"] == list(
        range(second + 1, 41)
    )
    assert same_weights(plant.model_path(reference), plant.model_path(finished))
    assert {plant.read(job).checkpoint_sha256 for job in (failed, cancelled, last)} == {None}
    kept = {plant.model_path(job).name for job in (reference, finished)}

    def others() -> set[str]:
        return {path.name for path in (plant.settings.home / "blobs").glob("??/*")} - kept

    plant.wait(lambda: len(others()) == 1, because="the data set, and no checkpoint")


def test_an_epoch_is_told_with_its_figures_and_what_is_left(busy: Plant) -> None:
    job = busy.wait_done(busy.train(busy.dataset(), epochs=3))
    told = [data for name, data in busy.events(job.id) if name == "epoch"]
    assert [data["epoch"] for data in told] == [1, 2, 3]
    for data in told:
        assert data["lr"] > 0
        assert 0 < data["metrics"]["surrogate_ap"] < 1
        assert 0 < data["robust_ap"] <= data["clean_ap"] <= 1
        assert data["images_per_s"] > 0
    assert [data["eta_s"] > 0 for data in told] == [True, True, False]


def test_a_training_that_no_epoch_improves_ends_early_and_says_so(busy: Plant) -> None:
    # No step worth the name; BatchNorm's statistics alone move, and the AP with them at first.
    still = {"name": "sgd", "lr": 1e-9, "momentum": 0.0}
    queued = busy.train(
        busy.dataset(), method="ce", epochs=500, optimizer=still, validation={"patience": 3}
    )
    job = busy.wait_done(queued)
    assert job.status == JobStatus.SUCCEEDED, job.error
    summary = (job.result or {})["summary"]
    assert summary["stopped_early"]
    done, best = len(summary["history"]), summary["best"]["epoch"]
    assert done == best + 3 < 500
    (told,) = [data for name, data in busy.events(queued) if name == "stopped_early"]
    assert told == {"epoch": done, "best_epoch": best}


def test_a_training_that_turns_to_nan_fails_with_the_last_good_checkpoint_kept(
    busy: Plant,
) -> None:
    # Decay times rate is 10: each step multiplies the weights by -9, until float32 overflows.
    wild = {"name": "sgd", "lr": 10.0, "weight_decay": 1.0, "momentum": 0.9, "milestones": []}
    with busy.database.reading() as session:
        before = set(session.scalars(select(ModelRow.id)))
    job = busy.wait_done(busy.train(busy.dataset(), method="ce", epochs=200, optimizer=wild))
    assert job.status == JobStatus.FAILED
    assert job.error is not None
    assert job.error["code"] == "training_failed"
    assert "expected" in job.error["message"]
    assert "got" in job.error["message"]
    done = [data["epoch"] for name, data in busy.events(job.id) if name == "epoch"]
    assert job.checkpoint_sha256 is not None
    path = open_blobs(busy.settings).local_path(job.checkpoint_sha256)
    kept = torch.load(path, weights_only=True)
    assert kept["epoch"] == done[-1] > 0
    assert all(value.isfinite().all() for value in kept["network"].values())
    with busy.database.reading() as session:
        assert set(session.scalars(select(ModelRow.id))) == before, "no model is published"


def test_too_few_positives_to_hold_any_out_fail_before_any_step(busy: Plant) -> None:
    queued = busy.train(busy.dataset(4))  # one of them positive
    job = busy.wait_done(queued)
    assert job.error is not None
    assert job.error["code"] == "invalid_data"
    assert "expected at least 2 positives and 2 negatives" in job.error["message"]
    assert "epoch" not in [name for name, _ in busy.events(queued)]


def test_a_job_whose_child_dies_is_tried_again_and_in_the_end_given_up(plant: Plant) -> None:
    job = plant.train(plant.dataset(), epochs=1000)
    behind = plant.train(plant.dataset(), epochs=1)
    worker = plant.start_worker()
    for attempt in (1, 2, 3):
        plant.wait(
            lambda attempt=attempt: (
                plant.read(job).attempt == attempt  # type: ignore[misc]
                and plant.read(job).status == JobStatus.RUNNING
                and children_that_work(worker)
            )
        )
        kill_children(worker)
        plant.wait(lambda: plant.read(job).status != JobStatus.RUNNING)
    row = plant.wait_done(job)
    assert row.status == JobStatus.FAILED
    assert row.error is not None
    assert row.error["code"] == "worker_lost"
    assert plant.wait_done(behind).status == JobStatus.SUCCEEDED, "others are not held up"


def test_cancel_stops_a_running_job_within_seconds_and_leaves_no_process(plant: Plant) -> None:
    job = plant.train(plant.dataset(), epochs=1000)
    worker = plant.start_worker()
    plant.wait_epoch(job, 1)
    assert children_that_work(worker)
    started = time.monotonic()
    with plant.database.writing() as session:
        jobs.request_cancel(session, job)
    row = plant.wait_done(job, timeout_s=5)
    assert row.status == JobStatus.CANCELLED
    assert time.monotonic() - started < 5
    plant.wait(lambda: not children_that_work(worker), timeout_s=5)
    assert list((plant.settings.home / "work").glob("*/*")) == []


def test_a_terminated_worker_gives_its_job_back_at_once(plant: Plant) -> None:
    job = plant.train(plant.dataset(), epochs=30)
    first = plant.start_worker()
    plant.wait_epoch(job, 2)
    own = psutil.Process(first.pid).children()  # the job's process is a child of the fork server
    (server,) = (
        child for child in own if "multiprocessing.forkserver" in " ".join(child.cmdline())
    )
    first.terminate()
    first.wait(timeout=10)
    row = plant.read(job)
    assert (row.status, row.lost) == (JobStatus.QUEUED, 0)
    assert first.returncode == 0
    assert not server.is_running(), "the fork server outlived its worker"
    plant.start_worker()
    assert plant.wait_done(job).status == JobStatus.SUCCEEDED
    epochs = [data["epoch"] for name, data in plant.events(job) if name == "epoch"]
    assert len(epochs) <= 31


def test_a_frozen_worker_that_wakes_up_changes_nothing(plant: Plant) -> None:
    job = plant.train(plant.dataset(), epochs=40)
    frozen = plant.start_worker()
    plant.wait_epoch(job, 1)
    family = freeze(frozen, plant)
    plant.end_leases(frozen)
    plant.start_worker()
    plant.wait(lambda: plant.read(job).attempt == 2)
    resume(*family)
    row = plant.wait_done(job)
    assert row.status == JobStatus.SUCCEEDED
    names = [name for name, _ in plant.events(job)]
    assert names.count("succeeded") == 1
    plant.wait(lambda: "claim_lost" in plant.log_of(0), timeout_s=10)
    with plant.database.reading() as session:
        assert len(session.scalars(select(JobRow)).all()) == 1


def test_a_job_over_its_time_limit_is_stopped(plant: Plant) -> None:
    job = plant.train(plant.dataset(), epochs=1000)
    worker = plant.start_worker(ADAP_JOB_LIMIT_S="3")
    row = plant.wait_done(job)
    assert row.error is not None
    assert row.error["code"] == "timeout"
    assert "3 s" in row.error["message"]
    plant.wait(lambda: not children_that_work(worker))


def test_a_job_is_cancelled_while_the_fork_server_starts_nothing(plant: Plant) -> None:
    """It loads torch for a minute, on a slow disk; or it hangs."""
    dataset = plant.dataset()
    worker = plant.start_worker()
    plant.wait_done(plant.train(dataset, epochs=1))
    plant.wait(lambda: not children_that_work(worker))
    own = psutil.Process(worker.pid).children()  # not its forks, which bear its name
    (server,) = (child for child in own if "forkserver" in str(child.cmdline()))
    suspend(server)
    job = plant.train(dataset, epochs=1000)
    plant.wait(lambda: plant.read(job).status == JobStatus.RUNNING)
    with plant.database.writing() as session:
        jobs.request_cancel(session, job)
    assert plant.wait_done(job).status == JobStatus.CANCELLED
    server.resume()
    assert plant.wait_done(plant.train(dataset, epochs=1)).status == JobStatus.SUCCEEDED
    plant.wait(lambda: not children_that_work(worker), because="the late child has gone")


# read by Python when it starts: children ignore SIGTERM, and start something in their session
STUBBORN = """
import os, signal, subprocess

def setsid(begin=os.setsid):
    begin()
    subprocess.Popen(["sleep", "1000"])

signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.setsid = setsid
"""


def test_a_child_that_hangs_and_ignores_sigterm_is_killed_with_all_that_it_started(
    plant: Plant, tmp_path: Path
) -> None:
    (tmp_path / "stubborn").mkdir()
    (tmp_path / "stubborn" / "sitecustomize.py").write_text(STUBBORN)
    dataset = plant.dataset()
    worker = plant.start_worker(ADAP_STALL_LIMIT_S="10", PYTHONPATH=str(tmp_path / "stubborn"))
    assert any(  # to load torch may take longer than the limit; children are born fast after that
        plant.wait_done(plant.train(dataset, epochs=1)).status == JobStatus.SUCCEEDED
        for _ in range(5)
    )
    job = plant.train(dataset, epochs=1000)
    plant.wait_epoch(job, 1)
    (child,) = children_that_work(worker)
    family = [child, *child.children(recursive=True)]
    assert len(family) == 2
    child.terminate()
    time.sleep(0.5)
    assert child.is_running(), "it ignores SIGTERM"
    suspend(child)
    row = plant.wait_done(job)
    assert row.error is not None
    assert row.error["code"] == "timeout"
    assert "no progress for 10 s" in row.error["message"]
    assert still_alive(family, after_s=60) == []
    assert plant.wait_done(plant.train(dataset, epochs=1)).status == JobStatus.SUCCEEDED
    plant.wait(lambda: not children_that_work(worker), because="the last child has gone")


def test_a_doorbell_starts_a_job_before_anybody_sweeps(plant: Plant, tmp_path: Path) -> None:
    with broker(tmp_path):
        url = f"redis+socket://{tmp_path}/v.sock"
        plant.settings = plant.settings.model_copy(update={"broker_url": url})
        plant.start_worker(ADAP_SWEEP_S="600")
        plant.wait(lambda: "worker.ready" in plant.log_of(0))
        time.sleep(1)  # its first look for jobs is over
        job = plant.train(plant.dataset(), epochs=1)
        app = make_app(plant.settings)
        with ringing(plant.settings) as bells:
            for _ in range(5):  # doubled bells change nothing
                bells.ring(plant.read(job))
        app.send_task("worker.run_job", args=["job_nobody"], queue="compute")
        app.send_task("os.system", args=["true"], queue="compute")
        plant.wait(lambda: plant.read(job).status != JobStatus.QUEUED)  # nobody sweeps for so long
        row = plant.wait_done(job)
        assert (row.status, row.attempt) == (JobStatus.SUCCEEDED, 1)
        again = plant.train(plant.dataset(), epochs=1)
        with ringing(plant.settings) as bells:
            bells.ring(plant.read(again))
        assert plant.wait_done(again).status == JobStatus.SUCCEEDED, "strange messages did harm"


def audit(plant: Plant, model: str, dataset: str, **changes: Any) -> str:
    request = AuditRequest.model_validate(
        {
            "model_id": model,
            "dataset_id": dataset,
            "threat": {"epsilon": 0.1},
            "attacks": [{"name": "pgd", "steps": 200}, {"name": "apgd", "steps": 200}],
            "shard_size": 16,
            "batch_size": 16,
            "certify": "off",
            "checks": "off",
            **changes,
        }
    )
    return plant.enqueue(JobKind.AUDIT, request.as_json(), dataset_id=dataset, model_id=model)


def scores_of(plant: Plant, row: JobRow) -> Scores:
    assert row.result is not None, row.error
    return load_scores(open_blobs(plant.settings).local_path(row.result["blobs"]["scores"]))[0]


def test_an_audit_spreads_over_workers_and_survives_one(plant: Plant) -> None:
    dataset = plant.dataset(192)
    trained = plant.train(dataset, method="ce", epochs=3)
    first = plant.start_worker()
    model = (plant.wait_done(trained).result or {})["model_id"]
    attacks = [{"name": name, "steps": 60} for name in ("pgd", "apgd")]
    alone = plant.wait_done(audit(plant, model, dataset, attacks=attacks))
    second = plant.start_worker()
    plant.wait(lambda: "worker.start" in plant.log_of(1))
    with plant.database.writing() as session:
        session.execute(delete(ScoresRow))  # or nothing would be attacked again
    together = audit(plant, model, dataset, attacks=attacks)

    def shards() -> list[JobRow]:
        with plant.database.reading() as session:
            query = select(JobRow).where(JobRow.parent_id == together).order_by(JobRow.shard)
            return list(session.scalars(query))

    def shared_by() -> set[str]:
        with plant.database.reading() as session:
            query = (
                select(JobEventRow)
                .join(JobRow, JobRow.id == JobEventRow.job_id)
                .where(JobRow.parent_id == together, JobEventRow.type == "running")
            )
            return {event.data["worker"] for event in session.scalars(query)}

    plant.wait(lambda: len(shared_by()) == 2, because="both workers take shards")
    leader = first if f":{first.pid}:" in (plant.read(together).worker or "") else second
    leader.kill()
    plant.end_leases(leader)
    row = plant.wait_done(together)
    assert row.status == JobStatus.SUCCEEDED, row.error
    assert len(shards()) == 12
    stored = open_blobs(plant.settings).local_path
    files = (row.result or {})["blobs"].values()
    assert row.result_bytes == sum(stored(name).stat().st_size for name in files)
    assert all(shard.status == JobStatus.SUCCEEDED for shard in shards())
    a, b = scores_of(plant, alone), scores_of(plant, row)
    assert a.example_ids == b.example_ids
    for name in a.attacked:
        assert (a.attacked[name] == b.attacked[name]).all(), "who attacked changed the scores"
    assert sum((shard.progress or {})["completed"] for shard in shards()) == 192 * 3
    assert (row.progress or {})["completed"] == (row.progress or {})["total"]


def test_an_audit_survives_the_loss_of_the_process_of_each_shard_in_turn(plant: Plant) -> None:
    dataset = plant.dataset(64)
    worker = plant.start_worker()
    trained = plant.train(dataset, method="ce", epochs=1)
    model = (plant.wait_done(trained).result or {})["model_id"]
    slow = [{"name": "pgd", "steps": 200}]
    whole = plant.wait_done(audit(plant, model, dataset, attacks=slow))
    expected = scores_of(plant, whole).attacked["pgd"]
    lost: set[int] = set()
    while lost != {0, 1, 2, 3}:  # one audit, unless a shard ends before it is looked at
        with plant.database.writing() as session:
            session.execute(delete(ScoresRow))
        job = audit(plant, model, dataset, attacks=slow)
        of_audit = select(JobRow).where(JobRow.parent_id == job)
        killed: set[int] = set()
        while plant.read(job).status not in TERMINAL:
            with plant.database.reading() as session:
                for shard in session.scalars(of_audit.where(JobRow.status == JobStatus.RUNNING)):
                    number = shard.shard or 0
                    if number not in killed and shard.lost == 0 and kill_children(worker):
                        killed.add(number)
            time.sleep(0.02)
        row = plant.read(job)
        assert row.status == JobStatus.SUCCEEDED, row.error
        with plant.database.reading() as session:
            lost |= {shard.shard or 0 for shard in session.scalars(of_audit) if shard.lost}
        assert (scores_of(plant, row).attacked["pgd"] == expected).all()


def test_what_was_attacked_once_is_not_attacked_again(busy: Plant) -> None:
    dataset = busy.dataset(64, seed=2)  # of its own: no other test knows its scores
    trained = busy.train(dataset, method="ce", epochs=1)
    model = (busy.wait_done(trained).result or {})["model_id"]

    def columns(row: JobRow) -> list[dict[str, str]]:
        with busy.database.reading() as session:
            query = select(JobRow).where(JobRow.parent_id == row.id).order_by(JobRow.shard)
            return [(shard.result or {})["blobs"] for shard in session.scalars(query)]

    def kept() -> int:
        with busy.database.reading() as session:
            return len(session.scalars(select(ScoresRow)).all())

    others = kept()
    pgd = {"name": "pgd", "steps": 5}
    first = busy.wait_done(audit(busy, model, dataset, attacks=[pgd]))
    known = columns(first)
    again = busy.wait_done(
        audit(
            busy,
            model,
            dataset,
            attacks=[{**pgd, "label": "renamed"}, "noise"],
            thresholds=["renamed_ap >= 0"],
            operating={"k": 3},
        )
    )
    assert again.status == JobStatus.SUCCEEDED, again.error
    for before, after in zip(known, columns(again), strict=True):
        assert after["clean"] == before["clean"]
        assert after["attack.renamed"] == before["attack.pgd"]
        assert set(after) == {"clean", "attack.renamed", "attack.noise"}
    assert kept() - others == 4 * 3, "four shards, each clean, under PGD and under noise"
    other = busy.wait_done(audit(busy, model, dataset, attacks=[pgd], seed=1))
    assert columns(other)[0]["attack.pgd"] != known[0]["attack.pgd"], "another seed is another run"


def test_an_audit_warns_of_data_that_a_model_was_trained_on_before_it_was_this_model(
    busy: Plant,
) -> None:
    seen_first, seen_last = busy.dataset(96), busy.dataset(80)
    unseen = busy.dataset(64, seed=1)

    def trained(dataset: str, **fields: Any) -> str:
        queued = busy.train(dataset, method="ce", epochs=1, **fields)
        return str((busy.wait_done(queued).result or {})["model_id"])

    start = trained(seen_first)
    model = trained(seen_last, model_id=start, warm_start={"model_id": start})
    for dataset, warned in ((seen_first, True), (seen_last, True), (unseen, False)):
        row = busy.wait_done(audit(busy, model, dataset, attacks=["fgsm"]))
        assert row.status == JobStatus.SUCCEEDED, row.error
        warnings = (row.result or {})["summary"]["warnings"]
        assert any("trained on" in warning for warning in warnings) == warned, warnings


def test_whether_to_bound_is_asked_once_an_audit(busy: Plant) -> None:
    dataset = busy.dataset(64, seed=3)  # of its own: what is told of it is wrong
    trained = busy.train(dataset, method="ce", epochs=1)
    model = (busy.wait_done(trained).result or {})["model_id"]
    noise = [{"name": "noise"}]

    def bounds(row: JobRow) -> tuple[list[str], list[str]]:
        """The blobs of each shard's sample and of its bounds."""
        assert row.status == JobStatus.SUCCEEDED, row.error
        assert (row.progress or {})["completed"] == (row.progress or {})["total"]
        with busy.database.reading() as session:
            query = select(JobRow).where(JobRow.parent_id == row.id).order_by(JobRow.shard)
            found = [(shard.result or {})["blobs"] for shard in session.scalars(query)]
        return [blobs["bounds.sample"] for blobs in found], [blobs["bounds"] for blobs in found]

    for epsilon, proves in ((1e-5, True), (0.1, False)):
        changes = {"threat": {"epsilon": epsilon}, "certify": "auto", "attacks": noise}
        row = busy.wait_done(audit(busy, model, dataset, **changes))
        samples, columns = bounds(row)
        assert (len(samples), len(set(samples)), len(set(columns))) == (4, 1, 4)
        (sample,) = load_scores(open_blobs(busy.settings).local_path(samples[0]))
        assert len(sample) == 16
        assert sample.targets.sum() == 8
        assert (sample.no_bounds is None) == proves
        assert scores_of(busy, row).no_bounds == sample.no_bounds
        assert (scores_of(busy, row).bounds is not None) == proves
        with busy.database.reading() as session:
            keys = session.scalars(select(ScoresRow.key).where(ScoresRow.blob_sha256 == samples[0]))
            assert len(keys.all()) == 1

        # a decision that is known is not taken again: what stands there is believed
        told = replace(sample, bounds=None, no_bounds="Because somebody said so.")
        file = busy.settings.home / "told"
        save_scores([told], file)
        sha256 = open_blobs(busy.settings).put(file)
        with busy.database.writing() as session:
            of_sample = ScoresRow.blob_sha256 == samples[0]
            session.execute(update(ScoresRow).where(of_sample).values(blob_sha256=sha256))
            session.execute(delete(ScoresRow).where(ScoresRow.blob_sha256.in_(columns)))
        again = busy.wait_done(audit(busy, model, dataset, **changes))
        assert scores_of(busy, again).no_bounds == "Because somebody said so."


def test_a_ranking_is_sorted_and_complete(busy: Plant) -> None:
    dataset = busy.dataset()
    model = (busy.wait_done(busy.train(dataset)).result or {})["model_id"]
    request = RankingRequest(model_id=model, dataset_id=dataset, batch_size=10)
    job = busy.enqueue(JobKind.RANK, request.as_json(), dataset_id=dataset, model_id=model)
    row = busy.wait_done(job)
    assert row.result is not None, row.error
    path = open_blobs(busy.settings).local_path(row.result["blobs"]["ranking"])
    ranking = [json.loads(line) for line in path.read_text().splitlines()]
    assert [item["rank"] for item in ranking] == list(range(1, 97))
    scores = [item["score"] for item in ranking]
    assert scores == sorted(scores, reverse=True)
    assert len({item["example_id"] for item in ranking}) == 96
    assert {item["positive"] for item in ranking} == {True, False}
    blobs = open_blobs(busy.settings)
    assert pq.read_table(blobs.local_path(row.result["blobs"]["parquet"])).to_pylist() == ranking
    with blobs.local_path(row.result["blobs"]["csv"]).open(newline="") as file:
        table = [(line["example_id"], float(line["score"])) for line in csv.DictReader(file)]
    assert table == [(item["example_id"], item["score"]) for item in ranking]
    standing = load_file(blobs.local_path(row.result["blobs"]["standing"]))
    with busy.database.reading() as session:
        content = session.get_one(DatasetRow, dataset).content_sha256
    assert content is not None
    example_ids = ImageSet.load(blobs.local_path(content)).example_ids
    assert [
        {"example_id": example_ids[i], "score": score, "positive": bool(target)}
        for i, score, target in zip(
            standing["index"], standing["scores"], standing["targets"], strict=True
        )
    ] == [{key: item[key] for key in ("example_id", "score", "positive")} for item in ranking]


def test_equal_images_are_ranked_by_their_ids(busy: Plant) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 8), np.uint8)
    ids = [f"{i:02d}" for i in np.random.default_rng(1).permutation(40)]
    image_set = ImageSet(
        images=np.tile(images, (20, 1, 1, 1)),
        labels=np.tile(np.array([0, 1]), 20),
        classes=["negative", "positive"],
        example_ids=ids,
    )
    path = busy.settings.home / "twins"
    image_set.save(path)
    dataset = busy.dataset()
    model = (busy.wait_done(busy.train(dataset)).result or {})["model_id"]
    with busy.database.writing() as session:
        row = session.get_one(DatasetRow, dataset)
        row.content_sha256 = open_blobs(busy.settings).put(path)
        row.summary = {**summarise(image_set), "splits": {}}
    request = RankingRequest(model_id=model, dataset_id=dataset)
    job = busy.enqueue(JobKind.RANK, request.as_json(), dataset_id=dataset, model_id=model)
    blobs = (busy.wait_done(job).result or {})["blobs"]
    ranking = pq.read_table(open_blobs(busy.settings).local_path(blobs["parquet"])).to_pylist()
    first, second = ranking[:20], ranking[20:]
    for half in (first, second):
        assert len({item["score"] for item in half}) == 1
        assert [item["example_id"] for item in half] == sorted(item["example_id"] for item in half)


def test_a_job_whose_files_are_gone_fails_with_a_reason(plant: Plant) -> None:
    job = plant.train(plant.dataset())
    for path in (plant.settings.home / "blobs").glob("??/*"):
        path.unlink()
    plant.start_worker()
    row = plant.wait_done(job)
    assert row.status == JobStatus.FAILED
    assert row.error is not None
    assert row.error["code"] == "content_missing"


def test_a_worker_without_a_broker_url_says_so() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "adap.worker"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )
    assert result.returncode == 1
    assert "ADAP_BROKER_URL is not set" in result.stderr


def test_sigterm_twice_is_as_good_as_once(plant: Plant) -> None:
    worker = plant.start_worker()
    plant.wait(lambda: (plant.settings.home / "work").exists())
    time.sleep(1)
    worker.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    if worker.poll() is None:
        worker.send_signal(signal.SIGTERM)
    worker.wait(timeout=15)
