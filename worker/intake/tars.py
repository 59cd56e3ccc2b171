"""Tars that a stranger made, read where they lie: no member is written under its name, or at all.

A tar has no directory and no checksums of what it holds. So all headers are looked at first, by the
standard library's parser behind a file that gives it little at a time; links, devices and sparse
files are refused, and so is a tar that does not end as one: it was cut, and images would be missed.
What is compressed by gzip or zstd is unpacked as one file, to a limit, and gone with the folder
that holds it. Several tars are one archive, each in a folder called as it is.
"""

import gzip
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import zstandard

from adap.models.formats import describe
from adap.models.header import shown
from adap.worker.intake.archive import (
    RATIO_FREE_BYTES,
    Listing,
    check_member_count,
    check_member_size,
)
from adap.worker.intake.limits import IntakeLimits, Rejected

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")

MAX_HEADER_BYTES = 16 * 1024  # of one extended header: a name of 500 characters, and attributes
MAX_READS = 64  # for one member: each header before it, and what headers lead to, is one
MAX_WINDOW_BYTES = 128 * 1024**2  # that zstd sets aside: what `zstd --long` needs, and no more

_GZIP, _ZSTD, _USTAR = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"ustar"
_BLOCK = 1024**2
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
# all that the parsers raise for bytes that are no sound tar
_DAMAGED = (tarfile.TarError, EOFError, ValueError, LookupError, ArithmeticError, RecursionError)
_DAMAGED_STREAM = (OSError, EOFError, zlib.error, zstandard.ZstdError)


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so is a tar, or compressed as tars are."""
    return head.startswith((_GZIP, _ZSTD)) or head[257:262] == _USTAR


def stem(name: str) -> str:
    """The name of a tar without what says that it is one."""
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


@dataclass(frozen=True)
class _Place:
    """Where the bytes of a member lie."""

    file: int  # descriptor
    start: int
    size: int


class Tars:
    """The members of tars that matter. `scratch` is a folder for what is compressed.

    tars: where each lies, by the folder that its members are in, `` for a tar that is alone.
    flat: whether no member lies in a folder inside its tar.
    """

    def __init__(self, tars: Mapping[str, Path], *, limits: IntakeLimits, scratch: Path) -> None:
        self._limits = limits
        self._listing = Listing()
        self._places: dict[str, _Place] = {}
        self._open = ExitStack()
        self._left = limits.archive_bytes  # that may still be unpacked
        self.folders = self._listing.folders
        self.left_behind = self._listing.left_behind
        self.flat = True
        try:
            for folder, path in tars.items():
                self._add(folder, path, scratch)
            self._listing.reasons.settle()
        except BaseException:
            self.close()
            raise
        # sorted, so that the order of examples does not depend on who packed them
        self.names = tuple(sorted(self._places))

    def size(self, name: str) -> int:
        """The bytes of a member."""
        return self._places[name].size

    def read(self, name: str) -> bytes:
        """A whole member in memory; raises Rejected where it is too large. For threads, too."""
        place = self._places[name]
        check_member_size(name, place.size, self._limits)
        data = os.pread(place.file, place.size, place.start)
        if len(data) != place.size:
            raise Rejected(f"{shown(name)}: expected {place.size} bytes, got {len(data)}")
        return data

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> "Tars":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _add(self, folder: str, path: Path, scratch: Path) -> None:
        what = f"{shown(folder)}: " if folder else ""
        with path.open("rb") as file:
            head = file.read(4)
        if head.startswith((_GZIP, _ZSTD)):
            path = self._unpacked(path, head, scratch, what)
        headers = self._open.enter_context(_Headers(path))
        start = os.pread(headers.fileno(), tarfile.BLOCKSIZE, 0)
        try:
            for info in _members(headers, path.stat().st_size, self._limits):
                self._add_member(folder, info, headers.fileno())
        except Rejected as rejected:
            raise Rejected(*(f"{what}{reason}" for reason in rejected.reasons)) from rejected
        except UnicodeDecodeError as error:
            raise Rejected(
                f"{what}expected names of files in UTF-8, got {error.object!r:.100}"
            ) from error
        except (*_DAMAGED, OSError) as error:
            kind = describe(start, start)
            way = "pack or send it again" if kind == "a tar archive" else "unpack it, and send that"
            raise Rejected(
                f"{what}expected a sound tar, got {kind} ({str(error)[:200]}): {way}"
            ) from error

    def _add_member(self, folder: str, info: tarfile.TarInfo, file: int) -> None:
        inside = info.name
        name = f"{folder}/{inside}" if folder and inside not in (".", "./") else inside
        is_folder = info.isdir()
        if is_folder:
            name = f"{name}/"
        added = self._listing.add(name, _problem(info), is_folder=is_folder)
        if added is None:
            return
        self.flat &= "/" not in inside.removeprefix("./")
        self._places[added] = _Place(file, info.offset_data, info.size)
        check_member_count(len(self._places), self._limits)

    def _unpacked(self, path: Path, head: bytes, scratch: Path, what: str) -> Path:
        """A compressed tar as it was before, in the folder for it."""
        packed = path.stat().st_size
        by_ratio = max(RATIO_FREE_BYTES, self._limits.ratio * packed)
        most = min(self._left, by_ratio)
        target = scratch / f"{len(list(scratch.iterdir()))}.unpacked"
        done = 0
        try:
            with _decompressed(path, head) as stream, target.open("xb") as file:
                while block := stream.read(_BLOCK):
                    done += len(block)
                    if done > most:
                        raise Rejected(
                            f"{what}expected at most {most} bytes unpacked, got more from {packed}"
                            f" (at most {self._limits.ratio} times the packed size)"
                        )
                    file.write(block)
        except _DAMAGED_STREAM as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk, and not of what was sent
            raise Rejected(
                f"{what}expected a sound {'gzip' if head.startswith(_GZIP) else 'zstd'} stream, "
                f"got a damaged one: {str(error)[:200]}"
            ) from error
        self._left -= done
        return target


class _Headers(io.FileIO):
    """A file that gives the parser of headers a few short reads for each member, and no others."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise Rejected(f"expected headers of at most {MAX_HEADER_BYTES} bytes in a tar")
        if self.reads > MAX_READS:
            raise Rejected(f"expected at most {MAX_READS} blocks of headers for a file in a tar")
        return super().read(size)


def _members(headers: _Headers, size: int, limits: IntakeLimits) -> Iterator[tarfile.TarInfo]:
    """What the headers of a tar say, each known to lie in the file and after the one before."""
    tar = tarfile.TarFile(fileobj=headers, mode="r", encoding="utf-8", errors="strict")
    end = count = 0
    while (info := tar.next()) is not None:
        headers.reads = 0
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep all
        count += 1
        check_member_count(count, limits)
        if info.size < 0 or info.offset_data < end + tarfile.BLOCKSIZE:
            raise Rejected(f"{shown(info.name)}: expected files one after the other in a tar")
        end = info.offset_data + (info.size if info.isreg() else 0)
        if end > size:
            raise Rejected(
                f"{shown(info.name)}: expected {info.size} bytes, got {size - info.offset_data}: "
                "the tar was cut"
            )
        yield info
    _check_end(headers.fileno(), tar.offset, size)


def _check_end(file: int, start: int, size: int) -> None:
    """Raise Rejected unless a tar ends in zeros: what follows them would be left out unseen."""
    if start >= size:
        raise Rejected("expected a block of zeros at the end of a tar, got none: it was cut")
    while block := os.pread(file, _BLOCK, start):
        if block.count(0) != len(block):
            raise Rejected(
                f"expected a tar to go on or to end in zeros from byte {start} on, got neither: "
                "it is damaged, or tars were joined (send them as files of their own in a zip)"
            )
        start += len(block)


def _problem(info: tarfile.TarInfo) -> str | None:
    """Why this member is refused, if it is."""
    if info.issparse():
        return "expected a plain file, got a sparse one: pack it without --sparse"
    if info.isdir() or info.type in _PLAIN:
        return None
    if info.issym() or info.islnk():
        return "expected a plain file, got a link: pack it with --dereference --hard-dereference"
    return "expected a plain file, got a device: leave it out"


def _decompressed(path: Path, head: bytes) -> IO[bytes]:
    if head.startswith(_GZIP):
        return gzip.GzipFile(path)  # type: ignore[return-value]
    unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    return unpacker.stream_reader(path.open("rb"), read_across_frames=True, closefd=True)


_SERIES = re.compile(r"[-_.]\d+$")


def are_a_series(folders: Mapping[str, object]) -> bool:
    """Whether tars are called as the parts of a whole: `images-0001`, `images-0002`."""
    kinds = {_SERIES.sub("", folder) for folder in folders}
    return len(folders) > 1 and len(kinds) == 1 and all(map(_SERIES.search, folders))
