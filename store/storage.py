"""Faults of the places where the service keeps things, told apart by what helps.

A full disk needs room, a store or a database that is away comes back, one that cannot be read or
written needs an operator, and content that is missing a backup. None of it is the fault of a
request: the same one may well succeed later.
"""

import errno
from dataclasses import dataclass

from adap.store import disk

UNAVAILABLE = "storage_unavailable"
MISSING = "content_missing"

_BROKEN = (errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO)
_DENIED = (errno.EACCES, errno.EPERM)  # of other calls than those on files too
_SQLITE_BROKEN = ("READONLY", "IOERR", "CANTOPEN", "PERM", "CORRUPT", "NOTADB")
_SQLITE_HELD = ("BUSY", "LOCKED")
_POSTGRES_BROKEN = ("25006", "58030", "XX001", "XX002")  # read-only, I/O, corrupted


class BlobsAwayError(Exception):
    """The blob store does not answer, or refuses what it should do; it may well come back."""


class MissingContentError(FileNotFoundError):
    """A row refers to content that the blob store does not have, or has other content `instead`."""

    def __init__(self, name: str, *, instead: str | None = None) -> None:
        super().__init__(
            f"the content {name} is not in the blob store: {instead or 'no such file'}"
        )
        self.name = name


@dataclass(frozen=True)
class Trouble:
    """What is wrong: `code` of problems and of jobs, `message` for people."""

    code: str
    message: str


def trouble(error: BaseException | None) -> Trouble | None:
    """What an error, or one that it was raised from, says of storage; None if nothing."""
    if disk.is_full(error):
        return Trouble(disk.CODE, disk.MESSAGE)
    while error is not None:
        if isinstance(error, MissingContentError):
            return Trouble(
                MISSING,
                f"The service no longer has the content {error.name}: it was lost, or a backup was "
                "restored without it. An operator can put it back; what does not need it works.",
            )
        reason = _reason(error)
        if reason is not None:
            return Trouble(UNAVAILABLE, f"{reason} Try again when an operator has seen to it.")
        error = error.__cause__ or error.__context__
    return None


def _reason(error: BaseException) -> str | None:
    if isinstance(error, BlobsAwayError):
        return f"The blob store does not answer as it should: {error}."
    if isinstance(error, OSError) and (
        error.errno in _BROKEN or (error.errno in _DENIED and error.filename is not None)
    ):
        return f"The service cannot use a disk of its own: {error.strerror or error}."
    name = getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_")
    if name.startswith(_SQLITE_BROKEN) or getattr(error, "sqlstate", None) in _POSTGRES_BROKEN:
        return f"The database cannot be used: {error}."
    if name.startswith(_SQLITE_HELD):
        return f"The database is held by another process: {error}."
    return None
