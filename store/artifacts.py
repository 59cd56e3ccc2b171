"""Blobs: immutable files named by their SHA-256, in a folder or in an S3 bucket.

A blob appears whole or not at all: it is written under a temporary name, flushed to the disk and
renamed. Rows refer to blobs by hash; a blob that no row refers to is deleted after a grace period.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.settings import Settings
from store.tables import DatasetRow, JobRow, ModelRow, ScoresRow

CHUNK_BYTES = 1 << 20


class Blobs(Protocol):
    """A store of immutable files."""

    def put(self, path: Path) -> str:
        """Store a copy of a file; returns its SHA-256."""
        ...

    def open(self, sha256: str) -> IO[bytes]:
        """Read a blob as a seekable file. FileNotFoundError if there is none."""
        ...

    def local_path(self, sha256: str) -> Path:
        """A file on this machine with the blob's content, only to be read."""
        ...

    def delete(self, sha256: str) -> None:
        """Remove a blob; no error if it is gone already."""
        ...

    def older_than(self, age_s: float) -> Iterator[str]:
        """All blobs that were last written more than this long ago."""
        ...


def open_blobs(settings: Settings) -> Blobs:
    """The blob store of the settings."""
    if settings.blobs.startswith("s3://"):
        from store.s3 import S3Blobs  # an extra: obstore is not needed on one machine

        return S3Blobs(settings)
    return FolderBlobs(Path(settings.blobs))


def sha256_of(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            target = self.local_path(digest.hexdigest())
            if target.exists():
                os.utime(target)  # young again, so that the garbage collector spares it
                return target.name
            target.parent.mkdir(exist_ok=True)
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
        _fsync_folder(target.parent)
        return target.name

    def open(self, sha256: str) -> IO[bytes]:
        """Read a blob as a seekable file. FileNotFoundError if there is none."""
        return self.local_path(sha256).open("rb")

    def local_path(self, sha256: str) -> Path:
        """The blob itself."""
        return self.root / sha256[:2] / sha256

    def delete(self, sha256: str) -> None:
        """Remove a blob; no error if it is gone already."""
        self.local_path(sha256).unlink(missing_ok=True)

    def older_than(self, age_s: float) -> Iterator[str]:
        """All blobs, and remains of interrupted writes, older than this."""
        oldest = time.time() - age_s
        for part in self.root.glob("*.part"):
            if part.stat().st_mtime < oldest:
                part.unlink(missing_ok=True)
        for path in self.root.glob("??/*"):
            if path.stat().st_mtime < oldest:
                yield path.name


def collect_garbage(session: Session, blobs: Blobs, *, grace_s: float) -> int:
    """Delete old blobs that no row refers to; returns how many."""
    unreferenced = set(blobs.older_than(grace_s)) - _referenced(session)
    for sha256 in unreferenced:
        blobs.delete(sha256)
    return len(unreferenced)


def _referenced(session: Session) -> set[str]:
    columns = (
        DatasetRow.upload_sha256,
        DatasetRow.content_sha256,
        ModelRow.upload_sha256,
        ModelRow.content_sha256,
        JobRow.checkpoint_sha256,
        JobRow.upload_sha256,
        ScoresRow.blob_sha256,
    )
    referenced = {sha for column in columns for sha in session.scalars(select(column)) if sha}
    for result in session.scalars(select(JobRow.result).where(JobRow.result.is_not(None))):
        blobs_of_result = (result or {}).get("blobs", {})
        referenced.update(blobs_of_result.values())
    return referenced


def _fsync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
