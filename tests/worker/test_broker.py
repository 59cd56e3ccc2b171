"""Attempts of somebody who writes into the broker: bells ring, and nothing else happens.

Messages are pushed into the broker's list by hand, as no library of ours would make them.
"""

import base64
import json
import pickle
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from adap.store import jobs
from adap.store.tables import JobKind, JobStatus
from adap.worker.app import TASK
from tests.worker.conftest import Plant, broker, ringing
from tests.worker.test_intake_hostile import Payload


@pytest.fixture
def rung(plant: Plant, tmp_path: Path) -> Iterator[tuple[Plant, redis.Redis]]:
    """A plant with a broker, and a connection to the broker of somebody else."""
    with broker(tmp_path) as stranger:
        url = f"redis+socket://{tmp_path}/v.sock"
        settings = plant.settings.model_copy(update={"broker_url": url})
        yield replace(plant, settings=settings), stranger


def message(
    body: bytes,
    *,
    task: str = TASK,
    content_type: str = "application/json",
    encoding: str = "utf-8",
    **headers: Any,
) -> bytes:
    """One message as Celery writes it."""
    identifier = str(uuid.uuid4())
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": encoding,
            "content-type": content_type,
            "headers": {
                "lang": "py",
                "task": task,
                "id": identifier,
                "root_id": identifier,
                "parent_id": None,
                "group": None,
                "retries": 0,
                "timelimit": [None, None],
                **headers,
            },
            "properties": {
                "correlation_id": identifier,
                "reply_to": "r",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "compute"},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    ).encode()


def arguments(*values: Any, **named: Any) -> bytes:
    return json.dumps([values, named, {"callbacks": None, "errbacks": None}]).encode()


def test_messages_made_by_hand_run_nothing_and_stop_nothing(
    rung: tuple[Plant, redis.Redis], tmp_path: Path
) -> None:
    plant, stranger = rung
    dataset = plant.dataset()
    canary = tmp_path / "canary"
    payload = pickle.dumps(([Payload(canary)], {}, {}))
    plant.start_worker(ADAP_SWEEP_S="600")
    plant.wait(lambda: "worker.ready" in plant.log_of(0))
    ended = plant.enqueue(JobKind.TRAIN, {}, dataset_id=dataset)
    with plant.database.writing() as session:
        jobs.request_cancel(session, ended)
    elsewhere = plant.enqueue(JobKind.VALIDATE_MODEL, {})  # of another queue

    for hostile in (
        message(payload, content_type="application/x-python-serialize", encoding="binary"),
        message(payload, content_type="application/json"),
        message(b"!!python/object/apply:os.mkdir [x]", content_type="application/x-yaml"),
        message(b"\xff" * 100),
        message(b"[" * 100_000),
        message(arguments("true"), task="os.system"),
        message(arguments("true"), task="celery.backend_cleanup"),
        message(arguments()),
        message(arguments("job_nobody")),
        message(arguments(str(canary), "more")),
        message(arguments({"job_id": ["x"]})),
        message(arguments(None)),
        message(arguments(1e999)),
        message(arguments("../../etc/passwd\n")),
        message(arguments("' OR 1=1 --")),
        message(arguments(job_id="x", worker="y")),
        message(arguments(ended)),
        message(arguments(elsewhere)),
        message(arguments("job_nobody"), eta="2099-01-01T00:00:00", expires="no date"),
    ):
        stranger.lpush("compute", hostile)
    plant.wait(lambda: stranger.llen("compute") == 0, because="every message is read")

    job = plant.train(dataset, epochs=1)
    stranger.lpush("compute", message(arguments(job)))
    row = plant.wait_done(job)
    assert (row.status, row.attempt) == (JobStatus.SUCCEEDED, 1), "the worker still hears bells"
    assert plant.processes[0].poll() is None
    assert not canary.exists()
    assert plant.read(ended).status == JobStatus.CANCELLED
    assert plant.read(elsewhere).attempt == 0
    log = plant.log_of(0)
    assert "os.system" in log
    assert "application/x-python-serialize" in log


def test_bytes_that_are_no_message_cost_a_connection_or_a_start_and_no_job(
    rung: tuple[Plant, redis.Redis],
) -> None:
    plant, stranger = rung
    worker = plant.start_worker()
    plant.wait(lambda: "worker.ready" in plant.log_of(0))
    stranger.lpush("compute", b"{}")
    plant.wait(lambda: stranger.llen("compute") == 0)
    stranger.lpush("compute", message(arguments("job_nobody")))
    plant.wait(lambda: "doorbell.ignored" in plant.log_of(0), because="it hears bells again")
    stranger.lpush("compute", b"\0\xff")
    plant.wait(lambda: worker.poll() is not None, because="it ends, to be started again")
    assert worker.returncode != 0, "or nobody would start it again"
    assert list((plant.settings.home / "work").iterdir()) == [], "it has tidied up"
    job = plant.enqueue(JobKind.RANK, {})
    with plant.database.writing() as session:
        assert jobs.claim_next(session, "compute", worker="w", lease_s=1) == jobs.Claim(job, 1)


def test_bells_that_wait_for_one_tenant_do_not_keep_another_waiting(
    rung: tuple[Plant, redis.Redis],
) -> None:
    """A bell says that there is work, not whose: eight bells lie before the other tenant's two."""
    plant, stranger = rung
    queued = []
    with ringing(plant.settings) as bells:
        for tenant, count in (("long", 8), ("short", 2)):
            for _ in range(count):  # jobs that fail as soon as they start
                queued.append(plant.enqueue(JobKind.RANK, {}, tenant=tenant))
                bells.ring(plant.read(queued[-1]))
    assert stranger.llen("compute") == 10
    plant.start_worker(ADAP_SWEEP_S="600")
    for job in queued:
        plant.wait_done(job)
    rows = sorted((plant.read(job) for job in queued), key=lambda row: row.started_at or 0)
    assert [row.tenant for row in rows[:5]] == ["long", "short", "long", "short", "long"]
    assert all(row.attempt == 1 for row in rows)
    plant.wait(lambda: stranger.llen("compute") == 0)
