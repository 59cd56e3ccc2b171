"""Disks: one without room, as it shows itself to those who write, and one on another machine."""

import errno
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

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


def probe(folder: Path) -> None:
    """Write, flush and remove a small file in a folder. OSError where that fails."""
    with NamedTemporaryFile(dir=folder, suffix=".part") as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())


NETWORK = frozenset(
    [
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "smb2",
        "smb3",
        "smbfs",
    ]
)


def network_file_system(path: Path, *, mounts: str | None = None) -> str | None:
    """The type of the file system that a path lies on, if it is reached over a network.

    mounts: the text of `/proc/self/mountinfo`; None where there is no such file.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text()
        except OSError:  # another system than Linux
            return None
    folder = path.absolute().resolve()
    found, kind = Path("/"), ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))  # a space is \040
        if folder.is_relative_to(point) and len(point.parts) >= len(found.parts):
            found, kind = point, after.split()[0]  # the last of several on one folder is on top
    return kind if kind in NETWORK else None
