"""Real files of every executable format, each under three names; none may run, all are named."""

import io
import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch import nn
from torch.package import PackageExporter

from adap.models.errors import ModelFileError
from adap.models.header import InputSpec, Manifest
from adap.models.loading import load

MANIFEST = Manifest(
    architecture="small_cnn",
    input=InputSpec(channels=1, height=8, width=8, mean=[0.5], std=[0.5]),
)


class Payload:
    """Whoever unpickles this leaves a canary behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 1))


def pickled(canary: Path, *, protocol: int = 4) -> bytes:
    return pickle.dumps(Payload(canary), protocol=protocol)


def text_pickle(canary: Path) -> bytes:
    """Protocol 0, written out: call os.mkdir."""
    return f"cos\nmkdir\n(V{canary}\ntR.".encode()


def torch_zip(canary: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": Payload(canary)}, buffer)
    return buffer.getvalue()


def torch_legacy(canary: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Payload(canary), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def torchscript(_: Path) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network(), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def exported(_: Path) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(network(), (torch.zeros(1, 2),)), buffer)
    return buffer.getvalue()


def packaged(canary: Path) -> bytes:
    buffer = io.BytesIO()
    with PackageExporter(buffer) as exporter:
        exporter.extern("tests.**")
        exporter.extern("os")
        exporter.save_pickle("model", "model.pkl", {"weights": 1})
    return buffer.getvalue()


def joblib_dump(canary: Path, *, compress: int) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(Payload(canary), buffer, compress=compress)
    return buffer.getvalue()


def object_array(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def object_archive(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, weights=np.array([Payload(canary)], dtype=object))
    return buffer.getvalue()


def zip_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(canary: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("model.pkl")
        content = pickled(canary)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# the first fields of an ONNX ModelProto: ir_version 8, producer_name "pytorch", a graph
ONNX = b"\x08\x08\x12\x07pytorch\x3a\x02\x0a\x00"

FOREIGN: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "pickle protocol 0": (text_pickle, "a Python pickle"),
    **{
        f"pickle protocol {n}": (
            partial(pickled, protocol=n),
            "a Python pickle",
        )
        for n in (2, 3, 4, 5)
    },
    "torch.save": (torch_zip, "a PyTorch checkpoint"),
    "torch.save before 1.6": (
        torch_legacy,
        "torch.save(torch.load('model.pt', map_location='cpu', weights_only=True)",
    ),
    "TorchScript": (torchscript, "torch.jit.load('model.pt').state_dict()"),
    "torch.export": (exported, "torch.onnx.export(torch.export.load('model.pt2')"),
    "torch.package": (packaged, "a torch.package archive"),
    "joblib": (partial(joblib_dump, compress=0), "a Python pickle"),
    "joblib, compressed": (partial(joblib_dump, compress=3), "a joblib dump"),
    "array of objects": (object_array, "a NumPy array"),
    "archive of objects": (object_archive, "an NPZ archive"),
    "Keras": (
        lambda _: zip_of(**{"config.json": b"{}", "model.weights.h5": b"\x89HDF"}),
        "a Keras archive, which can run code when it is opened, so it is never opened here. In "
        "Keras 3 model.export('model.onnx', format='onnx') writes ONNX",
    ),
    "TensorFlow Lite": (lambda _: b"\x1c\0\0\0TFL3" + bytes(32), "tf2onnx.convert --tflite"),
    "onnxruntime's own": (lambda _: b"\x28\0\0\0ORTM" + bytes(32), "the ONNX file that it was"),
    "OpenVINO": (lambda _: b'<?xml version="1.0"?><net/>', "the ONNX file that it was converted"),
    "ExecuTorch": (lambda _: b"\x18\0\0\0ET12" + bytes(32), "the network that it was made from"),
    "the index of a TensorFlow checkpoint": (
        lambda _: bytes(90) + bytes.fromhex("57fb808b247547db"),
        "the index of a checkpoint of TensorFlow",
    ),
    "the list of TensorFlow checkpoints": (
        lambda _: b'model_checkpoint_path: "model.ckpt-9"\n',
        "tf2onnx.convert --saved-model",
    ),
    "a frozen graph": (
        lambda _: b"\x0a\x1b\x0a\x05input\x12\x0bPlaceholder" + bytes(20),
        "tf2onnx.convert --graphdef",
    ),
    "Flax": (lambda _: b"\x81\xa6params\x82\xa4head\x80", "jax2tf makes it a SavedModel"),
    "MXNet": (lambda _: b"\x12\x01" + bytes(30), "mxnet.onnx.export_model writes ONNX"),
    "XGBoost": (lambda _: b'{"learner":{}}', "an XGBoost model, which has no gradient"),
    "LightGBM": (lambda _: b"tree\nversion=v4\n", "a LightGBM model, which has no gradient"),
    "HDF5": (lambda _: b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "ONNX": (lambda _: ONNX, "an ONNX model"),
    "a zip of a SavedModel": (
        lambda _: zip_of(**{"m/saved_model.pb": b"\x08\1"}),
        "tf2onnx.convert --saved-model",
    ),
    "a zip of Core ML": (
        lambda _: zip_of(**{"m.mlpackage/Data/com.apple.CoreML/model.mlmodel": b"\x08\7"}),
        "the network that it was converted from",
    ),
    "a zip of ONNX in two files": (
        lambda _: zip_of(**{"m.onnx": b"\x08\7", "m.onnx.data": b"0"}),
        "onnx.save(onnx.load('model.onnx'), 'whole.onnx')",
    ),
    "a zip of a Hub's repository": (
        lambda _: zip_of(**{"config.json": b"{}", "model.safetensors": b"0"}),
        "a zip archive that holds safetensors. Unpack it, and send that file itself",
    ),
    "plain zip": (lambda _: zip_of(readme=b"hello"), "a zip archive"),
    "pickle in a zip in a zip": (
        lambda canary: zip_of(inner=zip_of(payload=pickled(canary))),
        "a zip archive",
    ),
    "tar": (tar_of, "a tar archive"),
    "web page": (lambda _: b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "JSON": (lambda _: b'{"error": "not found"}', "JSON text"),
    "the list of shards": (
        lambda _: b'{"metadata": {"total_size": 8}, "weight_map": {"a": "1.safetensors"}}',
        "the list of the shards of a model: join them first, tensors.update(",
    ),
    "Git LFS": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
    "noise": (lambda _: bytes(range(200, 256)), "not known"),
    "nothing": (lambda _: b"", "an empty file"),
}


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "png"])
@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_file_is_named_and_never_opened(case: str, suffix: str, tmp_path: Path) -> None:
    make, description = FOREIGN[case]
    canary = tmp_path / "canary"
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(make(canary))
    with pytest.raises(ModelFileError) as caught:
        load(path, MANIFEST, device="cpu")
    message = str(caught.value)
    assert message.startswith("expected a safetensors file, got ")
    assert description in message
    assert "safetensors.torch.save_file(model.state_dict()" in message
    assert not canary.exists()


def test_the_payload_of_these_tests_does_leave_a_canary(tmp_path: Path) -> None:
    for make in (text_pickle, pickled):
        canary = tmp_path / make.__name__
        pickle.loads(make(canary))
        assert canary.exists()


@pytest.mark.parametrize("make", [text_pickle, torch_zip, torch_legacy])
def test_a_pickle_behind_a_sound_file_is_refused(
    make: Callable[[Path], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"a": np.zeros(2, np.float32)}) + make(tmp_path / "canary"))
    with pytest.raises(ModelFileError, match="8 bytes of data"):
        load(path, MANIFEST, device="cpu")
    assert not (tmp_path / "canary").exists()
