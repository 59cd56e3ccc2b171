"""Uploads that cannot be used: rejected with a sentence, through the real sandbox."""

import io
import json
import zipfile
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors


def png(seed: int, size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, data in files.items():
            made.writestr(name, data)
    return buffer.getvalue()


GOOD = {
    f"{name}/{i}.png": png(10 * i + n) for n, name in enumerate(("cat", "dog")) for i in range(4)
}

DATASETS = {
    "no archive": (b"hello", "expected"),
    "an image that does not decode": (
        archive(**GOOD, **{"cat/bad.png": b"\x89PNG\r\n"}),
        "cat/bad.png",
    ),
    "one class only": (
        archive(**{name: data for name, data in GOOD.items() if "cat" in name}),
        "at least two classes",
    ),
    "sizes that differ": (archive(**GOOD, **{"cat/large.png": png(1, 9)}), "cat/large.png"),
    "a path that climbs": (archive(**GOOD, **{"../../evil/1.png": png(1)}), "evil"),
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_is_rejected_with_the_reason(service: str, name: str) -> None:
    data, sentence = DATASETS[name]
    with httpx.Client(base_url=service, timeout=60) as http:
        dataset = http.post("/v1/datasets", files={"file": ("set.zip", data)}).json()
        job = http.get(f"/v1/jobs/{dataset['job_id']}", headers={"Prefer": "wait=60"}).json()
        assert job["status"] == "failed"
        assert job["error"]["code"] == "dataset_rejected"
        dataset = http.get(f"/v1/datasets/{dataset['id']}").json()
        assert dataset["status"] == "rejected"
        assert any(sentence in reason for reason in dataset["reasons"]), dataset["reasons"]
        refused = http.post(
            "/v1/training-jobs",
            json={"dataset_id": dataset["id"], "task": {"positive": ["cat"]}},
        )
        assert refused.status_code == 409
        assert dataset["reasons"][0] in refused.json()["detail"]


class Canary:
    """A pickle that would run code."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('executed')",))


def test_a_model_is_rejected_with_the_reason(service: str) -> None:
    spec = {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.5]}
    pickled = io.BytesIO()
    torch.save({"weights": torch.zeros(3), "canary": Canary()}, pickled)
    cases = {
        "other tensors": (save_safetensors({"weight": torch.zeros(2, 2)}), "small_cnn"),
        "a pickle": (pickled.getvalue(), "safetensors"),
        "nothing of the kind": (b"hello, world", "expected"),
    }
    with httpx.Client(base_url=service, timeout=60) as http:
        for data, sentence in cases.values():
            model = http.post(
                "/v1/models",
                files={"file": ("m.safetensors", data)},
                data={"architecture": "small_cnn", "input": json.dumps(spec)},
            ).json()
            job = http.get(f"/v1/jobs/{model['job_id']}", headers={"Prefer": "wait=60"}).json()
            assert job["error"]["code"] == "model_rejected"
            model = http.get(f"/v1/models/{model['id']}").json()
            assert model["status"] == "rejected"
            assert sentence in model["reasons"][0], model["reasons"]
