"""The API as a real server on a port, without workers: jobs stay queued, rows are made by hand."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from sqlalchemy import update

from api.main import create_app
from store.artifacts import open_blobs
from store.database import Database
from store.ids import new_id
from store.migrate import migrate
from store.settings import Settings
from store.tables import AssetStatus, DatasetRow, JobRow, ModelRow, Table

SUMMARY = {
    "examples": 40,
    "classes": {"cat": 20, "dog": 20},
    "splits": {"train": {"cat": 10, "dog": 10}, "test": {"cat": 10, "dog": 10}},
    "channels": 1,
    "height": 8,
    "width": 8,
    "duplicates": 0,
}
MANIFEST = {
    "architecture": "small_cnn",
    "input": {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.5]},
    "positive": ["cat"],
    "training": None,
}
PETS = {"kind": "multiclass", "classes": ["cat", "dog", "other"]}
CLASSIFIER = {**MANIFEST, "positive": None, "output": PETS}


@dataclass(frozen=True)
class Api:
    """A running API and the database behind it."""

    http: httpx.Client
    database: Database
    settings: Settings
    folder: Path

    def dataset(self, **columns: Any) -> str:
        """Put a data set into the database, ready unless said otherwise."""
        return self._add(DatasetRow, "ds", {"summary": SUMMARY, **columns})

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


@contextlib.contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Api]:
    """An API with these settings, on a home in this folder."""
    made = Settings(home=folder / "home", **settings)
    made.home.mkdir()
    database = Database(made)
    migrate(database)
    server = uvicorn.Server(
        uvicorn.Config(create_app(made), port=0, log_config=None, lifespan="on")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
        yield Api(http, database, made, folder)
    server.should_exit = True
    thread.join()
    database.dispose()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(
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
    return server


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
