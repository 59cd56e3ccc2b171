"""What a hijacked parser could do inside the sandbox: nothing. Each test tries one thing."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from adap.store.settings import GIB, Settings
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


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    home = tmp_path / "home"
    home.mkdir()
    (home / "adap.db").write_text("every secret")
    made = make_sandbox(Settings(home=home))
    if made.kind != "bubblewrap":
        pytest.skip("this machine does not allow namespaces")
    return made


def run(sandbox: Sandbox, code: str, tmp_path: Path, *, memory_bytes: int = GIB) -> tuple[int, str]:
    """Run Python in the sandbox with its output in a file of the work folder."""
    folder = tmp_path / "home" / "work"
    folder.mkdir(exist_ok=True)
    upload = tmp_path / "home" / "upload"
    upload.write_text("the upload")
    read_end, write_end = os.pipe()
    limit = (
        f"from worker.sandbox import limit_resources; limit_resources(memory_bytes={memory_bytes})"
    )
    script = f"import os, sys; sys.stdout = os.fdopen({write_end}, 'w'); {limit}; {code}"
    process = sandbox.start(
        [sys.executable, "-c", script], pass_fd=write_end, folder=folder, inputs=[upload]
    )
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        output = pipe.read()
    return process.wait(timeout=60), output.strip()


def test_it_reads_its_input_and_writes_its_folder(sandbox: Sandbox, tmp_path: Path) -> None:
    upload = tmp_path / "home" / "upload"
    code = f"print(open({str(upload)!r}).read()); open('out', 'w').write('made')"
    assert run(sandbox, code, tmp_path) == (0, "the upload")
    assert (tmp_path / "home" / "work" / "out").read_text() == "made"


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('127.0.0.1', PORT), 2)",
        "import socket; socket.getaddrinfo('example.org', 80)",
        "open('HOME/adap.db').read()",
        "open('HOME/upload', 'a').write('x')",
        "open('/etc/evil', 'w')",
        "open('/root/evil', 'w')",
        "os.kill(PARENT, 9)",
        "open('/proc/PARENT/environ').read()",
        "bytearray(2**31)",
        "assert __import__('ctypes').CDLL(None).mount(b'none', b'/mnt', b'tmpfs', 0, 0) == 0",
        "os.execv('/bin/true', ['true'])",
    ],
)
def test_it_can_do_nothing_else(sandbox: Sandbox, tmp_path: Path, attempt: str) -> None:
    import socket

    server = socket.create_server(("127.0.0.1", 0))
    sleeper = subprocess.Popen(["/bin/sleep", "60"])
    code = (
        attempt.replace("PORT", str(server.getsockname()[1]))
        .replace("HOME", str(tmp_path / "home"))
        .replace("PARENT", str(sleeper.pid))
    )
    status, output = run(sandbox, f"{code}; print('it worked')", tmp_path)
    still_sleeping = sleeper.poll() is None
    sleeper.kill()
    sleeper.wait()
    server.close()
    assert status != 0
    assert output == ""
    assert still_sleeping


def test_it_inherits_no_environment(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAP_DATABASE_URL", "postgresql://user:secret@host/db")
    status, output = run(sandbox, "print(sorted(os.environ))", tmp_path)
    assert status == 0
    assert "ADAP" not in output


@pytest.mark.parametrize("kind", ["bubblewrap", "process"])
def test_a_fork_bomb_starts_no_process(sandbox: Sandbox, tmp_path: Path, kind: Kind) -> None:
    folder = tmp_path / "home" / "work"
    folder.mkdir()
    (folder / "bomb.py").write_text(FORK_BOMB)
    read_end, write_end = os.pipe()
    process = Sandbox(kind, GIB, sandbox.hidden).start(
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
    from adap.worker import sandbox as module

    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    module._bwrap.cache_clear()
    module._bubblewrap_works.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="ADAP_SANDBOX=process"):
            make_sandbox(Settings(home=tmp_path, sandbox="bubblewrap"))
        assert make_sandbox(Settings(home=tmp_path)).kind == "process"
    finally:
        module._bwrap.cache_clear()
        module._bubblewrap_works.cache_clear()
