"""Paths of the unix sockets of `adap up`, which must not be long."""

import hashlib
import os
import tempfile
from pathlib import Path

SOCKET_PATH_BYTES = 107  # of sockaddr_un
BROKER, SCORING = "valkey.sock", "scoring.sock"


def socket_folder(home: Path) -> Path:
    """In the home where that is short enough, else in the folder for temporary files."""
    inside = home / "valkey"
    if len(os.fsencode(inside / SCORING)) <= SOCKET_PATH_BYTES:
        return inside
    # a name that follows from the home: what a killed service left is used again, and removed
    name = f"adap-{os.getuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"
    return Path(tempfile.gettempdir()) / name
