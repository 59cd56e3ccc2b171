"""The demonstration, run as a newcomer runs it.

The judges: scikit-learn's own digits and its average precision, computed from the ranking and the
scores that the run leaves behind.
"""

import fcntl
import json
import subprocess
import time
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from adap.client import demo
from tests.client.conftest import ADAP


def figures(clean: float, worst: float) -> dict[str, Any]:
    """The figures of one model, as far as the demonstration judges them."""
    return {
        "clean": {"ap": clean},
        "worst_case": {"ap": worst},
        "attacks": {name: {"ap": worst} for name in demo.ATTACKS},
        "chance": 0.111,
        "floor": 0.052,
    }


def test_the_archive_holds_every_digit_of_scikit_learn_once(tmp_path: Path) -> None:
    digits = load_digits()
    demo.write_digits(tmp_path / "digits.zip")
    seen, per_split = set(), Counter[tuple[str, str]]()
    with zipfile.ZipFile(tmp_path / "digits.zip") as archive:
        for name in archive.namelist():
            split, label, file = name.split("/")
            i = int(file.removesuffix(".png"))
            pixels = np.asarray(Image.open(BytesIO(archive.read(name))))
            assert label == str(digits.target[i])
            assert np.abs(pixels / 255 - digits.images[i] / 16).max() <= 0.5 / 255
            seen.add(i)
            per_split[split, label] += 1
    assert seen == set(range(1797))
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    for (split, label), count in per_split.items():
        assert abs(count - shares[split] * (digits.target == int(label)).sum()) <= 1


def test_the_sentence_says_the_figures_of_the_table() -> None:
    tasks = {"CE": figures(0.9971, 0.1021), "AdAP_LPN": figures(0.9952, 0.8238)}
    assert demo.sentence(tasks) == (
        "Unattacked, both rank well: CE 0.997, AdAP_LPN 0.995. Attacked, CE falls to 0.102, "
        "where a random ranking has 0.111, and AdAP_LPN keeps 0.824."
    )


@pytest.mark.parametrize(
    ("ce", "adap", "fault"),
    [
        ((0.99, 0.10), (0.99, 0.80), None),
        (
            (0.99, 0.40),
            (0.99, 0.80),
            "expected attacks to leave CE a worst-case AP of at most 0.25, got 0.400: the attacks "
            "are too weak",
        ),
        (
            (0.99, 0.10),
            (0.99, 0.60),
            "expected AdAP_LPN to keep a worst-case AP of 0.7, got 0.600: its training does not "
            "work",
        ),
        (
            (0.80, 0.10),
            (0.99, 0.80),
            "expected CE to reach a clean AP of 0.95, got 0.800: its training does not work",
        ),
    ],
)
def test_a_run_that_does_not_show_the_point_is_a_fault(
    ce: tuple[float, float], adap: tuple[float, float], fault: str | None
) -> None:
    found = demo.faults({"CE": figures(*ce), "AdAP_LPN": figures(*adap)})
    assert found == ([] if fault is None else [fault])


def test_a_home_that_is_in_use_fails_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with (tmp_path / "home" / "lock").open("w") as lock:
        lock.write("http://127.0.0.1:8000, process 7")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = subprocess.run(
            [ADAP, "demo", "--home", "home"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (run.returncode, run.stdout) == (1, "")
    assert (
        f"A service runs on {tmp_path}/home already: http://127.0.0.1:8000, process 7. "
        "Use that one, or choose another --home.\n" in run.stderr
    )
    assert run.stderr.endswith("The service did not start; the reason is above.\n")


@pytest.mark.slow
def test_the_demonstration_shows_the_point_within_three_minutes(tmp_path: Path) -> None:
    started = time.monotonic()
    run = subprocess.run(
        [ADAP, "demo", "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert time.monotonic() - started < 180
    outcome = json.loads(run.stdout)

    tasks = {name: report["tasks"][0] for name, report in outcome["reports"].items()}
    assert list(tasks) == ["CE", "AdAP_LPN"]
    assert all(list(task["attacks"]) == list(demo.ATTACKS) for task in tasks.values())
    assert tasks["CE"]["worst_case"]["ap"] < 0.25
    assert tasks["AdAP_LPN"]["worst_case"]["ap"] > 0.7

    rows = outcome["ranking"]
    assert len(rows) == 360
    ap = average_precision_score([row["label"] == "8" for row in rows], [r["score"] for r in rows])
    assert tasks["AdAP_LPN"]["clean"]["ap"] == pytest.approx(ap, abs=1e-9)
    for name in ("ce", "adap_lpn"):
        page = (tmp_path / "adap-demo" / f"{name}.html").read_text()
        assert page.lower().startswith("<!doctype html>")
    assert outcome["faults"] == []
