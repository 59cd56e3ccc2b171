"""Priorities of real processes; psutil and the kernel's own files are the judges."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from adap.worker.scoring.priorities import LOWER, Priorities

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="of Linux alone")

SPIN = "while True: pass"
AROUND = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SPIN!r}])"
SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def start() -> Iterator[Callable[[str], psutil.Process]]:
    """Programs that end with the test, each in a session of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def go(program: str) -> psutil.Process:
        started.append(subprocess.Popen([sys.executable, "-c", program], start_new_session=True))
        return psutil.Process(started[-1].pid)

    yield go
    for process in started:
        os.killpg(process.pid, 9)
        process.wait()


def until(happens: Callable[[], bool], look: Callable[[], None]) -> None:
    """Look again and again until it has happened."""
    deadline = time.monotonic() + 120
    while not happens():
        assert time.monotonic() < deadline, "it never happened"
        look()
        time.sleep(0.05)


def session_nice(process: psutil.Process) -> int | None:
    """What a kernel that shares by sessions goes by; None where this one does not."""
    try:
        return int(Path(f"/proc/{process.pid}/autogroup").read_text().split()[-1])
    except (OSError, IndexError):
        return None


def test_who_computes_much_yields_while_others_ask_and_only_then(
    start: Callable[[str], psutil.Process],
) -> None:
    busy, idle = start(AROUND), start(SLEEP)  # the busy one is inside another, as in a sandbox
    priorities = Priorities()
    usual = idle.nice()
    low = min(usual + LOWER, 19)

    def look(contended: bool = True) -> None:
        priorities.look([busy.pid, idle.pid], contended=contended)

    def inside() -> list[int]:
        return [child.nice() for child in busy.children()]

    until(lambda: inside() != [], lambda: None)
    for _ in range(3):
        time.sleep(0.05)
        look(contended=False)
    assert inside() == [usual]
    assert not priorities.any_low

    until(lambda: inside() == [low], look)

    assert busy.nice() == low
    assert session_nice(busy) in (LOWER, None)
    assert idle.nice() == usual
    assert session_nice(idle) in (0, None)

    look(contended=False)

    assert not priorities.any_low
    may_raise = os.geteuid() == 0 or busy.rlimit(psutil.RLIMIT_NICE)[0] >= 20 - usual
    assert inside() == ([usual] if may_raise else [low])


def test_who_is_not_named_again_is_forgotten_and_who_has_ended_uses_nothing(
    start: Callable[[str], psutil.Process],
) -> None:
    busy = start(SPIN)
    priorities = Priorities()
    until(lambda: priorities.any_low, lambda: priorities.look([busy.pid], contended=True))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    priorities.look([ended.pid], contended=True)

    assert not priorities.any_low
