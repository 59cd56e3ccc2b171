"""State dicts in: plain tensors come out; what could do more is refused and never run."""

import collections
import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adap.models import architectures, conversion, loading, state_dicts
from adap.models.errors import ModelFileError
from adap.models.header import InputSpec, Manifest
from tests.models import test_formats as formats
from tests.models.exports import declaration

MANIFEST = Manifest(
    architecture="small_cnn",
    input=InputSpec(channels=1, height=8, width=8, mean=[0.5], std=[0.5]),
)


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def network() -> nn.Module:
    return architectures.build("small_cnn", channels=1, seed=0).eval()


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(files: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def checkpoint(pickled: bytes, **more: bytes) -> bytes:
    """The archive that torch.save writes, around a pickle of one's own."""
    return packed({"a/data.pkl": pickled, "a/version": b"3\n", "a/byteorder": b"little", **more})


# --- what is taken --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        dict,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": state},
        lambda state: collections.OrderedDict((f"module.{k}", v) for k, v in state.items()),
        lambda state: {
            k: nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()
        },
    ],
)
def test_a_state_dict_becomes_safetensors_with_the_same_scores(wrap: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(saved(wrap(network().state_dict())))
    converted = conversion.to_safetensors(path, declaration(MANIFEST), folder=tmp_path)
    assert converted.format == "state dict"
    assert b"data.pkl" not in converted.path.read_bytes()
    scorer, _ = loading.load(converted.path, None, device="cpu")
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(scorer(images), network()((images - 0.5) / 0.5).flatten())


def test_a_state_dict_needs_its_declaration(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(saved(network().state_dict()))
    as_onnx = MANIFEST.model_copy(update={"architecture": "onnx"})
    for declared in (None, declaration(as_onnx)):
        with pytest.raises(ModelFileError, match="the architecture that the tensors belong to"):
            conversion.to_safetensors(path, declared, folder=tmp_path)


# --- what is not ----------------------------------------------------------------------------------

CALLS = (
    "os mkdir",
    "posix mkdir",
    "os system",
    "builtins exec",
    "builtins eval",
    "builtins getattr",
    "builtins __import__",
    "subprocess Popen",
    "subprocess check_output",
    "runpy run_path",
    "pty spawn",
    "shutil rmtree",
    "importlib import_module",
    "pickle loads",
    "torch load",
    "torch.jit load",
    "torch.hub load",
    "torch.serialization load",
    "torch._utils _rebuild_qtensor",
    "torch._inductor.codecache PyCodeCache",
    "numpy load",
    "functools partial",
    "operator attrgetter",
    "types FunctionType",
    "webbrowser open",
)


def called(name: str, canary: Path) -> bytes:
    """Protocol 2: call something with the canary's path."""
    module, _, function = name.partition(" ")
    argument = str(canary).encode()
    return (
        b"\x80\x02}X\x01\x00\x00\x00wc"
        + f"{module}\n{function}\n".encode()
        + b"X"
        + struct.pack("<I", len(argument))
        + argument
        + b"\x85Rs."
    )


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def by_stack(canary: Path) -> bytes:
    return b"\x80\x04" + text("os") + text("mkdir") + b"\x93" + text(str(canary)) + b"\x85R."


def by_inst(canary: Path) -> bytes:
    return b"(" + text(str(canary)) + b"ios\nmkdir\n."


def by_obj(canary: Path) -> bytes:
    return b"(cos\nmkdir\n" + text(str(canary)) + b"o."


def by_build(canary: Path) -> bytes:
    """An allowed class whose state is then replaced."""
    made = b"\x80\x02ccollections\nOrderedDict\n)R}"
    return made + text("__class__") + called("os mkdir", canary)[2:-1] + b"sb."


def second(canary: Path) -> bytes:
    """A good pickle, then a bad one behind its end."""
    return pickle.dumps({}, protocol=2) + called("os mkdir", canary)


def tensor_of(storage_bytes: int, *, size: int, stride: int) -> bytes:
    """A state dict with a tensor that claims more than its storage holds."""
    files = members(saved({"w": torch.zeros(4)}))
    (pickled,) = (name for name in files if name.endswith("data.pkl"))
    good = b"K\x04\x85q" if b"K\x04\x85q" in files[pickled] else b"K\x04\x85"
    new = b"J" + struct.pack("<i", size) + good[2:]
    files[pickled] = files[pickled].replace(good, new, 1)
    (storage,) = (name for name in files if name.endswith("data/0"))
    files[storage] = bytes(storage_bytes)
    return packed(files)


def duplicated() -> bytes:
    files = members(saved({"w": torch.zeros(4)}))
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as out:
        warnings.simplefilter("ignore")  # of the name that comes twice
        for name, content in [*files.items(), *files.items()]:
            out.writestr(name, content)
    return buffer.getvalue()


class Whole(nn.Module):
    """A module pickled whole names a class of its author's."""


EVIL: dict[str, Callable[[Path], bytes]] = {
    **{
        name: (lambda canary, name=name: checkpoint(called(name, canary)))  # type: ignore[misc]
        for name in CALLS
    },
    "stack": lambda canary: checkpoint(by_stack(canary)),
    "inst": lambda canary: checkpoint(by_inst(canary)),
    "obj": lambda canary: checkpoint(by_obj(canary)),
    "build": lambda canary: checkpoint(by_build(canary)),
    "a second pickle": lambda canary: checkpoint(second(canary)),
    "a payload among tensors": lambda canary: saved(
        {"w": torch.zeros(2), "p": formats.Payload(canary)}
    ),
    "a whole module": lambda _: saved(Whole()),
    "before 1.6": formats.torch_legacy,
    "bare pickle": formats.pickled,
    "text pickle": formats.text_pickle,
    "TorchScript": formats.torchscript,
    "torch.export": formats.exported,
    "torch.package": formats.packaged,
    "script beside": lambda canary: packed(
        {**members(saved({"w": torch.zeros(2)})), "archive/code/evil.py": b"import os"}
    ),
    "nested zip": lambda canary: packed({"a/data.pkl": checkpoint(called("os mkdir", canary))}),
    "two folders": lambda canary: packed(
        {**members(saved({})), "b/data.pkl": called("os mkdir", canary)}
    ),
    "climbing": lambda canary: checkpoint(called("os mkdir", canary), **{"a/../../x": b""}),
    "deflated": lambda _: packed(
        members(saved({"w": torch.zeros(10_000)})), compression=zipfile.ZIP_DEFLATED
    ),
    "twice": lambda _: duplicated(),
    "truncated": lambda _: saved(network().state_dict())[:-200],
    "cut in the middle": lambda _: saved(network().state_dict())[:70_000],
    "an overflowing tensor": lambda _: tensor_of(16, size=2**30, stride=1),
    "a short storage": lambda _: tensor_of(4, size=4, stride=1),
    "a view that repeats": lambda _: saved({"w": torch.zeros(1).expand(2**40)}),
    "sparse": lambda _: saved({"w": torch.eye(2).to_sparse()}),
    "no tensors": lambda _: saved({"w": 1.0}),
    "a list": lambda _: saved([torch.zeros(2)]),
    "a tensor": lambda _: saved(torch.zeros(3)),
    "nothing": lambda _: saved({}),
    "half precision": lambda _: saved({"w": torch.zeros(2, dtype=torch.float16)}),
    "other names": lambda _: saved({"../w\n": torch.zeros(2)}),
    "bottomless": lambda _: checkpoint(b"\x80\x02" + b"(" * 100_000 + b"."),
    "endless memo": lambda _: checkpoint(b"\x80\x02}r\xff\xff\xff\x7f."),
    "not a pickle": lambda _: checkpoint(bytes(100)),
}


def take_in(path: Path, folder: Path) -> None:
    converted = conversion.to_safetensors(path, declaration(MANIFEST), folder=folder)
    loading.load(converted.path, MANIFEST, device="cpu")


def test_a_whole_network_is_named_before_what_is_missing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(saved(nn.Sequential(nn.Flatten(), nn.Linear(4, 1))))
    with pytest.raises(ModelFileError) as caught:
        conversion.to_safetensors(path, None, folder=tmp_path)
    assert "as torch.save(model) of a whole network makes it" in str(caught.value)
    assert str(caught.value).startswith("expected a state dict of tensors alone")


def test_the_corpus_is_large_enough() -> None:
    assert len(EVIL) >= 30


@pytest.mark.parametrize("case", EVIL)
def test_a_file_that_could_do_more_is_refused_under_any_name(case: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content = EVIL[case](canary)
    for name in ("model.pt", "model.safetensors", "model.onnx"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ModelFileError) as caught:
            take_in(path, tmp_path)
        assert str(caught.value).startswith("expected ")
        assert str(caught.value).isprintable()
        path.unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_call_from_the_corpus_does_run_where_it_is_unpickled(tmp_path: Path) -> None:
    for number, make in enumerate((lambda c: called("os mkdir", c), by_stack, by_inst, by_obj)):
        canary = tmp_path / str(number)
        pickle.loads(make(canary))
        assert canary.exists()


def test_a_checkpoint_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(saved(network().state_dict()))
    with path.open("r+b") as file:
        file.truncate(state_dicts.MAX_BYTES + 1)
    with pytest.raises(ModelFileError, match="at most 4294967296 bytes"):
        state_dicts.read(path)
