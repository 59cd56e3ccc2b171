"""Copies of blobs on this machine: checked, and never more than so many bytes for long.

Several processes share one folder. A copy is found by its name, and checked against it when a
process uses it first, or when the file has changed since. What was used longest ago leaves first;
what was used a moment ago stays, as somebody may be about to open it.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from uuid import uuid4

from adap.store.blobs import sha256_of, write_checked

IN_USE_S = 600.0
PART_S = 24 * 3600.0  # remains of a killed process are older


class Cache:
    """A folder of files that are named by their SHA-256."""

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes
        self._checked: dict[str, tuple[int, int, int]] = {}
        self._turn = Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, sha256: str) -> Path | None:
        """A copy that is whole, young again; None if there is none."""
        path = self.folder / sha256
        try:
            seen = _identity(path)
            os.utime(path, ns=(time.time_ns(), seen[2]))  # used now, but not changed
            if self._checked.get(sha256) != seen:
                if sha256_of(path) != sha256:  # its disk has damaged it
                    path.unlink()
                    return None
                self._checked[sha256] = seen
        except FileNotFoundError:
            return None
        return path

    def keep(self, sha256: str, chunks: Iterable[bytes]) -> Path:
        """Write a copy and make room for it. OtherContentError for content of another name."""
        path = self.folder / sha256
        with self.part() as part:
            write_checked(chunks, part, sha256=sha256)
            self._checked[sha256] = _identity(part)
            part.rename(path)
        self._evict()
        return path

    @contextmanager
    def part(self) -> Iterator[Path]:
        """A path for a file that is gone after the block, unless it got another name."""
        path = self.folder / f"{uuid4().hex}.part"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def forget(self, name: str) -> None:
        """Remove a copy."""
        (self.folder / name).unlink(missing_ok=True)
        self._checked.pop(name, None)

    def _evict(self) -> None:
        now = time.time()
        with self._turn:
            files = []
            for entry in os.scandir(self.folder):
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    files.append((status.st_atime, status.st_size, entry.name))
            excess = sum(size for _, size, _ in files) - self._limit_bytes
            for used_at, size, name in sorted(files):
                idle_s = PART_S if name.endswith(".part") else IN_USE_S
                if used_at > now - idle_s:
                    continue
                if excess > 0 or name.endswith(".part"):
                    self.forget(name)
                    excess -= size


def _identity(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced or written to."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
