"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 60,000 images of 32x32, a sixth of them for testing.

The binary version is read directly: a byte for each label, then 3,072 of pixels, plane after plane.
The Python version is pickles; torchvision's classes read it, which open a file only once its MD5 is
the published one, so that nothing but the publisher's own files is ever unpickled.

CIFAR-100 has two labellings: `superclass` (20, as in the paper) and `class` (100).
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adap.core.config.base import SPLITS
from adap.core.datasets import ImageSet
from adap.core.errors import DataError
from adap.core.published.base import MissingFileError, Published, Reading

SIDE = 32
_PIXELS = 3 * SIDE * SIDE
_SOURCE = "it is part of https://www.cs.toronto.edu/~kriz/"

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)

# In the order of the published numbers, which is alphabetical here and within each superclass.
SUPERCLASSES: dict[str, str] = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
CIFAR100_CLASSES = tuple(sorted(name for names in SUPERCLASSES.values() for name in names.split()))
_SUPERCLASS_OF = {
    name: number for number, names in enumerate(SUPERCLASSES.values()) for name in names.split()
}

Part = tuple[str, NDArray[np.uint8], NDArray[np.int64], str]
"""Name, images, labels and split of one published file."""


def _read_cifar10(root: Path, reading: Reading) -> ImageSet:
    _refuse_resizing(reading)
    reading.labelling(("class",))
    files = [(f"data_batch_{i}.bin", "train") for i in range(1, 6)] + [("test_batch.bin", "test")]
    folder = root / "cifar-10-batches-bin"
    if not folder.is_dir() and (root / "cifar-10-batches-py").is_dir():
        parts = _by_torchvision(root, "CIFAR10", "cifar-10-python.tar.gz")
    else:
        parts = _read_binary(folder, files, label_bytes=1, archive="cifar-10-binary.tar.gz")
    return _joined(parts, CIFAR10_CLASSES)


def _read_cifar100(root: Path, reading: Reading) -> ImageSet:
    _refuse_resizing(reading)
    labelling = reading.labelling(("superclass", "class"))
    folder = root / "cifar-100-binary"
    if not folder.is_dir() and (root / "cifar-100-python").is_dir():
        parts = _by_torchvision(root, "CIFAR100", "cifar-100-python.tar.gz")
    else:
        files = [("train.bin", "train"), ("test.bin", "test")]
        parts = _read_binary(folder, files, label_bytes=2, archive="cifar-100-binary.tar.gz")
    if labelling == "class":
        return _joined(parts, CIFAR100_CLASSES)
    # each class belongs to one superclass, so the byte of the latter says nothing new
    super_of = np.array([_SUPERCLASS_OF[name] for name in CIFAR100_CLASSES], np.int64)
    return _joined(
        [(name, images, super_of[labels], split) for name, images, labels, split in parts],
        tuple(SUPERCLASSES),
    )


def _refuse_resizing(reading: Reading) -> None:
    if reading.size not in (None, SIDE):
        raise DataError(f"expected images of {SIDE} pixels, as CIFAR has, got {reading.size}")


def _read_binary(
    folder: Path, files: list[tuple[str, str]], *, label_bytes: int, archive: str
) -> list[Part]:
    """The last label byte of each record is the class."""
    parts: list[Part] = []
    record = label_bytes + _PIXELS
    classes = {1: len(CIFAR10_CLASSES), 2: len(CIFAR100_CLASSES)}[label_bytes]
    for name, split in files:
        path = folder / name
        if not path.is_file():
            raise MissingFileError(
                f"expected {path}, got no such file; {_SOURCE}{archive}, unpacked"
            )
        content = np.fromfile(path, np.uint8)
        if len(content) == 0 or len(content) % record:
            raise DataError(
                f"expected {path} to hold records of {record} bytes, got {len(content)} bytes"
            )
        records = content.reshape(-1, record)
        labels = records[:, label_bytes - 1].astype(np.int64)
        if labels.max() >= classes:
            raise DataError(
                f"expected labels below {classes} in {path}, got {labels.max()}; is it {archive}?"
            )
        images = records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE)
        parts.append((name.removesuffix(".bin"), images, labels, split))
    return parts


def _by_torchvision(root: Path, name: str, archive: str) -> list[Part]:
    from torchvision import datasets  # takes more than a second: only where it is used

    parts: list[Part] = []
    for split in ("train", "test"):
        try:
            part: Any = getattr(datasets, name)(root, train=split == "train", download=False)
        except RuntimeError as error:  # a file is missing, or not the published one
            raise DataError(
                f"expected the files of {archive} as published, by their MD5, in {root}, got "
                f"others or not all of them; {_SOURCE}{archive}, unpacked"
            ) from error
        images = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
        parts.append((split, images, np.array(part.targets, np.int64), split))
    return parts


def _joined(parts: list[Part], classes: tuple[str, ...]) -> ImageSet:
    return ImageSet(
        images=np.concatenate([images for _, images, _, _ in parts]),
        labels=np.concatenate([labels for _, _, labels, _ in parts]),
        classes=list(classes),
        example_ids=[f"{name}/{i:05d}" for name, images, _, _ in parts for i in range(len(images))],
        splits=np.concatenate(
            [np.full(len(labels), SPLITS.index(split), np.int8) for _, _, labels, split in parts]
        ),
    )


CIFAR10 = Published(
    name="cifar10",
    description="32x32 photographs of ten classes",
    source="cifar-10-batches-bin/ of cifar-10-binary.tar.gz, or cifar-10-batches-py/ of "
    "cifar-10-python.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html",
    tasks=tuple((None, name) for name in CIFAR10_CLASSES),
    read=_read_cifar10,
)
CIFAR100 = Published(
    name="cifar100",
    description="32x32 photographs of 100 classes in 20 superclasses",
    source="cifar-100-binary/ of cifar-100-binary.tar.gz, or cifar-100-python/ of "
    "cifar-100-python.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html",
    tasks=tuple(("superclass", name) for name in list(SUPERCLASSES)[:10]),
    read=_read_cifar100,
)
