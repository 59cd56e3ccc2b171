"""Tiny trees in the layouts of the publishers of CIFAR, CelebA and BDD100K, and class folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# The superclass of each of the 100 classes in their published order.
SUPERCLASS_NUMBERS = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7),
    *(6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10),
    *(16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16),
    *(12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
]


def cifar10(root: Path) -> np.ndarray[Any, Any]:
    """Six files of four records; the pixels of all of them."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (24, 3, 32, 32), np.uint8)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for number, name in enumerate(names):
        with (folder / name).open("wb") as file:
            for i in range(4 * number, 4 * number + 4):
                file.write(bytes([i % 10]) + images[i].tobytes())
    return images


def cifar100(root: Path) -> None:
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("train.bin", "test.bin"):
        with (folder / name).open("wb") as file:
            for i in range(100):
                pixels = random.integers(0, 256, 3072, np.uint8).tobytes()
                file.write(bytes([SUPERCLASS_NUMBERS[i], i]) + pixels)


def celeba(root: Path, *, folders: tuple[str, str, str] = ("celeba", "celeba", "celeba")) -> None:
    """Nine faces: grey everywhere, with a white band that the middle square leaves out."""
    images, anno, evaluation = (root / folder for folder in folders)
    for folder in (images / "img_align_celeba", anno, evaluation):
        folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:06d}.jpg" for i in range(1, 10)]
    for number, name in enumerate(names):
        pixels = np.full((218, 178, 3), 10 * number, np.uint8)
        pixels[:15] = 255
        Image.fromarray(pixels).save(images / "img_align_celeba" / name, quality=95)
    lines = ["9", "Bald Gray_Hair Mustache"]
    lines += [
        f"{name}  -1 {1 if i % 3 == 0 else -1:2d} {1 if i % 2 else -1:2d}"
        for i, name in enumerate(names)
    ]
    (anno / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    lines = [f"{name} {i // 3}" for i, name in enumerate(names)]
    (evaluation / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")


def bdd100k(root: Path) -> None:
    """Six frames for training and two for validation, and one without labels."""
    weather = ["rainy", "partly cloudy", "clear", "clear", "snowy", "undefined"]
    scene = ["tunnel", "residential", "highway", "highway", "city street", "undefined"]
    (root / "labels").mkdir(parents=True)
    for part, count in (("train", 6), ("val", 2)):
        folder = root / "images" / "100k" / part
        folder.mkdir(parents=True)
        frames = []
        for i in range(count):
            colour = (40 * i, 255 - 40 * i, 128)
            Image.new("RGB", (1280, 720), colour).save(folder / f"{part}-{i}.jpg", quality=95)
            frames.append(
                {
                    "name": f"{part}-{i}.jpg",
                    "attributes": {"weather": weather[i], "scene": scene[i], "timeofday": "night"},
                    "timestamp": 10000,
                    "labels": [{"category": "car", "box2d": {"x1": 1.5, "y1": 2}, "id": 7}],
                }
            )
        (root / "labels" / f"bdd100k_labels_images_{part}.json").write_text(json.dumps(frames))
    Image.new("RGB", (1280, 720)).save(root / "images" / "100k" / "train" / "unlabelled.jpg")


def class_folders(root: Path) -> None:
    for split in ("train", "test"):
        for name, value in (("cat", 200), ("dog", 20)):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (12, 10), (value, i, 0)).save(root / split / name / f"{i}.png")


TREES: dict[str, Callable[[Path], Any]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "celeba": celeba,
    "bdd100k": bdd100k,
    "folder": class_folders,
}
