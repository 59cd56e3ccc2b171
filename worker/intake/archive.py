"""A zip that a stranger made, read without ever writing a file or trusting a size.

Before anything is unpacked every member is checked: its name, its kind, its place in the file and
the sizes that it declares. While it is unpacked, no more than the declared size is ever produced,
and the checksum must fit in the end; so a member that lies about its size is found out cheaply.

Names are normalised to Unicode NFC: archives made on a Mac hold NFD, and would otherwise not match
the metadata.csv beside them or the class names in a request.
"""

import io
import os
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from stat import S_IFDIR, S_IFMT, S_IFREG
from types import TracebackType
from typing import IO, Protocol

from adap.models.header import shown
from adap.wording import is_name
from adap.worker.intake.limits import IntakeLimits, Reasons, Rejected

RATIO_FREE_BYTES = 1024**2  # a smaller member may shrink as well as it likes
MAX_NAME_CHARACTERS = 500
MAX_FOLDERS = 1000  # that are looked at, whether anything lies in them

# arrays of an NPZ: read in blocks, or bounded by limits of their own, whatever they were packed to
_SIZED = ".npy"

_ENCRYPTED = 0x01 | 0x40
_PATCHED = 0x20
_LOCAL = struct.Struct("<4s22sHH")  # of a member's own header: signature, lengths of name and extra
_EXTRA = 64  # bytes
_ICON = "Icon\r"  # of a folder, as macOS calls it
_IGNORED = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", _ICON.lower()}
_IGNORED_FOLDERS = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"}
_IGNORED_FOLDERS |= {"lost+found", "__pycache__"}

# all that zipfile and zlib raise for bytes that are no sound zip
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error)


class AnyArchive(Protocol):
    """What the readers of images need of an archive: a zip, or tars."""

    names: tuple[str, ...]
    folders: list[str]
    left_behind: list[str]

    def size(self, name: str) -> int:
        """The bytes of a member."""

    def read(self, name: str) -> bytes:
        """A whole member in memory; raises Rejected where it is too large or damaged."""


class Archive:
    """The members of a zip that matter: no folders, no files that operating systems leave behind.

    Raises Rejected at once for a file that is not a zip, and for members that are not plain files
    within the limits.
    """

    def __init__(self, path: Path, *, limits: IntakeLimits) -> None:
        self._limits = limits
        self._listing = Listing()
        self.folders = self._listing.folders
        self.left_behind = self._listing.left_behind
        self._file = _ShortReads(path)
        try:
            # a directory line takes 46 bytes and the name; zipfile makes an object of each
            self._file.longest_read = 128 * limits.entries
            # metadata_encoding: names without the UTF-8 flag are UTF-8 (macOS) or refused
            self._zip = zipfile.ZipFile(self._file, metadata_encoding="utf-8")
            self._file.longest_read = None
            self._members = self._checked_members(size=path.stat().st_size)
        except Rejected:
            self.close()
            raise
        except UnicodeDecodeError as error:
            self.close()
            raise Rejected(
                f"expected names of files in UTF-8, got {error.object!r:.100}"
            ) from error
        except (*_DAMAGED, OSError) as error:
            self.close()
            raise Rejected(
                f"expected a sound zip archive, got a damaged one: {error}: pack or send it again"
            ) from error
        # sorted, so that the order of examples does not depend on who packed them
        self.names = tuple(sorted(self._members))

    def size(self, name: str) -> int:
        """The unpacked bytes of a member, as declared: reading gives exactly these or fails."""
        return self._members[name].file_size

    def read(self, name: str) -> bytes:
        """A whole member in memory; raises Rejected where it is too large or damaged."""
        check_member_size(name, self.size(name), self._limits)
        data = self._read_at_once(self._members[name])
        if data is not None:
            return data
        with self.open(name) as member:
            return member.read()

    def _read_at_once(self, info: zipfile.ZipInfo) -> bytes | None:
        """A small member that is all that its header says; None where zipfile has to tell why not.

        Of a small file zipfile spends most of the time on objects. May be called by threads.
        """
        name = info.orig_filename.encode()
        at = _LOCAL.size + len(name)
        # the header's extra field may have a length of its own; this is room for the usual ones
        head = os.pread(self._file.fileno(), at + _EXTRA + info.compress_size, info.header_offset)
        if len(head) < at or info.flag_bits & _PATCHED:
            return None
        signature, _, name_bytes, extra_bytes = _LOCAL.unpack_from(head)
        if signature != b"PK\3\4" or name_bytes != len(name) or head[_LOCAL.size : at] != name:
            return None
        packed = head[at + extra_bytes : at + extra_bytes + info.compress_size]
        if len(packed) != info.compress_size:
            return None
        data = packed
        if info.compress_type == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, info.file_size + 1)
            except zlib.error:
                return None
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            return None
        return data

    def open(self, name: str) -> "Member":
        """A member to be read piece by piece."""
        try:
            return Member(name, self._zip.open(self._members[name]), self.size(name))
        except _DAMAGED as error:
            raise _damaged(name, error) from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _checked_members(self, *, size: int) -> dict[str, zipfile.ZipInfo]:
        limits = self._limits
        infos = self._zip.infolist()
        check_member_count(len(infos), limits)
        unpacked = sum(info.file_size for info in infos)
        if unpacked > limits.unpacked_bytes:
            raise Rejected(
                f"expected at most {limits.unpacked_bytes} bytes unpacked, got {unpacked}"
            )
        members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            problem = _name_problem(_plain(info.orig_filename)) or _problem(info, limits)
            name = self._listing.add(
                info.filename, problem, is_folder=info.filename.endswith(("/", "\\"))
            )
            if name is not None:
                members[name] = info
        _check_overlap(infos, size=size, reasons=self._listing.reasons)
        self._listing.reasons.settle()
        return members


def check_member_size(name: str, size: int, limits: IntakeLimits) -> None:
    """Raise Rejected for a member that is too large to be read at once."""
    if size > limits.entry_bytes:
        raise Rejected(
            f"{shown(name)}: expected at most {limits.entry_bytes} bytes unpacked, got {size}"
        )


def check_member_count(count: int, limits: IntakeLimits) -> None:
    """Raise Rejected for more members than an archive may have."""
    if count > limits.entries:
        raise Rejected(f"expected at most {limits.entries} files (ADAP_MAX_IMAGES), got {count}")


class Listing:
    """The members of an archive by name, as they are found out: no folders, nothing left behind."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.folders: list[str] = []  # that are members of their own, the first of them
        self.left_behind: list[str] = []  # by operating systems, and not among the names
        self.reasons = Reasons()

    def add(self, raw: str, problem: str | None, *, is_folder: bool) -> str | None:
        """The name of a member that matters, else None. `problem`: why its kind is refused."""
        name = _plain(raw)
        problem = _name_problem(name) or problem
        if problem:
            self.reasons.add(f"{shown(raw)}: {problem}")
            return None
        name = unicodedata.normalize("NFC", name)
        if not name or name == "./":
            return None  # the folder that everything lies in
        if name in self.names:
            self.reasons.add(f"{shown(name)}: expected each name once, got it again: pack it anew")
        elif _is_left_behind(name):
            self.left_behind.append(name)
        elif not is_folder:
            self.names.add(name)
            return name
        elif len(self.folders) < MAX_FOLDERS:
            self.folders.append(name)
        return None


class Member:
    """One member while it is unpacked. Its checksum is compared when its last byte is read."""

    def __init__(self, name: str, stream: IO[bytes], size: int) -> None:
        self._name = name
        self._stream = stream
        self.left = size

    def read(self, count: int = -1, /) -> bytes:
        """The next `count` bytes and no fewer, or all that are left.

        Raises Rejected where the member is damaged or does not hold them.
        """
        count = self.left if count < 0 else count
        try:
            data = self._stream.read(count)
        except _DAMAGED as error:
            raise _damaged(self._name, error) from error
        if len(data) != count:
            raise _damaged(self._name, EOFError(f"{len(data)} bytes where {count} should be"))
        self.left -= count
        return data

    def __enter__(self) -> "Member":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()


class _ShortReads(io.FileIO):
    """A file that refuses a huge read: zipfile reads the whole directory at once, of any size."""

    longest_read: int | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        if self.longest_read is not None and size is not None and size > self.longest_read:
            raise Rejected(
                f"expected a zip whose list of files has at most {self.longest_read} bytes, "
                f"got {size}"
            )
        return super().read(size)


def _problem(info: zipfile.ZipInfo, limits: IntakeLimits) -> str | None:
    """Why this member is refused, if it is."""
    if info.flag_bits & _ENCRYPTED:
        return "expected a file that is not encrypted: pack it again without a password"
    if S_IFMT(info.external_attr >> 16) not in (0, S_IFREG, S_IFDIR):
        return "expected a plain file, got a link or a device"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return (
            "expected a file that is stored or deflated, got another compression: pack it again as "
            "zip -r does"
        )
    if info.filename.endswith(_SIZED) and "/" not in info.filename:
        return None
    if info.file_size > max(RATIO_FREE_BYTES, limits.ratio * info.compress_size):
        return (
            f"expected at most {limits.ratio} times its packed size, got {info.file_size} bytes "
            f"from {info.compress_size}"
        )
    return None


def _plain(name: str) -> str:
    """Without the ./ that some archivers write before it, and with / where Windows has another."""
    name = name.replace("\\", "/")
    while name.startswith("./") and len(name) > 2:
        name = name[2:]
    return name


def _name_problem(name: str) -> str | None:
    """Why a name could not be a plain relative path. It is never used as one all the same."""
    if len(name) > MAX_NAME_CHARACTERS:
        return f"expected a name of at most {MAX_NAME_CHARACTERS} characters, got {len(name)}"
    if not is_name(name[:-1] if f"/{name}".endswith(f"/{_ICON}") else name):
        return "expected a name of printable characters"
    if name == "./":
        return None
    parts = name.removesuffix("/").split("/")
    if "\\" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        return (
            "expected a relative name without empty, '.' or '..' parts, backslashes or drives: "
            "pack it again from inside its folder"
        )
    return None


def _is_left_behind(name: str) -> bool:
    """Whether an operating system put this file there, not the sender."""
    parts = name.lower().split("/")
    return (
        parts[-1] in _IGNORED
        or not _IGNORED_FOLDERS.isdisjoint(parts[:-1])
        or any(part.startswith(".") for part in parts)
    )


def _check_overlap(infos: Sequence[zipfile.ZipInfo], *, size: int, reasons: Reasons) -> None:
    """Members that share bytes of the file could unpack to far more than it holds."""
    end, before = 0, ""
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            reasons.add(f"{shown(info.orig_filename)}: overlaps {shown(before)} in the archive")
        # the local header repeats the name, after 30 bytes of its own
        end = info.header_offset + 30 + len(info.orig_filename) + info.compress_size
        before = info.orig_filename
        if info.header_offset < 0 or end > size:
            reasons.add(f"{shown(info.orig_filename)}: lies outside the archive")


def _damaged(name: str, error: Exception) -> Rejected:
    return Rejected(f"{shown(name)}: expected a sound member of the zip, got {error}: pack it anew")
