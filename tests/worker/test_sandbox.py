"""Attempts of a hijacked parser to get out of the sandbox. Each test tries one thing."""

import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from adap.store.settings import GIB, Settings
from adap.worker import sandbox as module
from adap.worker.sandbox import MAX_THREADS, Kind, Sandbox, make_sandbox

# Every way to a new process, tried again and again, from the main thread and from one that ran
# before the limits did; what does start sleeps, and is found. Nothing here starts twenty at once.
FORK_BOMB = """
import ctypes, os, subprocess, sys, threading, time

go, libc, started = threading.Event(), ctypes.CDLL(None, use_errno=True), []
numbers = {"x86_64": [57, 58, 56], "aarch64": [220]}[os.uname().machine]  # fork, vfork, clone

def raw(number):
    if (pid := libc.syscall(number, 17, 0, 0, 0, 0)) < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return pid

def fork():
    ways = [os.fork, lambda: subprocess.Popen(["/bin/sleep", "20"]).pid]
    ways += [lambda: os.posix_spawn("/bin/sleep", ["sleep", "20"], {})]
    ways += [lambda n=n: raw(n) for n in numbers]
    for way in ways * 3:
        try:
            pid = way()
        except PermissionError:
            continue
        if pid == 0:
            time.sleep(20)
            os._exit(0)
        started.append(pid)

early = threading.Thread(target=lambda: (go.wait(), fork()))
early.start()
from adap.worker.sandbox import limit_resources
limit_resources(memory_bytes=2**30)
fork()
go.set()
early.join()
print(f"started {len(started)}", file=os.fdopen(int(sys.argv[1]), "w"))
"""

# what works is named; a program that it becomes says nothing, and so not how many it tried
TRY = """
import ctypes

libc = ctypes.CDLL(None, use_errno=True)


def call(number):
    if libc.syscall(number, 0x10000000, 0, 0, 0, 0) < 0 and ctypes.get_errno() == 1:
        raise PermissionError


tried = 0
for attempt in %r:
    try:
        exec(attempt)
    except (OSError, MemoryError, AssertionError):
        tried += 1
    else:
        print("worked:", attempt)
print("tried", tried)
"""


def made(kind: Kind, tmp_path: Path) -> Sandbox:
    home = tmp_path / "home"
    home.mkdir()
    (home / "adap.db").write_text("every secret")
    try:
        return make_sandbox(Settings(home=home, sandbox=kind))
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return made("bubblewrap", tmp_path)


@pytest.fixture(params=["bubblewrap", "landlock"])
def walled(request: pytest.FixtureRequest, tmp_path: Path) -> Sandbox:
    return made(request.param, tmp_path)


def run(sandbox: Sandbox, code: str, tmp_path: Path, *, memory_bytes: int = GIB) -> tuple[int, str]:
    """Run Python in the sandbox with its output in a file of the work folder."""
    folder = tmp_path / "home" / "work"
    folder.mkdir(exist_ok=True)
    upload = tmp_path / "home" / "upload"
    upload.write_text("the upload")
    read_end, write_end = os.pipe()
    script = (
        f"import os, sys; sys.stdout = os.fdopen({write_end}, 'w')\n"
        "from adap.worker.sandbox import limit_resources\n"
        f"limit_resources(memory_bytes={memory_bytes})\n{code}"
    )
    process = sandbox.start(
        [sys.executable, "-c", script], pass_fd=write_end, folder=folder, inputs=[upload]
    )
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        output = pipe.read()
    return process.wait(timeout=60), output.strip()


def test_it_reads_its_input_and_writes_its_folder(walled: Sandbox, tmp_path: Path) -> None:
    upload = tmp_path / "home" / "upload"
    code = f"print(open({str(upload)!r}).read()); open('out', 'w').write('made')"
    assert run(walled, code, tmp_path) == (0, "the upload")
    assert (tmp_path / "home" / "work" / "out").read_text() == "made"


# unshare (0x10000000 is a user namespace), ptrace, process_vm_readv, keyctl, bpf, perf_event_open,
# userfaultfd, setns, init_module, chroot, personality; io_uring_setup, open_tree, pidfd_open
FORBIDDEN = {
    "x86_64": (272, 101, 310, 250, 321, 298, 323, 308, 175, 161, 135),
    "aarch64": (97, 117, 270, 219, 280, 241, 282, 268, 105, 51, 92),
}
ATTEMPTS = [
    "open('HOME/adap.db').read()",
    "open('/etc/shadow').read()",
    "open('/etc/passwd').read()",
    "open('SECRET').read()",
    "open('CHECKOUT/pyproject.toml').read()",
    "open('/proc/PARENT/environ').read()",
    "open('/proc/PARENT/cmdline').read()",
    "open('HOME/upload', 'a').write('x')",
    "open('/evil', 'w')",
    "open('/etc/evil', 'w')",
    "open('/root/evil', 'w')",
    "open('/tmp/evil', 'w')",
    "open('CODE', 'a')",
    "os.unlink('HOME/upload')",
    "os.symlink('/etc', 'HOME/link')",
    "assert __import__('ctypes').CDLL(None).mount(b'none', b'/mnt', b'tmpfs', 0, 0) == 0",
    "os.execv('/bin/true', ['true'])",
    "os.execv(sys.executable, ['python', '-c', 'pass'])",
    "bytearray(2**31)",
    "import socket; socket.create_connection(('127.0.0.1', PORT), 2)",
    "import socket; socket.getaddrinfo('example.org', 80)",
    "import socket; socket.socket(socket.AF_UNIX).connect('SOCKET')",
    "import socket; socket.socket(socket.AF_UNIX).connect('\\0ABSTRACT')",
    "import socket; socket.socketpair()",
    "os.kill(SLEEPER, 9)",
    "os.kill(-1, 9)",
    "import signal; signal.pidfd_send_signal(os.pidfd_open(SLEEPER), 9)",
    "import resource; resource.prlimit(SLEEPER, resource.RLIMIT_CPU, (0, 0))",
    "os.fork()",
    "os.posix_spawn('/bin/true', ['true'], {})",
    *(f"call({number})" for number in (*FORBIDDEN[platform.machine()], 425, 428, 434)),
]


def test_it_can_do_nothing_else(walled: Sandbox, tmp_path: Path) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    named, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    sleeper = subprocess.Popen(["/bin/sleep", "60"])
    named.bind(str(tmp_path / "home" / "broker"))
    abstract.bind(f"\0adap-{os.getpid()}")
    named.listen()
    abstract.listen()
    with (
        server,
        named,
        abstract,
        tempfile.NamedTemporaryFile("w+", dir=Path.home(), prefix=".adap-secret-") as secret,
    ):
        secret.write("somebody's")
        secret.flush()
        places = {
            "SECRET": secret.name,
            "HOME": str(tmp_path / "home"),
            "PARENT": str(os.getpid()),
            "CHECKOUT": str(Path(__file__).parents[2]),
            "CODE": module.__file__,
            "PORT": str(server.getsockname()[1]),
            "SOCKET": str(tmp_path / "home" / "broker"),
            "ABSTRACT": f"adap-{os.getpid()}",
            "SLEEPER": str(sleeper.pid),
        }
        attempts = [
            re.sub("|".join(places), lambda found: places[found[0]], one) for one in ATTEMPTS
        ]
        status, output = run(walled, f"exec({TRY!r} % {attempts!r})", tmp_path)
    still_sleeping = sleeper.poll() is None
    sleeper.kill()
    sleeper.wait()
    assert (status, output) == (0, f"tried {len(ATTEMPTS)}")
    assert still_sleeping
    assert (tmp_path / "home" / "upload").read_text() == "the upload"


def test_it_inherits_no_environment(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAP_DATABASE_URL", "postgresql://user:secret@host/db")
    status, output = run(sandbox, "print(sorted(os.environ))", tmp_path)
    assert status == 0
    assert "ADAP" not in output


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock", "process"])
def test_a_fork_bomb_starts_no_process(sandbox: Sandbox, tmp_path: Path, kind: Kind) -> None:
    folder = tmp_path / "home" / "work"
    folder.mkdir()
    (folder / "bomb.py").write_text(FORK_BOMB)
    read_end, write_end = os.pipe()
    process = Sandbox(kind, GIB).start(
        [sys.executable, "bomb.py", str(write_end)], pass_fd=write_end, folder=folder, inputs=[]
    )
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        output = pipe.read()
    assert (process.wait(timeout=60), output) == (0, "started 0\n")
    left = [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(folder)]
    assert left == []


def test_torch_has_its_threads_and_their_number_is_limited(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    code = (
        "import resource, torch; torch.set_num_threads(2); square = torch.ones(512, 512); "
        "assert (square @ square).sum() == 512**3; "
        "print(len(os.listdir('/proc/self/task')), *resource.getrlimit(resource.RLIMIT_NPROC))"
    )
    status, output = run(sandbox, code, tmp_path, memory_bytes=16 * GIB)
    threads, *limits = map(int, output.split())
    assert status == 0
    assert threads > 1
    if tuple(map(int, os.uname().release.split(".")[:2])) >= (5, 14):
        assert limits == [MAX_THREADS, MAX_THREADS]


def test_asking_for_bubblewrap_where_it_cannot_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    module._bwrap.cache_clear()
    module._bubblewrap_works.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="ADAP_SANDBOX=process"):
            make_sandbox(Settings(home=tmp_path, sandbox="bubblewrap"))
        assert make_sandbox(Settings(home=tmp_path)).kind in ("landlock", "process")
    finally:
        module._bwrap.cache_clear()
        module._bubblewrap_works.cache_clear()
