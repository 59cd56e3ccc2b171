"""A folder as a zip to send: the same bytes for the same files, whoever packs it and when."""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold; when a file changed does not matter
_BLOCK_BYTES = 1 << 20

OUTSIDE = "Left out, as they lead out of the folder"
BROKEN = "Left out, as they lead nowhere"
RENAMED = "Sent with %XX for what is no UTF-8 in their names"


def pack_folder(root: Path, target: Path) -> dict[str, list[str]]:
    """Write the files below a folder to a zip; what was left out or renamed, by why.

    Links are followed inside the folder. What begins with a dot is not sent, and not told of.
    Raises OSError for what cannot be read, ValueError for two files that would have one name.
    """
    told: dict[str, list[str]] = {}
    names: set[str] = set()
    # images are compressed already
    with zipfile.ZipFile(target, "w") as archive:
        for file in _files(root, told):
            name = _sendable(file.relative_to(root), told)
            if name in names:
                raise ValueError(f"two files would be called {name}: rename one of them")
            names.add(name)
            entry = zipfile.ZipInfo(name, _TIME)
            entry.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(entry, "w") as copy:
                while block := source.read(_BLOCK_BYTES):
                    copy.write(block)
    return told


def _files(root: Path, told: dict[str, list[str]]) -> Iterator[Path]:
    """The files below a folder in their order, links followed but out of it and in circles."""
    inside = root.resolve()

    def walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
        for entry in sorted(folder.iterdir(), key=os.fsencode):
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                goal = entry.resolve()
                if not goal.exists() or goal in above:
                    _tell(told, BROKEN, entry.relative_to(root))
                    continue
                if not goal.is_relative_to(inside):
                    _tell(told, OUTSIDE, entry.relative_to(root))
                    continue
            if entry.is_dir():
                yield from walk(entry, above | {entry.resolve()})
            elif entry.is_file():
                yield entry

    yield from walk(root, frozenset({inside}))


def _sendable(path: Path, told: dict[str, list[str]]) -> str:
    """A name in UTF-8: bytes that are none are written as %E9, which is said."""
    name = path.as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        kept = os.fsencode(name).decode("utf-8", "surrogateescape")
        name = "".join(
            f"%{ord(mark) - 0xDC00:02X}" if 0xDC80 <= ord(mark) <= 0xDCFF else mark for mark in kept
        )
        _tell(told, RENAMED, Path(name))
    return name


def _tell(told: dict[str, list[str]], why: str, path: Path) -> None:
    told.setdefault(why, []).append(str(path).encode("utf-8", "replace").decode())
