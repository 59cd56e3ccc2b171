"""Blobs in an S3 bucket; needs the extra `s3`.

An object becomes visible when its upload has finished, so no temporary name is needed. Files that
jobs read are copied to `home/cache` first, under their hash.

A store may be there and say nothing, so every request has a limit. While the store is away one
caller at a time tries it and all others are told so at once, as those who wait would keep the
threads from what needs no blob.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import IO, Any
from urllib.parse import urlsplit
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from adap.store.blobs import STAGING, OtherContentError, sha256_of, write_checked
from adap.store.cache import Cache
from adap.store.settings import MIB, Settings
from adap.store.storage import BlobsAwayError, MissingContentError

PIECE_BYTES = 5 * MIB  # of one request: the least that S3 takes as a part
AT_ONCE = 2  # pieces that are sent together, so that a slow line has one within the limit
PROBE_LIMIT_S = 2.0
_PROBE = "0" * 64  # the name of no content that anybody knows


class S3Blobs:
    """Blobs as objects `prefix/<sha256>`. Every method raises BlobsAwayError."""

    def __init__(self, settings: Settings) -> None:
        self.store = _store(settings, limit_s=settings.blobs_limit_s)
        self._quick = _store(settings, limit_s=min(PROBE_LIMIT_S, settings.blobs_limit_s))
        self._away = False
        self._trying = Lock()
        self._cache = Cache(settings.home / "cache", limit_bytes=settings.cache_bytes)

    def put(self, path: Path) -> str:
        """Store a copy of a file; returns its SHA-256."""
        sha256 = sha256_of(path)
        self._send(sha256, path)
        return sha256

    def stage(self, path: Path) -> str:
        """Take a file away, to be joined with others; returns the name under which it waits."""
        name = f"{STAGING}/{uuid4().hex}"
        self._send(name, path)
        path.unlink()
        return name

    def join(self, staged: Sequence[str], *, sha256: str) -> None:
        """Store files that wait, one after the other, as one blob; they stay where they are."""
        with self._cache.part() as part:
            write_checked(self._read(staged), part, sha256=sha256)
            self._send(sha256, part)

    def _send(self, name: str, path: Path) -> None:
        with self._asked():
            obstore.put(self.store, name, path, chunk_size=PIECE_BYTES, max_concurrency=AT_ONCE)

    def _read(self, names: Sequence[str]) -> Iterator[bytes]:
        """The content of these objects, in requests of a size that a limit of time is fair for."""
        for name in names:
            with self._asked():
                size = obstore.head(self.store, name)["size"]
            for start in range(0, size, PIECE_BYTES):
                with self._asked():
                    length = min(PIECE_BYTES, size - start)
                    piece = obstore.get_range(self.store, name, start=start, length=length)
                yield bytes(piece)

    def adopt(self, staged: str, *, sha256: str) -> None:
        """Make a file that waits, and has this SHA-256, a blob; it waits no longer."""
        with self._asked():
            obstore.copy(self.store, staged, sha256)
            obstore.delete(self.store, staged)

    def exists(self, name: str) -> bool:
        """Whether a blob or a file that waits is there."""
        try:
            with self._asked():
                obstore.head(self.store, name)
        except FileNotFoundError:
            return False
        return True

    def open(self, sha256: str) -> IO[bytes]:
        """Read a blob as a seekable file. Raises MissingContentError."""
        return self.local_path(sha256).open("rb")

    def local_path(self, sha256: str) -> Path:
        """A cached copy, fetched on first use and checked against its name."""
        known = self._cache.find(sha256)
        if known is not None:
            return known
        try:
            return self._cache.keep(sha256, self._read([sha256]))
        except FileNotFoundError as error:
            raise MissingContentError(sha256) from error
        except OtherContentError as error:
            raise MissingContentError(sha256, instead=str(error)) from error

    def delete(self, name: str) -> None:
        """Remove a blob or a file that waits; no error if it is gone already."""
        with suppress(FileNotFoundError), self._asked():
            obstore.delete(self.store, name)
        self._cache.forget(name)

    def older_than(self, age_s: float) -> Iterator[str]:
        """All blobs and files that wait which were last written more than this long ago."""
        oldest = datetime.now(UTC) - timedelta(seconds=age_s)
        listed = iter(obstore.list(self.store))
        while True:
            with self._asked():
                batch = next(listed, None)
            if batch is None:
                return
            for item in batch:
                if item["last_modified"] < oldest:
                    yield item["path"]

    def probe(self) -> None:
        """Ask the store for something, within seconds. Raises what stands in the way."""
        with suppress(FileNotFoundError), _translated():
            obstore.head(self._quick, _PROBE)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Within the block the store is asked for something."""
        turn = self._away
        if turn and not self._trying.acquire(blocking=False):
            raise BlobsAwayError("it did not answer a moment ago, and is being tried")
        try:
            with _translated():
                yield
            self._away = False
        except FileNotFoundError:
            self._away = False
            raise
        except BlobsAwayError:
            self._away = True
            raise
        finally:
            if turn:
                self._trying.release()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (BaseError, PermissionError, ConnectionError, TimeoutError) as error:
        raise BlobsAwayError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    """What an error of obstore says, without the pages of debugging that follow."""
    return " ".join(str(error).split("\n\nDebug", 1)[0].split())[:300].rstrip(".")


def _store(settings: Settings, *, limit_s: float) -> S3Store:
    url = urlsplit(settings.blobs)
    limit = timedelta(seconds=limit_s)
    client: dict[str, Any] = {"timeout": limit, "connect_timeout": min(limit, timedelta(seconds=5))}
    options: dict[str, Any] = {"region": settings.s3_region}
    if settings.s3_endpoint is not None:
        options["endpoint"] = settings.s3_endpoint
        options["virtual_hosted_style_request"] = False
    if settings.s3_access_key_id is not None:
        options["access_key_id"] = settings.s3_access_key_id
    if settings.s3_secret_access_key is not None:
        options["secret_access_key"] = settings.s3_secret_access_key.get_secret_value()
    if (settings.s3_endpoint or "").startswith("http://"):
        client["allow_http"] = True
    return S3Store(
        url.netloc,
        prefix=url.path.strip("/") or None,
        client_options=client,  # type: ignore[arg-type]
        retry_config={"max_retries": 2, "retry_timeout": limit},
        **options,
    )
