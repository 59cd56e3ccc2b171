"""The folder where the service keeps its files: made, and shut to everybody but its own user."""

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger(__name__)

DATABASE = "adap.db"
WEBHOOK_KEY = "webhook.key"
# what the service itself makes there, each shut; so nobody gets to what lies within
_OURS = frozenset(
    [
        *(DATABASE, f"{DATABASE}-journal", f"{DATABASE}-shm", f"{DATABASE}-wal", "lock"),
        *("blobs", "cache", "incoming", "logs", "valkey", WEBHOOK_KEY, "work"),
    ]
)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def take(home: Path) -> None:
    """Make the home, or shut one that is there, as it was made by an older version or by hand.

    A folder that holds other things, too, stays as it is, and so does what belongs to another user:
    a warning says that others may look in. Links are not followed.
    """
    home.mkdir(parents=True, exist_ok=True, mode=stat.S_IRWXU)
    inside = {entry.name for entry in os.scandir(home)}
    for path in (home / name for name in sorted(inside & _OURS)):
        _shut(path)
    if inside <= _OURS:
        _shut(home)
    if home.stat().st_mode & _OTHERS:
        log.warning("other users may look into the home %s: chmod 700 it, or choose another", home)


def _shut(path: Path) -> None:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode) or not mode & _OTHERS:
        return
    try:
        path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
    except PermissionError:
        log.warning("%s belongs to another user, and may be open to more", path)
