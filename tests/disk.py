"""A real disk that is small, so that it can really be full."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 2**20
BALLAST = "ballast"


@contextmanager
def small_disk(folder: Path, *, mib: int) -> Iterator[Path]:
    """A file system of so many MiB on a folder; skips the test where none may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, how: str) -> None:
    """Make it `ro`, as a kernel does with a disk that fails, or `rw` again."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def free_bytes(disk: Path) -> int:
    """What may still be written."""
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


def fill(disk: Path, *, but: int = 0) -> None:
    """Leave so many bytes."""
    with (disk / BALLAST).open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while (room := free_bytes(disk) - but) > 0:
            file.write(bytes(min(room, MIB)))


def make_room(disk: Path) -> None:
    """Take away what `fill` wrote."""
    (disk / BALLAST).unlink()
