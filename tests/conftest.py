"""Fixtures that every room uses.

The service that tests talk to is real, and each process of pytest starts one at most. The tests of
a file stay in one process, which makes what they share once (`--dist loadfile`, in
`pyproject.toml`). What is slow runs first, so that no process is left with it at the end.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import postgres
from tests.collector import running_collector
from tests.postgres import Postgres
from tests.s3 import Line, s3_server

REPOSITORY = Path(__file__).resolve().parent.parent

# A machine that others use stands still for seconds at times; tests of the limit set their own.
settings.register_profile("adap", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("adap")
os.environ.setdefault("ADAP_DATABASE_LIMIT_S", "60")


PROCESSES = ("benchmarks", "client", "e2e", "worker")  # folders whose tests mostly wait for others


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for garbage after the collection, not during: what it makes stays until the end."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: no process is left with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}

    def turn(item: pytest.Item) -> tuple[bool, bool]:
        folder = item.path.relative_to(REPOSITORY / "tests").parts[0]
        return item.path not in slow, folder not in PROCESSES

    items.sort(key=turn)  # stable: else in the order of the files


@contextmanager
def embedded_service(home: Path, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A service of its own on a home, ready: its address and its process."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "adap.worker.embedded", "--with-parent", "--json"),
            *("--port", "0", "--home", str(home)),
        ],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        try:
            ready = process.stdout.readline()
            assert ready, process.stderr.read()
            yield json.loads(ready)["url"], process
        finally:
            process.terminate()
            process.wait(90)


@pytest.fixture(scope="session")
def service_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where that service keeps everything."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def service(service_home: Path) -> Iterator[str]:
    """The address of a service with default settings."""
    with embedded_service(service_home) as (url, _):
        yield url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL server that lives as long as the tests; nobody stops it."""
    with postgres.postgres_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    with postgres_server.empty_database() as url:
        yield url


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 server that lives as long as the tests."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def line(s3_endpoint: str) -> Iterator[Line]:
    """A line to the S3 server that can be cut, held or slowed down."""
    made = Line(s3_endpoint)
    yield made
    made.close()


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP endpoint and the spans that it gets, each with the name of its service."""
    with running_collector() as made:
        yield made


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference gradients and CIFAR-10 images that lies beside a checkout."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder.name} beside the checkout")
    return folder
