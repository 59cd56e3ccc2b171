"""The whole service as one command, with real processes that are really killed.

The judges: the kernel's process table, SQLite read without our code, and the plain HTTP answers.
"""

import os
import re
import select
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from pydantic import SecretStr

from adap.store.settings import Settings, child_environment
from adap.worker.embedded import Part, held_port
from tests.conftest import embedded_service
from tests.standstill import suspend

SERVICE = [sys.executable, "-P", "-m", "adap.worker.embedded"]
IMPATIENT = {"ADAP_LEASE_S": "8", "ADAP_HEARTBEAT_S": "0.5", "ADAP_SWEEP_S": "0.5"}


def children() -> dict[int, list[int]]:
    """The process table: the children of each process, zombies left out."""
    table: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            table.setdefault(int(parent), []).append(int(entry.parent.name))
    return table


def tree(pid: int) -> set[int]:
    """A process and all that descend from it."""
    table, found, todo = children(), set(), [pid]
    while todo:
        found.add(todo.pop())
        todo = [child for parent in found for child in table.get(parent, []) if child not in found]
    return found


def names(pids: set[int]) -> str:
    """The command lines of processes, those that have ended left out."""
    lines = []
    for pid in pids:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        lines.append(f"{pid} {command}")
    return "\n".join(lines)


def running(pids: set[int]) -> set[int]:
    """Those of some processes that still run."""
    return pids & {child for group in children().values() for child in group}


def wait_for(what: Callable[[], Any], *, limit_s: float = 300) -> Any:
    """What a function says, once it says something."""
    deadline = time.monotonic() + limit_s
    while not (answer := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer


def get(url: str, path: str) -> Any:
    """The JSON at a path."""
    return httpx.get(f"{url}{path}", trust_env=False, timeout=60).raise_for_status().json()


def post(url: str, path: str, **content: Any) -> Any:
    """What the service answers to a POST."""
    return (
        httpx.post(f"{url}{path}", trust_env=False, timeout=60, **content).raise_for_status().json()
    )


def add_pets(url: str) -> str:
    """A data set of 24 images, ready; its id."""
    random, archive = np.random.default_rng(0), BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        for name, brightness in {"cat": 150, "dog": 50}.items():
            for i in range(12):
                png = BytesIO()
                pixels = random.integers(brightness, brightness + 100, (8, 8), np.uint8)
                Image.fromarray(pixels).save(png, "png")
                bundle.writestr(f"{name}/{i}.png", png.getvalue())
    dataset = post(url, "/v1/datasets", files={"file": ("pets.zip", archive.getvalue())})
    path = f"/v1/datasets/{dataset['id']}"
    wait_for(lambda: get(url, path)["status"] == "ready")
    return str(dataset["id"])


def enqueue_training(url: str, dataset: str, *, epochs: int) -> str:
    """The id of the job."""
    request = {
        "dataset_id": dataset,
        "task": {"positive": ["cat"]},
        "method": "ce",
        "epochs": epochs,
        "batch_size": 8,
    }
    return str(post(url, "/v1/training-jobs", json=request)["id"])


def train(url: str, dataset: str, *, epochs: int) -> str:
    """A training that has begun; the id of its job."""
    job_id = enqueue_training(url, dataset, epochs=epochs)
    wait_for(lambda: epochs_done(url, job_id))
    return job_id


def ended(url: str, job_id: str) -> Any:
    """A job, once it has ended."""
    return wait_for(lambda: (job := get(url, f"/v1/jobs/{job_id}"))["done"] and job)


def epochs_done(url: str, job_id: str) -> list[int]:
    """The epochs that a job has told of."""
    events = get(url, f"/v1/jobs/{job_id}/events?limit=1000")["data"]
    return [event["data"]["epoch"] for event in events if event["type"] == "epoch"]


def at_work(pid: int) -> list[psutil.Process]:
    """What computes jobs: leaders of sessions of their own, below the worker for them."""
    parts = psutil.Process(pid).children(recursive=True)
    (worker,) = (part for part in parts if "--queue compute" in shlex.join(part.cmdline()))
    return [child for child in worker.children(recursive=True) if os.getsid(child.pid) == child.pid]


# --- nothing is left behind -----------------------------------------------------------------------


def test_a_killed_service_leaves_no_process_and_all_its_jobs_go_on_after_a_restart(
    tmp_path: Path,
) -> None:
    with embedded_service(tmp_path, **IMPATIENT) as (url, process):
        dataset = add_pets(url)
        job_id = train(url, dataset, epochs=40)
        wait_for(lambda: len(epochs_done(url, job_id)) > 1)  # the first is kept by then
        held = at_work(process.pid)
        suspend(*held)  # so that it does not end before it is killed
        queued = [enqueue_training(url, dataset, epochs=1) for _ in range(20)]
        post(url, "/v1/models", files={"file": ("x.safetensors", b"no weights")})
        sandboxed = "worker.child"
        wait_for(lambda: sandboxed in names(tree(process.pid)))
        pids = tree(process.pid)
        started = names(pids)
        for part in (
            "valkey-server",
            "--queue compute",
            "--queue intake",
            "-m adap.api",
            "forkserver",
        ):
            assert part in started
        process.kill()
        process.wait()
        for child in held:
            child.resume()
        wait_for(lambda: not running(pids), limit_s=10)

    with embedded_service(tmp_path, **IMPATIENT) as (url, process):
        job = ended(url, job_id)
        assert (job["status"], job["attempt"]) == ("succeeded", 2), job["error"]
        events = get(url, f"/v1/jobs/{job_id}/events?limit=1000")["data"]
        (resumed,) = [event["data"]["epoch"] for event in events if event["type"] == "resumed"]
        assert resumed >= 1
        model = get(url, f"/v1/models/{job['result']['model_id']}")
        history = [record["epoch"] for record in model["manifest"]["training"]["history"]]
        assert history == list(range(1, 41))
        for other in queued:
            job = ended(url, other)
            assert (job["status"], job["attempt"]) == ("succeeded", 1), job["error"]

        # Ctrl-C now, in the middle of another one
        job_id = train(url, dataset, epochs=1000)
        pids = tree(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        wait_for(lambda: not running(pids), limit_s=10)  # the kernel may still be at the last
    with sqlite3.connect(tmp_path / "adap.db") as database:
        (status,) = database.execute("SELECT status FROM jobs WHERE id = ?", (job_id,)).fetchone()
        reason = database.execute(
            "SELECT data FROM job_events WHERE job_id = ? ORDER BY seq DESC", (job_id,)
        ).fetchone()
    database.close()
    assert (status, reason) == ("queued", ('{"reason": "worker_shutdown"}',))


def test_a_service_started_by_a_program_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(1000)"  # a demo
    )
    options = ["--with-parent", "--json", "--port", "0", "--home", str(tmp_path)]
    starter = subprocess.Popen(
        [sys.executable, "-c", code, *SERVICE, *options], stdout=subprocess.PIPE
    )
    assert starter.stdout is not None
    with starter.stdout as ready:
        assert ready.readline()
        pids = tree(starter.pid)
        assert len(pids) >= 6
        starter.kill()
        starter.wait()
        wait_for(lambda: not running(pids), limit_s=20)


# --- one service that runs ------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """A service, its home, and what it tells the person who started it."""

    url: str
    home: Path
    process: subprocess.Popen[str]

    def said(self, wanted: str) -> str:
        """What comes on standard error, up to a text."""
        assert self.process.stderr is not None
        text, deadline = "", time.monotonic() + 120
        while wanted not in text:
            assert time.monotonic() < deadline, text
            if select.select([self.process.stderr], [], [], 0.5)[0]:
                text += os.read(self.process.stderr.fileno(), 4096).decode()
        return text


@pytest.fixture(scope="module")
def service_far_down(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service whose home has a longer path than a socket may have."""
    home = tmp_path_factory.mktemp("far") / ("d" * 60) / ("o" * 60) / "wn"
    with embedded_service(home, **IMPATIENT) as (url, process):
        yield Running(url, home, process)
    assert not list(home.rglob("*.sock"))


def test_it_says_where_it_is_and_is_ready_then(service_far_down: Running) -> None:
    answer = wait_for(
        lambda: (ready := get(service_far_down.url, "/readyz"))["status"] == "ok" and ready
    )
    assert [worker["queue"] for worker in answer["workers"]] == ["compute", "intake"]
    assert service_far_down.home.stat().st_mode & 0o777 == 0o700


def test_a_log_that_has_grown_long_is_put_aside_and_goes_on_from_its_start(tmp_path: Path) -> None:
    log, go_on = tmp_path / "part.log", tmp_path / "go_on"
    script = f"echo first; while [ ! -e {go_on} ]; do sleep 0.05; done; echo second; sleep 600"
    part = Part("part", ["/bin/sh", "-c", script], environment={}, log=log)
    part.start()
    try:
        wait_for(lambda: log.read_text() == "first\n")
        part.keep_log_short(len("first\n"))
        assert log.read_text() == "first\n"  # not longer than it may be
        part.keep_log_short(len("first\n") - 1)
        assert log.read_text() == ""
        go_on.touch()
        wait_for(lambda: log.read_bytes() == b"second\n")
        assert (tmp_path / "part.log.1").read_text() == "first\n"
    finally:
        part.terminate()
        part.wait(0, give_up=lambda: True)


def test_a_second_service_on_the_same_home_is_refused(service_far_down: Running) -> None:
    home = str(service_far_down.home)
    second = subprocess.run(
        [*SERVICE, "--port", "0", "--home", home], capture_output=True, text=True, timeout=30
    )
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr == (
        f"A service runs on {home} already: {service_far_down.url}, "
        f"process {service_far_down.process.pid}. Use that one, or choose another --home.\n"
    )


@pytest.mark.parametrize(
    "part", ["-m adap.api", "worker --queue compute", "-m adap.worker.scoring ", "valkey-server"]
)
def test_a_part_that_dies_is_started_again(service_far_down: Running, part: str) -> None:
    before = get(service_far_down.url, "/readyz")["workers"]
    (line,) = [
        line for line in names(tree(service_far_down.process.pid)).splitlines() if part in line
    ]
    os.kill(int(line.split()[0]), signal.SIGKILL)
    name = {
        "-m adap.api": "api",
        "worker --queue compute": "worker-compute",
        "-m adap.worker.scoring ": "scoring",
        "valkey-server": "valkey",
    }[part]
    said = service_far_down.said(f"{name} runs again.")
    assert re.match(
        rf"{name} ended with exit code -9; it starts again in \d(\.\d)? s\. "
        rf"Its log: {service_far_down.home}/logs/{name}\.log\n",
        said,
    )

    def well_again() -> bool:
        try:
            answer = get(service_far_down.url, "/readyz")
        except httpx.TransportError:
            return False
        renewed = part != "worker --queue compute" or answer["workers"] != before
        return bool(answer["status"] == "ok" and renewed)

    wait_for(well_again)


def test_a_port_that_is_held_is_nobody_elses_but_may_be_listened_on() -> None:
    with held_port("127.0.0.1", 0) as port:
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
        for _ in range(2):  # it is started again
            with (
                socket.create_server(("127.0.0.1", port)) as api,
                socket.create_connection(("127.0.0.1", port)),
            ):
                api.accept()[0].close()


# --- starts that fail -----------------------------------------------------------------------------


def test_an_address_that_others_can_reach_needs_a_key_first(tmp_path: Path) -> None:
    run = subprocess.run(
        [*SERVICE, "--host", "0.0.0.0", "--port", "0", "--home", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith(
        "api did not start:\nRefusing to listen on 0.0.0.0 without API keys: "
    )


def test_a_database_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    run = subprocess.run(
        [*SERVICE, "--port", "0", "--home", str(tmp_path)],
        env={**os.environ, "ADAP_DATABASE_URL": f"sqlite:///{tmp_path}/nowhere/adap.db"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("The database cannot be used:\n")
    assert "unable to open database file" in run.stderr


def test_children_read_the_very_settings_of_their_parent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(
        home=tmp_path, port=0, lease_s=2.5, threads=1, bootstrap_admin_key=SecretStr("a secret")
    )
    environment = child_environment(settings)
    assert environment["PATH"] == os.environ["PATH"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
