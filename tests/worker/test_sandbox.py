"""What a hijacked parser could do inside the sandbox: nothing. Each test tries one thing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from store.settings import Settings
from worker.sandbox import Sandbox, make_sandbox

PROLOGUE = "from worker.sandbox import limit_resources; limit_resources(memory_bytes=2**30); "


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    home = tmp_path / "home"
    home.mkdir()
    (home / "adap.db").write_text("every secret")
    made = make_sandbox(Settings(home=home))
    if made.kind != "bubblewrap":
        pytest.skip("this machine does not allow namespaces")
    return made


def run(sandbox: Sandbox, code: str, tmp_path: Path) -> tuple[int, str]:
    """Run Python in the sandbox with its output in a file of the work folder."""
    folder = tmp_path / "home" / "work"
    folder.mkdir(exist_ok=True)
    upload = tmp_path / "home" / "upload"
    upload.write_text("the upload")
    read_end, write_end = os.pipe()
    script = f"import os, sys; sys.stdout = os.fdopen({write_end}, 'w'); {PROLOGUE}{code}"
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


def test_asking_for_bubblewrap_where_it_cannot_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker import sandbox as module

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
