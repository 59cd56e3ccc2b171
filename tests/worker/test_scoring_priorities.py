"""Priorities of real processes; psutil and the kernel's own files are the judges."""

import os
import resource
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
# as a host without `ulimit -e 20` lets a service run that is not root's
WITHOUT_RIGHT = """
import resource
resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
if os.geteuid() == 0:
    os.setuid(65534)
"""
LOOKS = """
import logging, os, sys, time
from adap.worker.scoring.priorities import Priorities
{first}
logging.basicConfig(level="INFO", format="%(message)s: %(reason)s", stream=sys.stdout)
usual = os.getpriority(os.PRIO_PROCESS, 0)
priorities = Priorities()
for _ in range({looks}):
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    priorities.look([os.getpid()], contended=True)
    if priorities.any_low:
        break
print(os.getpriority(os.PRIO_PROCESS, 0) - usual, priorities.any_low)
"""


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


def may_raise() -> bool:
    """By the limit, or by CAP_SYS_NICE: sched(7), capabilities(7)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NICE)
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.partition("CapEff:")[2].split()[0], 16)
    enough = limit == resource.RLIM_INFINITY or limit >= 20 - os.getpriority(os.PRIO_PROCESS, 0)
    return enough or bool(capabilities >> 23 & 1)


NEEDS_RIGHT = pytest.mark.skipif(
    sys.platform == "linux" and not may_raise(), reason="needs `ulimit -e 20` or CAP_SYS_NICE"
)


def session_nice(process: psutil.Process) -> int | None:
    """What a kernel that shares by sessions goes by; None where this one does not."""
    try:
        return int(Path(f"/proc/{process.pid}/autogroup").read_text().split()[-1])
    except (OSError, IndexError):
        return None


@NEEDS_RIGHT
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
    assert inside() == [usual]
    assert session_nice(busy) in (0, None)


@pytest.mark.parametrize(
    ("first", "looks", "printed"),
    [
        pytest.param("", 1000, f"{LOWER} True", marks=NEEDS_RIGHT),
        (WITHOUT_RIGHT, 20, "0 False"),
    ],
    ids=["may be raised", "may not be raised"],
)
def test_nobody_is_lowered_who_could_not_be_raised_again_and_the_log_says_so(
    first: str, looks: int, printed: str
) -> None:
    program = LOOKS.format(first=first, looks=looks)
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.splitlines()

    assert output[-1] == printed
    said = [line for line in output if line.startswith("scoring.all_equal: ")]
    assert len(said) == (not printed.endswith("True"))
    assert all("ulimit -e 20" in line for line in said)


@NEEDS_RIGHT
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
