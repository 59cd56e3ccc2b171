"""Files that the API is receiving, before they are stored; those of a killed process go."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def prepare(home: Path, *, kept_s: float) -> Path:
    """The folder for files that come; those that nobody has written to this long are removed."""
    folder = home / "incoming"
    folder.mkdir(parents=True, exist_ok=True)
    for path in remains(home, older_s=kept_s):
        path.unlink(missing_ok=True)
    return folder


def remains(home: Path, *, older_s: float) -> Iterator[Path]:
    """Files that nobody has written to this long."""
    oldest = time.time() - older_s
    for path in (home / "incoming").glob("*"):
        with suppress(FileNotFoundError):  # it came whole just now
            if path.stat().st_mtime < oldest:
                yield path
