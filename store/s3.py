"""Blobs in an S3 bucket; needs the extra `s3`.

An object becomes visible when its upload has finished, so no temporary name is needed. Files that
jobs read are copied to `home/cache` first, under their hash.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from uuid import uuid4

import obstore
from obstore.store import S3Store

from adap.store.blobs import CHUNK_BYTES, STAGING, sha256_of, write_checked
from adap.store.settings import Settings


class S3Blobs:
    """Blobs as objects `prefix/<sha256>`."""

    def __init__(self, settings: Settings) -> None:
        url = urlsplit(settings.blobs)
        options: dict[str, Any] = {"region": settings.s3_region}
        if settings.s3_endpoint is not None:
            options["endpoint"] = settings.s3_endpoint
            options["virtual_hosted_style_request"] = False
        if settings.s3_access_key_id is not None:
            options["access_key_id"] = settings.s3_access_key_id
        if settings.s3_secret_access_key is not None:
            options["secret_access_key"] = settings.s3_secret_access_key.get_secret_value()
        if (settings.s3_endpoint or "").startswith("http://"):
            options["client_options"] = {"allow_http": True}
        self.store = S3Store(url.netloc, prefix=url.path.strip("/") or None, **options)
        self.cache = settings.home / "cache"
        self.cache.mkdir(parents=True, exist_ok=True)

    def put(self, path: Path) -> str:
        """Store a copy of a file; returns its SHA-256."""
        sha256 = sha256_of(path)
        obstore.put(self.store, sha256, path)
        return sha256

    def stage(self, path: Path) -> str:
        """Take a file away, to be joined with others; returns the name under which it waits."""
        name = f"{STAGING}/{uuid4().hex}"
        obstore.put(self.store, name, path)
        path.unlink()
        return name

    def join(self, staged: Sequence[str], *, sha256: str) -> None:
        """Store files that wait, one after the other, as one blob; they stay where they are."""
        part = self.cache / f"{uuid4().hex}.part"
        try:
            write_checked(self._read(staged), part, sha256=sha256)
            obstore.put(self.store, sha256, part)
        finally:
            part.unlink(missing_ok=True)

    def _read(self, names: Sequence[str]) -> Iterator[bytes]:
        for name in names:
            for chunk in obstore.get(self.store, name).stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    def adopt(self, staged: str, *, sha256: str) -> None:
        """Make a file that waits, and has this SHA-256, a blob; it waits no longer."""
        obstore.copy(self.store, staged, sha256)
        obstore.delete(self.store, staged)

    def exists(self, name: str) -> bool:
        """Whether a blob or a file that waits is there."""
        try:
            obstore.head(self.store, name)
        except FileNotFoundError:
            return False
        return True

    def open(self, sha256: str) -> IO[bytes]:
        """Read a blob as a seekable file. FileNotFoundError if there is none."""
        return self.local_path(sha256).open("rb")

    def local_path(self, sha256: str) -> Path:
        """A cached copy, fetched on first use and checked against its name."""
        target = self.cache / sha256
        if target.exists():
            return target
        part = self.cache / f"{uuid4().hex}.part"
        try:
            with part.open("wb") as file:
                for chunk in obstore.get(self.store, sha256).stream(min_chunk_size=CHUNK_BYTES):
                    file.write(chunk)
            if sha256_of(part) != sha256:
                raise OSError(f"expected blob {sha256}, got other content from the bucket")
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def delete(self, name: str) -> None:
        """Remove a blob or a file that waits; no error if it is gone already."""
        with suppress(FileNotFoundError):
            obstore.delete(self.store, name)
        (self.cache / name).unlink(missing_ok=True)

    def older_than(self, age_s: float) -> Iterator[str]:
        """All blobs and files that wait which were last written more than this long ago."""
        oldest = datetime.now(UTC) - timedelta(seconds=age_s)
        for batch in obstore.list(self.store):
            for item in batch:
                if item["last_modified"] < oldest:
                    yield item["path"]
