"""PyTorch's own files: the tensors of a state dict, and nothing else, out of a `.pt` or `.pth`.

For the sandboxed child alone. Such a file is a zip around a pickle, which is a program. It is read
by `torch.load(weights_only=True)`, which knows a short list of things to make and refuses all
others; the archive is looked through before. What comes out is a mapping of names to tensors: the
file itself is dropped.
"""

import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adap.models.errors import ModelFileError
from adap.models.fitting import Weights
from adap.models.formats import SEND_INSTEAD
from adap.models.header import MAX_NAME_CHARACTERS, MAX_TENSORS, shown

MAX_BYTES = 4 * 1024**3
MAX_PICKLE_BYTES = 16 * 1024**2

# Of the one folder in the archive. TorchScript, torch.package and torch.export bring other names.
_MEMBER = re.compile(
    r"(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|"
    r"\.data/serialization_id|data/\d+)"
)
MAX_DEPTH = 4  # of mappings in mappings

# All that a pickle of tensors needs, beside what torch.load itself decides about.
_GLOBALS = re.compile(
    r"(collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|"
    r"torch\.serialization _get_layout|torch Size|torch device|torch (float|bfloat|int|uint)\d+)"
)

# Settings and figures that trainers save beside the tensors. Nothing of it is imported or called:
# each name stands for one of the inert kinds below.
_LEAVES = re.compile(
    r"(argparse Namespace|types SimpleNamespace|typing Any|_codecs encode|uuid UUID|"
    r"(__builtin__|builtins) "
    r"(bool|complex|float|frozenset|int|long|object|range|set|slice|str|tuple|unicode|xrange)|"
    r"datetime (date|datetime|time|timedelta|timezone)|decimal Decimal|fractions Fraction|"
    r"pathlib (Pure)?(Posix|Windows)?Path|"
    r"numpy (dtype|ndarray|bool_|(float|int|uint)\d+)|numpy\.dtypes \w+|"
    r"numpy\._?core\.multiarray (scalar|_reconstruct)|"
    r"omegaconf\.(base|dictconfig|nodes) \w+|"
    r"torch\.nn\.modules\.(loss|activation) [A-Z]\w+|torch\.optim(\.\w+)+ [A-Z]\w+|"
    r"(pytorch_lightning|lightning\.pytorch)\.callbacks\.\w+ \w+)"
)
_MAPPINGS = re.compile(
    r"(collections (Counter|defaultdict)|(__builtin__|builtins) dict|easydict EasyDict|"
    r"addict(\.addict)? Dict|(yacs\.config|fvcore\.common\.config) CfgNode|"
    r"(pytorch_lightning|lightning\.pytorch|lightning)\.utilities\.parsing AttributeDict|"
    r"lightning_fabric\.utilities\.data AttributeDict)"
)
# What torch.load calls the names of Python 2, which torch.save still writes.
_RENAMED = {"long": "int", "unicode": "str", "xrange": "range"}
_LISTS = re.compile(
    r"(omegaconf\.listconfig ListConfig|collections deque|(__builtin__|builtins) list)"
)


class _Leaf:
    """Stands in for a value that is no tensor: what the pickle gives it is dropped."""

    def __new__(cls, *_: Any) -> "_Leaf":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _Mapping:
    """Stands in for a kind of dict: a plain one is made in its place."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


class _List(list[Any]):
    """Stands in for a kind of list."""

    def __new__(cls, *_: Any) -> "_List":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass


_STAND_INS: tuple[tuple[re.Pattern[str], type], ...] = (
    (_LEAVES, _Leaf),
    (_MAPPINGS, _Mapping),
    (_LISTS, _List),
)


def read(path: Path) -> Weights:
    """All tensors of a checkpoint by dotted names, on the CPU, the network's and all others.

    Values that are no tensors are named and left out. Raises ModelFileError for everything else.
    """
    named = check(path)
    try:
        with torch.serialization.safe_globals(list(named)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle's protocol
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # whatever a hostile file makes it raise
        raise _refused(
            f"one that PyTorch's reader of plain tensors does not understand ({_kind(error)})"
        ) from error
    return _weights(content)


def check(path: Path) -> set[Any]:
    """Raise ModelFileError for what is no state dict, by its archive and the pickle's opcodes.

    Returns what stands in for harmless values beside tensors, with the name of each.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ModelFileError(f"expected a checkpoint of at most {MAX_BYTES} bytes, got {size}")
    return _check_archive(path, size)


def _check_archive(path: Path, size: int) -> set[Any]:
    """Plain members of a checkpoint, stored once each, and a pickle that names tensors alone.

    Returns what stands in for harmless values beside them, with the name of each.
    """
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
                    raise _refused(
                        "a compressed or encrypted archive, as another program than PyTorch "
                        "writes it: torch.save(torch.load('model.pt', weights_only=True), 'new.pt')"
                    )
            if sum(info.file_size for info in infos) > size:
                raise _refused("members that share their bytes")
            pickled = infos[names.index("data.pkl")]
            if pickled.file_size > MAX_PICKLE_BYTES:
                raise _refused(
                    f"a pickle of {pickled.file_size} bytes, as NumPy arrays in the place of "
                    "tensors make it (torch.from_numpy makes them tensors)"
                )
            return _check_globals(archive.read(pickled))
    except ModelFileError:
        raise
    except Exception as error:
        raise _refused(f"a damaged archive ({_kind(error)})") from error


_QUANTISED = ("torch q", "torch.ao", "torch.quantization", "torch._utils _rebuild_q", "torch Q")


def _check_globals(pickled: bytes) -> set[Any]:
    """Looked at, never run: what the pickle would import, by the opcodes that import."""
    leaves: set[Any] = set()
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise _refused("a pickle that makes objects other than tensors")
        if opcode.name != "GLOBAL" or _GLOBALS.fullmatch(str(argument)):
            continue
        name = str(argument)
        stand_in = next((kind for names, kind in _STAND_INS if names.fullmatch(name)), None)
        if stand_in is None:
            way = ""
            if name.startswith(("torch.nn.modules", "__main__")):
                way = ", as torch.save(model) of a whole network makes it"
            if name.startswith("ultralytics"):
                way = " (YOLO('model.pt').export(format='onnx') writes ONNX)"
            if name.startswith(_QUANTISED):
                way = ": send the network before torch.quantize, in float32"
            raise _refused(f"a pickle that calls {name.replace(' ', '.')!r:.100}{way}")
        module, _, kind = name.partition(" ")
        if module == "__builtin__":
            module, kind = "builtins", _RENAMED.get(kind, kind)
        leaves.add((stand_in, f"{module}.{kind}"))
    return leaves


def _weights(content: Any) -> Weights:
    """All tensors in a tree of mappings, under dotted names; those of lists are numbered."""
    content = _numbered(content)
    if not isinstance(content, Mapping):
        raise _refused(_NAMES.get(type(content), f"a {type(content).__name__}"))
    if not content:
        raise _refused("an empty one")
    tensors: dict[str, Tensor] = {}
    containers: set[str] = set()
    lists: dict[str, tuple[Tensor, ...]] = {}
    others: list[str] = []

    def walk(mapping: Mapping[Any, Any], where: str, depth: int) -> None:
        for key, value in mapping.items():
            name = where + str(key)
            if isinstance(key, int) and depth == 0 and isinstance(value, Mapping):
                walk(value, f"{name}.", 1)  # of folds, or a list; deeper they are an optimizer's
            elif not isinstance(key, str) or not name.isprintable():
                others.append(where + (key if isinstance(key, str) else type(key).__name__))
            elif isinstance(value, Tensor):
                if name in tensors:
                    raise _refused(f"two tensors named {shown(name)}")
                if len(tensors) == MAX_TENSORS:
                    raise _refused(f"one of more than {MAX_TENSORS} tensors")
                tensors[name] = value
                containers.add(where)
            elif _is_list_of_tensors(value):  # as torch_ema keeps averages: without names
                lists[name] = tuple(value)
                others.append(name)
            elif depth < MAX_DEPTH and isinstance(of_list := _numbered(value), Mapping) and of_list:
                walk(of_list, f"{name}.", depth + 1)
            else:
                others.append(name)

    walk(content, "", 0)
    if not tensors:
        raise _refused(_without_tensors(content))
    for name, value in tensors.items():
        _check(name, value)
    return Weights(
        tensors={name: value.detach() for name, value in tensors.items()},
        containers=frozenset(containers),
        lists=lists,
        others=tuple(dict.fromkeys(shown(name) for name in others)),
    )


_NAMES: dict[type, str] = {_Leaf: "settings without tensors", Tensor: "a single tensor"}


def _numbered(content: Any) -> Any:
    """What in a list holds tensors by name, by its number; all else as it is."""
    if not isinstance(content, list | tuple):
        return content
    found = {
        str(i): item
        for i, item in enumerate(content[:MAX_TENSORS])
        if isinstance(item, Mapping) and any(isinstance(value, Tensor) for value in item.values())
    }
    return found or content


def _without_tensors(content: Mapping[Any, Any]) -> str:
    if {"state", "param_groups"} <= content.keys():
        return "the state of an optimizer, which lies beside the weights of a network"
    if any(isinstance(value, _Leaf) for value in content.values()):
        return (
            "one without tensors: where its values are NumPy arrays, torch.from_numpy makes them "
            "tensors"
        )
    return "one without tensors"


def _is_list_of_tensors(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and 0 < len(value) <= MAX_TENSORS
        and all(isinstance(item, Tensor) for item in value)
    )


def _check(name: str, value: Tensor) -> None:
    """A plain tensor on the CPU, as large as its storage."""
    if not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise _refused(f"a tensor named {shown(name)}")
    if value.is_quantized:
        raise _refused(
            f"{shown(name)}, which is quantised by PyTorch: send the network before torch.quantize,"
            " in float32"
        )
    if value.layout != torch.strided or value.device.type != "cpu":
        raise _refused(f"another kind of tensor, {shown(name)}")
    # a view may claim more numbers than its storage was given bytes for
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise _refused(f"{shown(name)}, which repeats its numbers")


def _kind(error: Exception) -> str:
    """What kind of fault it is, never the library's text: that advises to read without care."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()


def _refused(got: str) -> ModelFileError:
    return ModelFileError(
        "expected a state dict of tensors alone, saved by "
        f"torch.save(model.state_dict(), 'model.pt'), got {got}. {SEND_INSTEAD}"
    )
