"""Immutable files named by their SHA-256: what a store of them can do, and one in a folder.

A blob appears whole or not at all: it is written under a temporary name, flushed to the disk and
renamed.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol
from uuid import uuid4

from adap.store import disk
from adap.store.storage import BlobsAwayError, MissingContentError

CHUNK_BYTES = 1 << 20

STAGING = "staging"  # files that wait are named `staging/…`, so that they are never taken for blobs


class OtherContentError(Exception):
    """A file has another SHA-256 than was said."""

    def __init__(self, *, expected: str, got: str) -> None:
        super().__init__(f"expected content with the SHA-256 {expected}, got {got}")


class Blobs(Protocol):
    """A store of immutable files. Every method raises BlobsAwayError or OSError where it fails."""

    def put(self, path: Path) -> str:
        """Store a copy of a file; returns its SHA-256."""
        ...

    def stage(self, path: Path) -> str:
        """Take a file away, to be joined with others; returns the name under which it waits."""
        ...

    def join(self, staged: Sequence[str], *, sha256: str) -> None:
        """Store files that wait, one after the other, as one blob; they stay where they are.

        Raises OtherContentError for a wrong SHA-256, FileNotFoundError where one is gone; then
        nothing is stored.
        """
        ...

    def adopt(self, staged: str, *, sha256: str) -> None:
        """Make a file that waits, and has this SHA-256, a blob; it waits no longer."""
        ...

    def exists(self, name: str) -> bool:
        """Whether a blob or a file that waits is there."""
        ...

    def open(self, sha256: str) -> IO[bytes]:
        """Read a blob as a seekable file. MissingContentError if there is none."""
        ...

    def local_path(self, sha256: str) -> Path:
        """A file on this machine with the blob's content, only to be read.

        MissingContentError if there is none.
        """
        ...

    def probe(self) -> None:
        """Try the store, within seconds. Raises what stands in the way of its use."""
        ...

    def delete(self, name: str) -> None:
        """Remove a blob or a file that waits; no error if it is gone already."""
        ...

    def older_than(self, age_s: float) -> Iterator[str]:
        """All blobs and files that wait which were last written more than this long ago."""
        ...


def sha256_of(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checked(chunks: Iterable[bytes], target: Path, *, sha256: str) -> None:
    """Write chunks to a file, flushed to the disk. OtherContentError for a wrong SHA-256."""
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != sha256:
        raise OtherContentError(expected=sha256, got=digest.hexdigest())


class FolderBlobs:
    """Blobs in a local folder, 256 to a subfolder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def put(self, path: Path) -> str:
        """Store a copy of a file; returns its SHA-256."""
        part = self.root / f"{uuid4().hex}.part"
        try:
            with path.open("rb") as source, part.open("wb") as copy:
                digest = hashlib.sha256()
                while chunk := source.read(CHUNK_BYTES):  # one pass: named by what was written
                    digest.update(chunk)
                    copy.write(chunk)
                copy.flush()
                os.fsync(copy.fileno())
            return self._name(part, digest.hexdigest())
        finally:
            part.unlink(missing_ok=True)

    def stage(self, path: Path) -> str:
        """Take a file away, to be joined with others; returns the name under which it waits."""
        name = f"{STAGING}/{uuid4().hex}"
        target = self.root / name
        target.parent.mkdir(exist_ok=True)
        try:
            shutil.move(path, target)  # a rename, unless the blobs have a disk of their own
            with target.open("rb") as file:
                os.fsync(file.fileno())
            _fsync_folder(target.parent)
        except OSError:
            target.unlink(missing_ok=True)
            raise
        return name

    def join(self, staged: Sequence[str], *, sha256: str) -> None:
        """Store files that wait, one after the other, as one blob; they stay where they are."""
        part = self.root / f"{uuid4().hex}.part"
        try:
            write_checked(self._read(staged), part, sha256=sha256)
            self._name(part, sha256)
        finally:
            part.unlink(missing_ok=True)

    def _read(self, staged: Sequence[str]) -> Iterator[bytes]:
        for name in staged:
            with (self.root / name).open("rb") as source:
                while chunk := source.read(CHUNK_BYTES):
                    yield chunk

    def _name(self, part: Path, sha256: str) -> str:
        """Make a whole file the blob of this hash."""
        target = self._path(sha256)
        with suppress(FileNotFoundError):  # also where it is collected at this very moment
            os.utime(target)  # young again, so that the garbage collector spares it
            return sha256
        target.parent.mkdir(exist_ok=True)
        part.rename(target)
        _fsync_folder(target.parent)
        return sha256

    def adopt(self, staged: str, *, sha256: str) -> None:
        """Make a file that waits, and has this SHA-256, a blob; it waits no longer."""
        waiting = self.root / staged
        self._name(waiting, sha256)
        waiting.unlink(missing_ok=True)  # where that content was there already

    def exists(self, name: str) -> bool:
        """Whether a blob or a file that waits is there."""
        return self._path(name).exists()

    def open(self, sha256: str) -> IO[bytes]:
        """Read a blob as a seekable file. MissingContentError if there is none."""
        return self.local_path(sha256).open("rb")

    def local_path(self, sha256: str) -> Path:
        """The blob itself. MissingContentError if there is none."""
        path = self._path(sha256)
        try:
            path.stat()
        except FileNotFoundError as error:
            if not self.root.is_dir():
                raise BlobsAwayError(f"the folder {self.root} is not there") from error
            raise MissingContentError(sha256) from error
        return path

    def probe(self) -> None:
        """Write a small file. OSError where that fails."""
        disk.probe(self.root)

    def delete(self, name: str) -> None:
        """Remove a blob or a file that waits; no error if it is gone already."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.root / (name if name.startswith(STAGING) else f"{name[:2]}/{name}")

    def older_than(self, age_s: float) -> Iterator[str]:
        """All blobs and files that wait, older than this; remains of such writes are removed."""
        oldest = time.time() - age_s
        for part in self.root.glob("*.part"):
            if part.stat().st_mtime < oldest:
                part.unlink(missing_ok=True)
        for path in self.root.glob("??/*"):
            if path.stat().st_mtime < oldest:
                yield path.name
        for path in self.root.glob(f"{STAGING}/*"):
            if path.stat().st_mtime < oldest:
                yield f"{STAGING}/{path.name}"


def _fsync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
