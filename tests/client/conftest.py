"""A data set, two models and an audit on the service, made once; and the command `adap`."""

import json
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import make_archive
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adap.client.client import Client

ADAP = Path(sys.executable).with_name("adap")
SIDE = 8
TINY: dict[str, Any] = {"epochs": 1, "batch_size": 16, "attack": {"steps": 1}}


@dataclass(frozen=True)
class Run:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, read as JSON."""
        return json.loads(self.out)


Adap = Callable[..., Run]


def write_image_folder(folder: Path, *, per_class: int = 12, seed: int = 0) -> None:
    """Class folders below split folders: cats are bright, dogs are dark, both are noisy."""
    random = np.random.default_rng(seed)
    for split in ("train", "validation", "test"):
        for name, brightness in {"cat": 150, "dog": 50}.items():
            target = folder / split / name
            target.mkdir(parents=True)
            for i in range(per_class):
                pixels = random.integers(brightness, brightness + 100, (SIDE, SIDE), np.uint8)
                Image.fromarray(pixels).save(target / f"{i:02d}.png")


@pytest.fixture(scope="session")
def client(service: str) -> Iterator[Client]:
    """A client of the service."""
    with Client(service) as made:
        yield made


@pytest.fixture
def adap(service: str, tmp_path: Path) -> Adap:
    """Run the command line against the service, in a folder of its own."""

    def run(*arguments: object, **environment: str) -> Run:
        finished = subprocess.run(
            [ADAP, *map(str, arguments)],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "ADAP_URL": service} | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in finished.stderr, finished.stderr
        return Run(finished.returncode, finished.stdout, finished.stderr)

    return run


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of cats and dogs in three splits."""
    folder = tmp_path_factory.mktemp("images") / "pets"
    write_image_folder(folder)
    return folder


@pytest.fixture(scope="session")
def dataset(client: Client, images: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of a data set that is ready."""
    archive = make_archive(str(tmp_path_factory.mktemp("zip") / "pets"), "zip", images)
    added = client.datasets.add(Path(archive), name="pets")
    client.jobs.wait(added["job_id"])
    return str(added["id"])


@pytest.fixture(scope="session")
def trained(client: Client, dataset: str) -> dict[str, Any]:
    """A finished training job."""
    request = {**TINY, "dataset_id": dataset, "task": {"positive": ["cat"]}, "name": "first"}
    return client.jobs.wait(client.train(request)["id"])


@pytest.fixture(scope="session")
def model(trained: dict[str, Any]) -> str:
    """The id of a model that was trained here."""
    return str(trained["result"]["model_id"])


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network with three logits, made and saved without this project."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_file(torch_classifier().state_dict(), path)
    return path


def torch_classifier() -> Any:
    """The architecture small_cnn with three logits, in PyTorch alone and eval mode."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers: list[tuple[str, nn.Module]] = []
    for number, (before, after, stride) in enumerate([(1, 32, 1), (32, 64, 2), (64, 128, 2)], 1):
        convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        layers.append((f"conv{number}", convolution))
        layers.append((f"norm{number}", nn.BatchNorm2d(after)))
        layers.append((f"relu{number}", nn.ReLU()))
    layers += [("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("fc", nn.Linear(128, 3))]
    return nn.Sequential(OrderedDict(layers)).eval()


@pytest.fixture(scope="session")
def audited(client: Client, dataset: str, model: str) -> str:
    """The id of a finished audit."""
    request = {"model_id": model, "dataset_id": dataset, "attacks": ["pgd"]}
    return str(client.jobs.wait(client.audit(request)["id"])["id"])
