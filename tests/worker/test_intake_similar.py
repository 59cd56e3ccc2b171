"""Images that look alike in two splits: Pillow makes the copies, so their number is known."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adap.core.config.data import DatasetOptions
from adap.reading import Fact
from adap.worker.intake import IntakeLimits, read_dataset
from adap.worker.intake.notes import Notes
from tests.worker.archives import encode, pack


def photograph(seed: int, *, side: int = 48) -> Image.Image:
    """Smooth colours and some grain, as photographs have them."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(float)
    return Image.fromarray((smooth + random.normal(0, 3, smooth.shape)).clip(0, 255).astype("u1"))


def saved(image: Image.Image, quality: int) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, "JPEG", quality=quality)))


def near_duplicates(members: dict[str, Image.Image], folder: Path) -> Fact | None:
    path = folder / "upload"
    path.write_bytes(pack({name: encode(image) for name, image in members.items()}))
    notes = Notes()
    read_dataset(
        path,
        limits=IntakeLimits(),
        on_progress=lambda done, total: None,
        options=DatasetOptions(),
        notes=notes,
    )
    found = [fact for fact in notes.facts if fact.code == "near_duplicates_across_splits"]
    return found[0] if found else None


def members(*, test_from: int = 100) -> dict[str, Image.Image]:
    """Four pictures of each class to train on, and two to test on."""
    made = {f"train/{'ab'[k % 2]}/{k}.png": photograph(k) for k in range(8)}
    return made | {f"test/{'ab'[k % 2]}/{k}.png": photograph(test_from + k) for k in range(4)}


@pytest.mark.parametrize("quality", [95, 80])
def test_pictures_saved_again_in_the_other_split_are_counted(quality: int, tmp_path: Path) -> None:
    copied = members()
    for k in range(3):
        copied[f"test/{'ab'[k % 2]}/{k}.png"] = saved(photograph(k), quality)
    fact = near_duplicates(copied, tmp_path)
    assert fact is not None
    assert fact.level == "caution"
    assert fact.figures == {"images": 3, "share": 3 / 12}


def test_different_pictures_and_equal_ones_are_no_near_duplicates(tmp_path: Path) -> None:
    assert near_duplicates(members(), tmp_path) is None
    assert near_duplicates(members(test_from=0), tmp_path) is None  # duplicates, said elsewhere


def test_copies_within_a_split_and_without_splits_are_not_counted(tmp_path: Path) -> None:
    within = members() | {"train/a/copy.png": saved(photograph(0), 90)}
    assert near_duplicates(within, tmp_path) is None
    flat = {name.removeprefix("train/"): image for name, image in within.items() if "train" in name}
    assert near_duplicates(flat, tmp_path) is None


def test_flat_images_do_not_look_alike(tmp_path: Path) -> None:
    flat = {
        name: Image.new("RGB", (48, 48), (k, k, k)) for k, name in enumerate(members(), start=100)
    }
    assert near_duplicates(flat, tmp_path) is None
