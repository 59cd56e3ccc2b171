"""Whoever computes much yields to whoever computes little, by the priorities of the kernel.

The kernel shares the cores between processes in equal parts, so a tenant who keeps them busy makes
everybody's short answer wait for its turn, again at each of the processes that it goes through.
While several tenants ask, the decoders and networks that use much of a core run at a low priority:
they get what is left, which is most of it, and who asks little finds a core at once.

Everybody may lower a priority; to raise it again needs `ulimit -e 20` or CAP_SYS_NICE. Without it
nobody is lowered, as it would be for life: with nobody left to yield to, a process would still get
less than whatever else the machine does. Linux only; elsewhere nothing is changed.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

LOOK_S = 0.5  # between two looks
MUCH = 0.25  # of a core, between two looks
CALM_S = 3.0  # after which one that uses less is raised again
LOWER = 10  # than the service: a ninth of its weight, sched(7)
LOWEST = 19
_TICKS_S = os.sysconf("SC_CLK_TCK")


@dataclass
class _Seen:
    used_s: float  # of the processor
    at: float
    busy_at: float = float("-inf")
    low: bool = False


class Priorities:
    """The priorities of some processes, each with all that it has started."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._usual = os.getpriority(os.PRIO_PROCESS, 0)
        with ThreadPoolExecutor(1) as pool:
            self._may_raise = sys.platform == "linux" and pool.submit(_may_raise).result()
        if not self._may_raise:
            reason = "expected `ulimit -e 20` or CAP_SYS_NICE to raise processes again, got neither"
            log.info("scoring.all_equal", extra={"reason": reason})

    @property
    def any_low(self) -> bool:
        """Whether some are to be raised one day."""
        return any(seen.low for seen in self._seen.values())

    def look(self, pids: Iterable[int], *, contended: bool) -> None:
        """Lower those that used much since the last look, while contended; raise the others.

        Does nothing where they could not be raised again.
        """
        if not self._may_raise:
            return
        now = time.monotonic()
        families = {pid: _family(pid) for pid in pids}
        self._seen = {pid: seen for pid, seen in self._seen.items() if pid in families}
        for pid, family in families.items():
            used_s = sum(map(_used_s, family))
            seen = self._seen.setdefault(pid, _Seen(used_s, now))
            if used_s - seen.used_s > MUCH * (now - seen.at):
                seen.busy_at = now
            seen.used_s, seen.at = used_s, now
            low = contended and now - seen.busy_at < CALM_S
            if low != seen.low:
                seen.low = low
                for each in family:
                    _set(each, usual=self._usual, lower=LOWER if low else 0)


def _may_raise() -> bool:
    """Whether this thread, which is to end then, can be lowered and raised again."""
    thread = threading.get_native_id()
    usual = os.getpriority(os.PRIO_PROCESS, thread)
    try:
        for priority in (usual + 1, usual):
            os.setpriority(os.PRIO_PROCESS, thread, priority)
    except OSError:
        return False
    return True


def _family(pid: int) -> list[int]:
    """A process and all that it has started: a sandbox is a process around the one that works."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{each}/task/{each}/children").read_text()
            found += map(int, children.split())
    return found


def _used_s(pid: int) -> float:
    """The processor's time of a process, all threads together: proc_pid_stat(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_S


def _set(pid: int, *, usual: int, lower: int) -> None:
    with contextlib.suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), min(usual + lower, LOWEST))
    with contextlib.suppress(OSError):  # kernels that share by sessions look at this instead
        Path(f"/proc/{pid}/autogroup").write_text(str(lower))
