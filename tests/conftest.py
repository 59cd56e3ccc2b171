"""Fixtures that every room uses.

The service that tests talk to is real and started once: tests that use it say
`pytestmark = pytest.mark.xdist_group("service")`, and `--dist loadgroup` (in `pyproject.toml`) then
runs all of them in one process, however many there are.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import postgres
from tests.collector import running_collector
from tests.postgres import Postgres

REPOSITORY = Path(__file__).resolve().parent.parent

# A machine that others use stands still for seconds at times; tests of the limit set their own.
os.environ.setdefault("ADAP_DATABASE_LIMIT_S", "60")


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
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service with default settings."""
    with embedded_service(tmp_path_factory.mktemp("home")) as (url, _):
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
