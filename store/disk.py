"""A disk without room, as it shows itself to those who write."""

import errno

CODE = "disk_full"  # of problems and of jobs
MESSAGE = (
    "There was no room on the service's disk for what the job made; "
    "run it again when an operator has made room."
)
FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that a disk or its quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(f"os error {number}" in str(error) for number in FULL):  # of libraries in Rust
            return True
        if getattr(error, "sqlite_errorname", None) in ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"):
            return True
        if getattr(error, "sqlstate", None) == "53100":  # PostgreSQL's disk_full
            return True
        error = error.__cause__ or error.__context__
    return False
