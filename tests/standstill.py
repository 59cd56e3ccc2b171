"""Processes that stand still: suspended, and seen to be, for a signal is heard a while later."""

import contextlib
import time
from pathlib import Path

import psutil


def suspend(*processes: psutil.Process) -> None:
    """Stop processes, and wait until not one of their threads moves any more."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    while any(_moves(process.pid) for process in processes):
        time.sleep(0.01)


def _moves(pid: int) -> bool:
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if thread.read_text().rpartition(")")[2].split()[0] not in "TZX":
                return True
    return False
