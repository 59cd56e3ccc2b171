"""PyTorch's own files: the tensors of a state dict, and nothing else, out of a `.pt` or `.pth`.

For the sandboxed child alone. Such a file is a zip around a pickle, which is a program. It is read
by `torch.load(weights_only=True)`, which knows a short list of things to make and refuses all
others; the archive is looked through before. What comes out is a mapping of names to tensors: the
file itself is dropped.
"""

import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adap.models.errors import ModelFileError
from adap.models.formats import SEND_INSTEAD
from adap.models.header import MAX_NAME_CHARACTERS, MAX_TENSORS, shown

MAX_BYTES = 4 * 1024**3
MAX_PICKLE_BYTES = 16 * 1024**2

# Of the one folder in the archive. TorchScript, torch.package and torch.export bring other names.
_MEMBER = re.compile(
    r"(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|"
    r"\.data/serialization_id|data/\d+)"
)
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PARALLEL = "module."  # what DataParallel puts before every name
_KEPT = (torch.float32, torch.int64)

# All that a pickle of tensors needs, beside what torch.load itself decides about.
_GLOBALS = re.compile(
    r"(collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|"
    r"torch\.serialization _get_layout)"
)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by their names, on the CPU.

    Unwrapped are a checkpoint with the state dict under `state_dict`, `model_state_dict` or
    `model`, and the prefix that DataParallel adds. Raises ModelFileError for everything else.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ModelFileError(f"expected a checkpoint of at most {MAX_BYTES} bytes, got {size}")
    _check_archive(path, size)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # whatever a hostile file makes it raise
        raise _refused(f"one that cannot be read: {_first_line(error)}") from error
    return _tensors(content)


def _check_archive(path: Path, size: int) -> None:
    """Plain members of a checkpoint, stored once each, and a pickle that names tensors alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if len(infos) > MAX_TENSORS + 10:
                raise _refused(f"one of {len(infos)} members")
            folders = {info.filename.partition("/")[0] for info in infos}
            names = [info.filename.partition("/")[2] for info in infos]
            if len(folders) != 1 or names.count("data.pkl") != 1:
                raise _refused("another zip archive")
            for info, name in zip(infos, names, strict=True):
                if not _MEMBER.fullmatch(name) or names.count(name) > 1:
                    raise _refused(f"an archive with {shown(info.filename)} in it")
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x41:
                    raise _refused("a compressed or encrypted archive")
            if sum(info.file_size for info in infos) > size:
                raise _refused("members that share their bytes")
            pickled = infos[names.index("data.pkl")]
            if pickled.file_size > MAX_PICKLE_BYTES:
                raise _refused(f"a pickle of {pickled.file_size} bytes")
            _check_globals(archive.read(pickled))
    except ModelFileError:
        raise
    except Exception as error:
        raise _refused(f"a damaged archive: {_first_line(error)}") from error


def _check_globals(pickled: bytes) -> None:
    """Looked at, never run: what the pickle would import, by the opcodes that import."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise _refused("a pickle that makes objects other than tensors")
        if opcode.name == "GLOBAL" and not _GLOBALS.fullmatch(str(argument)):
            raise _refused(f"a pickle that calls {str(argument).replace(' ', '.')!r:.100}")


def _tensors(content: Any) -> dict[str, Tensor]:
    wrapped = [key for key in _WRAPPERS if isinstance(content, dict) and key in content]
    if len(wrapped) == 1 and isinstance(content[wrapped[0]], Mapping):
        content = content[wrapped[0]]
    if not isinstance(content, Mapping) or not content:
        raise _refused(f"a {type(content).__name__}" if content else "an empty one")
    if len(content) > MAX_TENSORS:
        raise _refused(f"one of {len(content)} tensors")
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if others or not all(isinstance(key, str) for key in content):
        names = ", ".join(shown(str(key)) for key in others[:5])
        raise _refused(f"other values beside them: {names or 'keys that are no names'}")
    tensors: dict[str, Tensor] = dict(content)
    if all(name.startswith(_PARALLEL) for name in tensors):
        tensors = {name.removeprefix(_PARALLEL): value for name, value in tensors.items()}
    for name, value in tensors.items():
        if not name.isprintable() or not 0 < len(name) <= MAX_NAME_CHARACTERS:
            raise _refused(f"a tensor named {shown(name)}")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise _refused(f"another kind of tensor, {shown(name)}")
        if value.dtype not in _KEPT:
            raise _refused(f"{value.dtype} in {shown(name)}: send float32")
        # a view may claim more numbers than its storage was given bytes for
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise _refused(f"{shown(name)}, which repeats its numbers")
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}


def _first_line(error: Exception) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__
    return "".join(c if c.isprintable() else " " for c in text.splitlines()[0])[:200]


def _refused(got: str) -> ModelFileError:
    return ModelFileError(
        "expected a state dict of tensors alone, saved by "
        f"torch.save(model.state_dict(), 'model.pt'), got {got}. {SEND_INSTEAD}"
    )
