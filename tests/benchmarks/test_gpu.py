"""The script for a machine with a GPU, in its tiny mode: what it writes, and that it goes on."""

import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adap.core.objectives.registry import OBJECTIVES
from benchmarks import gpu


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two zips of class folders, a class being a brightness."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        with zipfile.ZipFile(folder / f"cifar10-{part}.zip", "w") as archive:
            for label, name in enumerate(("airplane", "automobile", "truck")):
                for i in range(40):
                    pixels = rng.integers(0, 60, (32, 32, 3)) + 60 * label
                    file = BytesIO()
                    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
                    archive.writestr(f"{name}/{i:04}.jpg", file.getvalue())
    return folder


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the tiny mode would take the GPU"),
]


def test_the_tiny_mode_checks_times_and_trains_and_trains_nothing_twice(
    data: Path, tmp_path: Path
) -> None:
    options = ["--tiny", "--data", str(data), "--out", str(tmp_path), "--seconds", "3600"]
    assert gpu.main(options) == 0
    found = lines(tmp_path)
    assert {line["kind"] for line in found} == {"machine", "check", "speed", "epoch", "result"}
    checks = [line for line in found if line["kind"] == "check"]
    assert {f"gradient of {name} in float64" for name in OBJECTIVES} < {c["what"] for c in checks}
    assert all(check["ok"] for check in checks)
    timed = [line for line in found if line["kind"] == "speed"]
    alone = [line for line in timed if "folded_attack" in line]
    assert [(line["method"], line["precision"], line["folded_attack"]) for line in alone] == [
        *(
            (method, precision, False)
            for method in ("ce", "pgd", "trades", "adap_lpn")
            for precision in ("float32", "bfloat16")
        ),
        ("adap_lpn", "bfloat16", True),
    ]
    assert [line["at_once"] for line in timed if "at_once" in line] == [1, 2]
    searches = [(line["precision"], line["captured"]) for line in timed if "attack" in line]
    assert searches == [("float32", False)] * 2 + [("bfloat16", False)] * 2, "a CPU has no graphs"
    results = [line for line in found if line["kind"] == "result"]
    assert [result["method"] for result in results] == ["adap_ln", "adap_lpn"]
    for result in results:
        assert result["source"] == "cifar10-jpeg"
        assert set(result["ap"]) == {"clean", "pgd", "apgd"}
        assert result["paper"] is None, "a tiny network is not set beside the paper's"
    assert all(line["device"] for line in found)

    assert gpu.main([*options, "--parts", "train"]) == 0
    again = lines(tmp_path)[len(found) :]
    assert [line["kind"] for line in again] == ["machine", "result", "result"]
    assert again[1:] == results


def test_a_training_that_the_time_does_not_let_begin_is_named(data: Path, tmp_path: Path) -> None:
    options = ["--tiny", "--data", str(data), "--out", str(tmp_path), "--seconds", "0"]
    assert gpu.main([*options, "--parts", "train"]) == 0
    machine, *cut = lines(tmp_path)
    assert machine["kind"] == "machine"
    assert [(line["kind"], line["method"]) for line in cut] == [
        ("cut", "adap_ln"),
        ("cut", "adap_lpn"),
    ]


def test_a_part_that_fails_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--tiny", "--data", str(tmp_path), "--out", str(out), "--seconds", "60"]
    assert gpu.main([*options, "--parts", "train"]) == 1  # there are no images
    assert [line["kind"] for line in lines(out)] == ["machine", "failed"]


def test_a_machine_without_a_gpu_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    said = "expected a GPU, got a machine without: --tiny tries the same on a CPU"
    assert capsys.readouterr().err.strip() == said
    assert not (tmp_path / "out").exists()
