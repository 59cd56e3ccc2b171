"""Models in every accepted form, from the upload to an audit's clean scores; PyTorch judges."""

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import psutil
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from adap.models import architectures
from tests.e2e.test_audit import add_dataset, audit, rows
from tests.models import test_state_dicts as hostile
from tests.models.exports import export, small_network

INPUT = {"channels": 3, "height": 32, "width": 32, "mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3]}


@pytest.fixture(scope="module")
def http(service: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (24, 3, 32, 32)).astype(np.uint8)


@pytest.fixture(scope="module")
def dataset(http: httpx.Client, images: np.ndarray[Any, Any]) -> str:
    arrays = io.BytesIO()
    labels = np.array(["cat", "dog", "dog"])[np.arange(len(images)) % 3]
    np.savez(arrays, images=images, labels=labels)
    return add_dataset(http, "noise.npz", arrays.getvalue())


def upload(http: httpx.Client, content: bytes, name: str, **declared: Any) -> dict[str, Any]:
    """The model as it is once it has been checked."""
    fields = {k: v if isinstance(v, str) else json.dumps(v) for k, v in declared.items()}
    added = http.post("/v1/models", files={"file": (name, content)}, data=fields)
    assert added.status_code == 201, added.text
    while not http.get(f"/v1/jobs/{added.json()['job_id']}", headers={"Prefer": "wait=30"}).json()[
        "done"
    ]:
        pass
    model: dict[str, Any] = http.get(f"/v1/models/{added.json()['id']}").json()
    return model


def clean_scores(http: httpx.Client, model: dict[str, Any], dataset: str) -> np.ndarray[Any, Any]:
    assert model["status"] == "ready", model["reasons"]
    job = audit(http, model["id"], dataset, task={"positive": ["cat"]})
    return np.array([row["clean"] for row in rows(http, job)])


def in_pytorch(network: nn.Module, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        outputs = network((torch.from_numpy(images).float() / 255 - 0.4) / 0.3)
    return np.asarray(outputs.double().numpy())


@pytest.mark.parametrize("make", [small_network, lambda: resnet18(num_classes=1).eval()])
def test_an_onnx_file_is_audited_with_the_scores_of_pytorch(
    http: httpx.Client, dataset: str, images: np.ndarray[Any, Any], make: Any
) -> None:
    torch.manual_seed(0)
    network = make()
    content = export(network, torch.rand(2, 3, 32, 32), legacy=True)
    model = upload(http, content, "m.safetensors", architecture="onnx", input=INPUT)
    assert model["findings"]["format"] == "onnx"
    assert 0 <= model["findings"]["onnx_difference"] < 1e-5
    got = clean_scores(http, model, dataset)
    assert np.allclose(got, in_pytorch(network, images)[:, 0], rtol=1e-4, atol=1e-6)

    kept = http.get(f"/v1/models/{model['id']}/content").content
    again = upload(http, kept, "kept.onnx")
    assert again["sha256"] == model["sha256"]
    assert np.array_equal(clean_scores(http, again, dataset), got)


def test_an_onnx_file_that_is_no_plain_network_is_rejected(http: httpx.Client) -> None:
    content = export(small_network(), torch.rand(2, 3, 32, 32), legacy=True)
    small = {**INPUT, "height": 16}
    model = upload(http, content, "m.onnx", architecture="onnx", input=small)
    assert model["status"] == "rejected"
    assert "as declared, got (any, 3, 32, 32)" in model["reasons"][0]


def test_a_state_dict_is_converted_audited_and_exported_as_onnx(
    http: httpx.Client, dataset: str, images: np.ndarray[Any, Any]
) -> None:
    network = architectures.build("small_cnn", channels=3, seed=0).eval()
    content = io.BytesIO()
    torch.save(network.state_dict(), content)
    model = upload(http, content.getvalue(), "m.pth", architecture="small_cnn", input=INPUT)
    assert model["findings"]["format"] == "state dict"
    assert model["findings"]["smallest_gradient"] > 0
    got = clean_scores(http, model, dataset)
    assert np.allclose(got, in_pytorch(network, images)[:, 0], atol=1e-6)

    kept = http.get(f"/v1/models/{model['id']}/content")
    assert b"data.pkl" not in kept.content
    exported = http.get(f"/v1/models/{model['id']}/content", params={"format": "onnx"})
    assert exported.status_code == 200, exported.text
    assert exported.headers["content-disposition"].endswith('.onnx"')
    session = onnxruntime.InferenceSession(exported.content)
    (logits,) = session.run(None, {"images": images.astype(np.float32) / 255})
    assert np.allclose(logits[:, 0], got, atol=1e-5)
    again = http.get(f"/v1/models/{model['id']}/content", params={"format": "onnx"})
    assert again.headers["etag"] == exported.headers["etag"]


def test_probabilities_are_audited_by_their_logits(
    http: httpx.Client, dataset: str, images: np.ndarray[Any, Any]
) -> None:
    network = small_network(last=nn.Sigmoid())
    content = export(network, torch.rand(2, 3, 32, 32), legacy=True)
    output = {"kind": "probability"}
    model = upload(http, content, "m.onnx", architecture="onnx", input=INPUT, output=output)
    assert "last sigmoid cut off: its input is audited" in model["findings"]["reading"]["steps"]
    got = clean_scores(http, model, dataset)
    assert np.allclose(got, in_pytorch(network[:-1], images)[:, 0], atol=1e-4)


def test_a_hostile_checkpoint_is_rejected_and_leaves_nothing(
    http: httpx.Client, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    for case in ("os mkdir", "stack", "a payload among tensors"):
        content = hostile.EVIL[case](canary)
        model = upload(http, content, "m.safetensors", architecture="small_cnn", input=INPUT)
        assert model["status"] == "rejected"
        assert "a state dict of tensors alone" in model["reasons"][0]
    assert not canary.exists()
    sandboxed = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if "worker.child" in " ".join(process.cmdline()):
                sandboxed.append(process)
    _, alive = psutil.wait_procs(sandboxed, timeout=30)
    assert alive == []
