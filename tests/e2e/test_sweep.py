"""A published data set and a sweep over it, on photographs, through a running service.

Needs the CIFAR-10 images that lie beside a checkout; skipped elsewhere. They are JPEGs, from which
the publisher's binary layout is made here.
"""

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adap.client.client import Client
from adap.core.published import load
from adap.core.published.cifar import CIFAR10_CLASSES
from adap.core.training.splitting import hold_out
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

PER_FILE = 8  # images of each class


@pytest.fixture(scope="module")
def root(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 as published, with 400 images for training and 80 for testing."""
    made = tmp_path_factory.mktemp("published")
    folder = made / "cifar-10-batches-bin"
    folder.mkdir()
    for archive, names in (
        ("cifar10-train.zip", [f"data_batch_{i}.bin" for i in range(1, 6)]),
        ("cifar10-test.zip", ["test_batch.bin"]),
    ):
        with zipfile.ZipFile(shared / "data" / archive) as source:
            by_class: dict[str, list[str]] = {}
            for name in source.namelist():
                if name.endswith(".jpg"):
                    by_class.setdefault(name.split("/")[-2], []).append(name)
            for number, file in enumerate(names):
                with (folder / file).open("wb") as target:
                    for label, kind in enumerate(CIFAR10_CLASSES):
                        start = number * PER_FILE
                        for name in by_class[kind][start : start + PER_FILE]:
                            with Image.open(io.BytesIO(source.read(name))) as image:
                                pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
                            target.write(bytes([label]) + pixels.tobytes())
    return made


def test_photographs_come_back_and_a_fifth_of_each_class_is_held_out(root: Path) -> None:
    read = load("cifar10", root)
    assert read.images.shape == (480, 3, 32, 32)
    assert 90 < read.images.mean() < 150, "photographs, and not noise or nothing"
    made = hold_out(read, fraction=0.2, seed=1)
    for split, count in (("train", 32), ("validation", 8), ("test", 8)):
        index = made.in_split(split)  # type: ignore[arg-type]
        assert np.bincount(made.labels[index]).tolist() == [count] * 10


def test_a_search_over_photographs_finds_a_front_whose_models_can_be_audited(
    root: Path, service: str, tmp_path: Path
) -> None:
    packed = tmp_path / "cifar10.npz"
    command = [sys.executable, "-m", "adap.core.published", "cifar10", root, "-o", packed]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    with Client(service) as client:
        added = client.datasets.add(packed)
        client.jobs.wait(added["job_id"])
        summary = client.datasets.show(added["id"])["summary"]
        assert summary["classes"] == dict.fromkeys(CIFAR10_CLASSES, 6 * PER_FILE)
        assert summary["splits"]["test"]["truck"] == PER_FILE

        made = client.sweep(
            {
                "training": {
                    "dataset_id": added["id"],
                    "task": {"positive": ["truck"]},
                    "preset": "quick",
                    "epochs": 2,
                },
                "search": {
                    "kind": "tpe",
                    "parameters": {
                        "method": ["ce", "adap_lpn"],
                        "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
                    },
                    "trials": 4,
                    "at_once": 2,
                },
            }
        )
        *_, ended = client.sweeps.follow(made["id"])
        assert (ended["status"], ended["counts"]) == ("succeeded", {"succeeded": 4})
        figures: list[dict[str, Any]] = ended["trials"]
        assert all(0 < trial["robust_ap"] <= trial["clean_ap"] <= 1 for trial in figures)
        assert figures[ended["best"]]["robust_ap"] == max(trial["robust_ap"] for trial in figures)
        assert ended["best"] in ended["front"]

        audit = client.audit(
            {
                "dataset_id": added["id"],
                "model_id": figures[ended["best"]]["model_id"],
                "attacks": ["pgd"],
            }
        )
        client.jobs.wait(audit["id"])
        (task,) = client.report(audit["id"])["tasks"]
        assert (task["examples"], task["positives"]) == (10 * PER_FILE, PER_FILE)
        assert task["worst_case"]["ap"] < task["clean"]["ap"]
