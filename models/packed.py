"""One model in an archive: the zip or gzip that a drive, a server or a colleague put around it.

For the sandboxed child alone. The archive may hold other files beside; models are found by their
bytes. Weights hardly compress: what unpacks to far more than the archive is refused before the
disk is full. An archive in an archive is not opened.
"""

import gzip
import lzma
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from adap.models.errors import ModelFileError
from adap.models.formats import EDGE_BYTES, describe, is_onnx
from adap.models.header import shown

GROWTH = 8  # times the archive that a model may have: float32 of few different numbers
FREE_BYTES = 64 * 1024**2  # that any archive may unpack to
MAX_MEMBERS = 1_000
_PIECE = 1024**2
_DAMAGES = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError),
    *(RuntimeError, ValueError),  # of zipfile: encrypted, packed in a way it lacks, odd headers
)


@dataclass(frozen=True)
class Unpacked:
    """The model, in a file of its own, and where it was."""

    path: Path
    step: str


def unpacked(path: Path, head: bytes, tail: bytes, *, folder: Path) -> Unpacked | None:
    """The one model in a zip or gzip; None where the file is neither, or holds no model.

    head, tail: the first and last `EDGE_BYTES` of the file.  folder: where the model is written.
    Raises ModelFileError for several models, and for an archive that is damaged or a bomb.
    """
    try:
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as content:
                beginning = content.read(EDGE_BYTES)
            if not _is_model(beginning):
                return None
            with gzip.open(path) as content:
                return Unpacked(
                    _written(cast(IO[bytes], content), path, folder), "unpacked from gzip"
                )
        if not head.startswith(b"PK") or not _is_plain(describe(head, tail)):
            return None
        return _of_zip(path, folder)
    except _DAMAGES as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the archive
        raise ModelFileError(
            "expected a sound archive, got one that is damaged or encrypted: unpack it, and send "
            "the model itself"
        ) from error


def _of_zip(path: Path, folder: Path) -> Unpacked | None:
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
        if len(members) > MAX_MEMBERS:
            return None
        models = []
        for info in members:
            if info.filename.startswith("__MACOSX/") or "/._" in f"/{info.filename}":
                continue
            with archive.open(info) as content:
                if _is_model(content.read(16)):
                    models.append(info)
        if len(models) > 1:
            raise ModelFileError(
                f"expected one model in the zip, got {len(models)}: "
                f"{', '.join(shown(info.filename) for info in models[:5])}; send the one that is "
                "meant by itself"
            )
        if not models:
            return None
        with archive.open(models[0]) as content:
            made = _written(content, path, folder)
        return Unpacked(made, f"unpacked from a zip: {shown(models[0].filename)}")


def _is_plain(what: str) -> bool:
    """Whether a zip is nobody's own format, which would be refused as what it is."""
    return what.startswith("a zip archive") and "TensorFlow" not in what and "Core ML" not in what


def _is_model(head: bytes) -> bool:
    """Whether bytes begin as safetensors, ONNX or a checkpoint do."""
    safetensors = head[8:9] == b"{" and head[4:8] == bytes(4)
    return safetensors or is_onnx(head) or head.startswith(b"PK\x03\x04")


def _written(content: IO[bytes], archive: Path, folder: Path) -> Path:
    most = max(FREE_BYTES, GROWTH * archive.stat().st_size)
    target, done = folder / "unpacked", 0
    with target.open("wb") as file:
        while piece := content.read(_PIECE):
            done += len(piece)
            if done > most:
                raise ModelFileError(
                    f"expected an archive of at most {GROWTH} times its size, as of weights, got "
                    "one that unpacks to more: unpack it, and send the model itself"
                )
            file.write(piece)
    return target
