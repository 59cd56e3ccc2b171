"""The API as a real server on a port, without workers: jobs stay queued, rows are made by hand."""

import asyncio
import contextlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import psutil
import pytest
import torch
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import update
from starlette.types import ASGIApp

from adap.api.deps import House
from adap.api.main import create_app
from adap.core.datasets import ImageSet
from adap.models import architectures, loading
from adap.models.header import Manifest
from adap.store.artifacts import open_blobs
from adap.store.database import Database
from adap.store.ids import new_id
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.tables import AssetStatus, DatasetRow, JobRow, ModelRow, Table
from adap.worker.embedded import held_port
from adap.worker.scoring.link import ScoringLink

SUMMARY = {
    "examples": 40,
    "classes": {"cat": 20, "dog": 20},
    "splits": {"train": {"cat": 10, "dog": 10}, "test": {"cat": 10, "dog": 10}},
    "channels": 1,
    "height": 8,
    "width": 8,
    "sizes": {"8x8": 40},
    "duplicates": 0,
    "conflicting": 0,
    "across_splits": None,
}


def sums(summary: dict[str, Any]) -> dict[str, Any]:
    """What follows from the counts of a summary of single labels."""
    splits, examples = summary["splits"], summary["examples"]
    return {
        "prevalence": {name: count / examples for name, count in summary["classes"].items()},
        "split_examples": {split: sum(counts.values()) for split, counts in splits.items()},
    }


MANIFEST = {
    "architecture": "small_cnn",
    "input": {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.5]},
    "positive": ["cat"],
    "training": None,
}
PETS = {"kind": "multiclass", "classes": ["cat", "dog", "other"]}
WAITING = 150  # images, at most
LIMIT_S = 60.0  # of a request for scores
Uint8 = NDArray[np.uint8]
Found = TypeVar("Found")
CLASSIFIER = {**MANIFEST, "positive": None, "output": PETS}


@dataclass(frozen=True)
class Api:
    """A running API and the database behind it."""

    http: httpx.Client
    database: Database
    settings: Settings
    folder: Path
    house: House | None = None  # where it runs in this process

    def dataset(self, **columns: Any) -> str:
        """Put a data set into the database, ready unless said otherwise, with the images of
        `SUMMARY`."""
        summary = columns.pop("summary", SUMMARY)
        counted = None if summary is None else {**summary, **sums(summary)}
        if "content_sha256" not in columns:
            columns["content_sha256"] = self.keep(
                ImageSet(
                    images=noise(40)[:, None],
                    labels=np.arange(40) % 2,
                    classes=["cat", "dog"],
                    example_ids=[f"{new_id('photo')}.png" for _ in range(40)],  # no two are equal
                    splits=np.repeat(np.array([0, 2], np.int8), 20),
                )
            )
        return self._add(DatasetRow, "ds", {"summary": counted, **columns})

    def keep(self, image_set: ImageSet) -> str:
        """Store a data set as a worker would; its hash."""
        path = self.folder / "stored.safetensors"
        image_set.save(path)
        return open_blobs(self.settings).put(path)

    def model(self, **columns: Any) -> str:
        """Put a model into the database, ready unless said otherwise."""
        return self._add(ModelRow, "mdl", {"manifest": MANIFEST, **columns})

    def _add(self, table: Any, prefix: str, columns: dict[str, Any]) -> str:
        identifier = new_id(prefix)
        path = self.folder / identifier
        path.write_text(identifier)
        defaults = {
            "tenant": "local",
            "name": identifier,
            "status": AssetStatus.READY,
            "content_sha256": open_blobs(self.settings).put(path),
        }
        with self.database.writing() as session:
            session.add(table(id=identifier, **{**defaults, **columns}))
        return identifier


@contextmanager
def running(settings: Settings) -> Iterator[str]:
    """An API with these settings on a free port; its address."""
    with serving(create_app(settings)) as url:
        yield url


@contextmanager
def serving(app: ASGIApp, *, host: str = "127.0.0.1") -> Iterator[str]:
    """The same for an application that there is."""
    server = uvicorn.Server(uvicorn.Config(app, host=host, port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, name="api loop")
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def running_in(folder: Path, **settings: Any) -> Iterator[Api]:
    """An API with these settings, on a home in this folder."""
    made = Settings(home=folder / "home", **settings)
    made.home.mkdir()
    database = Database(made)
    migrate(database)
    app = create_app(made)
    house: House = app.app.state.house
    with serving(app) as url, httpx.Client(base_url=url, timeout=90) as http:
        yield Api(http, database, made, folder, house)
    database.dispose()


@contextmanager
def running_alone(folder: Path, **environment: str) -> Iterator[tuple[Api, psutil.Process]]:
    """An API in a process of its own, as the service starts it; its log must have no traceback."""
    (folder / "home").mkdir()
    with held_port("127.0.0.1", 0) as port:
        settings = Settings(home=folder / "home", port=port)
        database = Database(settings)
        migrate(database)
        given = {
            "ADAP_HOME": str(settings.home),
            "ADAP_PORT": str(port),
            "ADAP_BROKER_URL": "redis://127.0.0.1:1/0",
            "ADAP_SCORING_URL": "tcp://127.0.0.1:1",
            **environment,
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "adap.api"], env={**os.environ, **given}, stderr=log
            )
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:

            def answers() -> bool:
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    return http.get("/livez").is_success
                except httpx.TransportError:
                    return False

            wait_for(answers, because="the API answers", timeout_s=300)
            yield Api(http, database, settings, folder), psutil.Process(process.pid)
        process.terminate()
        assert process.wait(30) in (0, -15)  # uvicorn raises the signal again once it has stopped
        database.dispose()
        log_text = (folder / "log").read_text()
        assert '"request.done"' in log_text
        assert "Traceback" not in log_text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_in(
        tmp_path_factory.mktemp("api"),
        broker_url="redis://127.0.0.1:1/0",  # nobody there: a doorbell that nobody hears
        scoring_url="tcp://127.0.0.1:1",  # nobody there either
        max_upload_bytes=2_000_000,
        max_json_bytes=100_000,
        max_wait_s=1,
    ) as api:
        yield api


@pytest.fixture
def api(server: Api) -> Api:
    """The server with an empty database."""
    with server.database.writing() as session:
        session.execute(update(JobRow).values(parent_id=None))
        for table in reversed(Table.metadata.sorted_tables):
            session.execute(table.delete())
    assert server.house is not None
    server.house.callers.forget()
    return server


class Scoring:
    """The API and the scoring process behind it."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.networks: dict[str, Any] = {}
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """The process as the service starts it, once it answers."""
        settings = self.api.settings
        with (self.api.folder / "scoring.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "adap.worker.scoring"],
                env={
                    **os.environ,
                    "ADAP_HOME": str(settings.home),
                    "ADAP_SCORING_URL": str(settings.scoring_url),
                    "ADAP_SCORING_MAX_WAITING": str(WAITING),
                    "ADAP_SCORING_MEMORY_BYTES": "500000",  # one small_cnn of 373 kB
                    "ADAP_THREADS": "1",
                },
                stderr=log,
            )
        wait_for(
            lambda: (self.status() or {}).get("loaded_torch"),
            because="the scoring process has loaded torch",
            timeout_s=300,
        )
        return self.process

    def status(self, model_id: str | None = None) -> dict[str, Any] | None:
        """What the process says of itself, None while it does not answer."""

        async def ask() -> dict[str, Any]:
            link = ScoringLink(self.api.settings.scoring_url)
            try:
                return await link.ask({"ask": "status", "model_id": model_id})
            finally:
                await link.close()

        with contextlib.suppress(Exception):
            return asyncio.run(ask())
        return None

    def model(self, seed: int = 0, manifest: dict[str, Any] = MANIFEST, **columns: Any) -> str:
        """A model with random weights, in the database; its network is in `networks`."""
        read = Manifest.model_validate(manifest)
        network = architectures.build(
            "small_cnn", channels=1, seed=seed, outputs=read.output.count
        ).eval()
        path = self.api.folder / f"{seed}.safetensors"
        loading.save(network, path, read)
        sha256 = open_blobs(self.api.settings).put(path)
        model_id = self.api.model(manifest=manifest, content_sha256=sha256, **columns)
        self.networks[model_id] = network
        return model_id

    def expected(self, model_id: str, pixels: NDArray[Any]) -> list[float]:
        """The logits of each image alone, in torch alone: (N, 8, 8) pixels in [0, 1]."""
        with torch.no_grad():
            return [
                float(self.networks[model_id](((torch.from_numpy(image) - 0.5) / 0.5)[None, None]))
                for image in pixels.astype(np.float32)
            ]

    def decoders(self) -> list[psutil.Process]:
        """The processes that open files: one for each lane, the one that is ready included."""
        return self._children("adap.worker.scoring.decoder")

    def network_processes(self) -> list[psutil.Process]:
        """Those of models, the one that was loaded last at the end."""
        forked = [
            (process.create_time(), process.pid, process)
            for process in self._children("multiprocessing.forkserver")
            if process.ppid() != self.process.pid
        ]
        return [process for *_, process in sorted(forked)]

    def _children(self, of: str) -> list[psutil.Process]:
        """The processes with this on their command line."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended, or is a zombie
                if (
                    process.name().startswith("python")  # not bubblewrap around it
                    and of in " ".join(process.cmdline())
                ):
                    found.append(process)
        return found


def wait_for(what: Callable[[], Found], *, because: str, timeout_s: float = 30) -> Found:
    """What is true in the end."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"timed out: {because}"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def running_scoring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scoring]:
    folder = tmp_path_factory.mktemp("scoring")
    with running_in(
        folder,
        broker_url="redis://127.0.0.1:1/0",
        scoring_url=f"unix://{folder}/s.sock",
        scoring_limit_s=LIMIT_S,
        max_scoring_bytes=400_000,
    ) as api:
        scoring = Scoring(api)
        yield scoring
        scoring.process.terminate()
        assert scoring.process.wait(120) == 0
        assert not (api.settings.home / "work" / str(scoring.process.pid)).exists()
        log = (folder / "scoring.log").read_text()
        assert '"level": "error"' not in log
        assert "Traceback" not in log


@pytest.fixture
def scoring(running_scoring: Scoring) -> Scoring:
    wait_for(lambda: (running_scoring.status() or {}).get("waiting") == 0, because="it is idle")
    return running_scoring


def noise(count: int, seed: int = 0) -> Uint8:
    """(N, 8, 8) images."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), np.uint8)


def png(pixels: Uint8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def problem() -> Callable[..., dict[str, Any]]:
    """Assert that an answer is a problem of this status and code, and return it."""

    def check(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/problem+json"
        body: dict[str, Any] = response.json()
        assert body["status"] == status
        assert body["code"] == code
        assert body["request_id"] == response.headers["x-request-id"]
        assert len(body["detail"]) > 15
        return body

    return check
