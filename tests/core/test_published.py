"""Published data sets, read from tiny trees in their publishers' layouts.

The judges: bytes and pictures written out here; Pillow; the numbers of CIFAR-100's superclasses as
its users know them; what the paper's Table 6 says; and a pickle that must not be opened.
"""

import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adap.core.config.data import Task
from adap.core.datasets import ImageSet
from adap.core.errors import ConfigError, DataError
from adap.core.published import PUBLISHED, load, paper_tasks
from adap.core.published.base import MissingFileError
from adap.core.published.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES, SUPERCLASSES
from tests.conftest import REPOSITORY
from tests.published import (
    SUPERCLASS_NUMBERS,
    TREES,
    bdd100k,
    celeba,
    cifar10,
    cifar100,
    class_folders,
)


def test_every_data_set_has_a_tree_here() -> None:
    assert TREES.keys() == PUBLISHED.keys()


# --- what all of them have in common --------------------------------------------------------------


@pytest.mark.parametrize("name", TREES)
def test_an_image_set_of_uint8_with_splits_comes_out(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    read = load(name, tmp_path)
    assert read.images.dtype == np.uint8
    assert read.images.shape[:2] == (len(read), 3)
    assert len(set(read.example_ids)) == len(read)
    assert read.has_split("train")
    assert read.has_split("test")
    again = load(name, tmp_path)
    np.testing.assert_array_equal(read.images, again.images)
    read.save(tmp_path / "stored")
    np.testing.assert_array_equal(ImageSet.load(tmp_path / "stored").images, read.images)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "folder"])
def test_the_tasks_of_the_paper_exist(name: str, tmp_path: Path) -> None:
    TREES[name](tmp_path)
    tasks = paper_tasks(name)
    assert len(tasks) == {"cifar10": 10, "cifar100": 10, "celeba": 2, "bdd100k": 4}[name]
    for labels, task in tasks:
        read = load(name, tmp_path, labels=labels)
        assert 0 < read.targets(task).sum() < len(read)


MISSING = {
    "cifar10": ["cifar-10-batches-bin/data_batch_3.bin"],
    "cifar100": ["cifar-100-binary/test.bin"],
    "celeba": [
        "celeba/list_attr_celeba.txt",
        "celeba/list_eval_partition.txt",
        "celeba/img_align_celeba",
        "celeba/img_align_celeba/000004.jpg",
    ],
    "bdd100k": [
        "labels/bdd100k_labels_images_val.json",
        "images/100k/val",
        "images/100k/train/train-3.jpg",
    ],
}
SOURCES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "celeba": "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    "bdd100k": "https://bdd-data.berkeley.edu",
}


@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name, files in MISSING.items() for file in files]
)
def test_a_missing_file_is_named_with_where_it_comes_from(
    name: str, file: str, tmp_path: Path
) -> None:
    TREES[name](tmp_path)
    (tmp_path / file).rename(tmp_path / "elsewhere")
    with pytest.raises(MissingFileError) as caught:
        load(name, tmp_path)
    assert str(tmp_path / file) in str(caught.value)
    is_image = file.endswith(".jpg")  # which the labels name: what is there was not whole
    assert is_image or SOURCES[name] in str(caught.value)
    assert not list(tmp_path.rglob("*.npy"))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name", SOURCES)
def test_an_empty_folder_is_told_what_it_should_hold(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=SOURCES[name].rpartition("/")[0]):
        load(name, tmp_path)
    with pytest.raises(DataError, match="it should hold"):
        load(name, tmp_path / "nowhere")


def test_what_does_not_exist_cannot_be_asked_for(tmp_path: Path) -> None:
    class_folders(tmp_path / "folder")
    celeba(tmp_path / "celeba")
    bdd100k(tmp_path / "bdd")
    with pytest.raises(ConfigError, match="among cifar10, cifar100, celeba, bdd100k, folder; got"):
        load("mnist", tmp_path)
    with pytest.raises(ConfigError, match="among Gray_Hair, Bald, Mustache; got Beard"):
        load("celeba", tmp_path / "celeba", labels="Beard")
    with pytest.raises(ConfigError, match="among weather, scene; got timeofday"):
        load("bdd100k", tmp_path / "bdd", labels="timeofday")
    with pytest.raises(ConfigError, match="from 8 to 1024 pixels, got 4"):
        load("folder", tmp_path / "folder", size=4)


# --- CIFAR ----------------------------------------------------------------------------------------


def test_cifar10_is_read_byte_for_byte(tmp_path: Path) -> None:
    pixels = cifar10(tmp_path)
    read = load("cifar10", tmp_path)
    np.testing.assert_array_equal(read.images, pixels)
    assert read.labels.tolist() == [i % 10 for i in range(24)]
    assert list(read.classes) == list(CIFAR10_CLASSES)
    assert read.in_split("train").tolist() == list(range(20))
    assert read.in_split("test").tolist() == [20, 21, 22, 23]
    assert read.example_ids[5] == "data_batch_2/00001"


def test_cifar100_has_superclasses_and_classes(tmp_path: Path) -> None:
    cifar100(tmp_path)
    coarse = load("cifar100", tmp_path)
    assert len(coarse.classes) == 20
    assert coarse.labels.tolist() == SUPERCLASS_NUMBERS * 2
    fine = load("cifar100", tmp_path, labels="class")
    assert fine.labels.tolist() == list(range(100)) * 2
    assert (CIFAR100_CLASSES[0], CIFAR100_CLASSES[99]) == ("apple", "worm")
    assert list(SUPERCLASSES)[SUPERCLASS_NUMBERS[0]] == "fruit_and_vegetables"


def test_what_is_not_cifar_is_refused(tmp_path: Path) -> None:
    cifar10(tmp_path)
    file = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="records of 3073 bytes, got 12291 bytes"):
        load("cifar10", tmp_path)
    file.write_bytes(b"\xff" + whole[1:])
    with pytest.raises(DataError, match=r"labels below 10 in .*, got 255"):
        load("cifar10", tmp_path)
    with pytest.raises(DataError, match="32 pixels, as CIFAR has, got 64"):
        load("cifar10", tmp_path, size=64)


class Bomb:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def python_version(root: Path, *, bomb: Path | None = None) -> dict[str, bytes]:
    """The files of CIFAR-10's Python version, two images each."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    files = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        content = {"data": random.integers(0, 256, (2, 3072), np.uint8), "labels": [3, 7]}
        files[name] = pickle.dumps(content if bomb is None else Bomb(bomb))
    files["batches.meta"] = pickle.dumps({"label_names": list(CIFAR10_CLASSES)})
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def test_a_pickle_that_is_not_the_published_one_is_never_opened(tmp_path: Path) -> None:
    python_version(tmp_path, bomb=tmp_path / "exploded")
    with pytest.raises(DataError, match=r"by their MD5.*cifar-10-python\.tar\.gz"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_the_python_version_is_read_where_its_files_are_the_published_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    files = python_version(tmp_path)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(
        CIFAR10, "train_list", [[f"data_batch_{i}", md5[f"data_batch_{i}"]] for i in range(1, 6)]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    read = load("cifar10", tmp_path)
    assert read.labels.tolist() == [3, 7] * 6
    first = pickle.loads(files["data_batch_1"])["data"].reshape(2, 3, 32, 32)
    np.testing.assert_array_equal(read.images[:2], first)


# --- CelebA ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folders", [("celeba", "celeba", "celeba"), ("Img", "Anno", "Eval"), ("", "", "")]
)
def test_celeba_is_found_where_publishers_and_torchvision_put_it(
    folders: tuple[str, str, str], tmp_path: Path
) -> None:
    celeba(tmp_path, folders=folders)
    grey = load("celeba", tmp_path)
    assert list(grey.classes) == ["other", "Gray_Hair"]
    assert grey.labels.tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 0]
    assert load("celeba", tmp_path, labels="Mustache").labels.tolist() == [0, 1] * 4 + [0]
    for number, split in enumerate(("train", "validation", "test")):
        assert grey.in_split(split).tolist() == [3 * number, 3 * number + 1, 3 * number + 2]
    assert grey.example_ids[0] == "000001.jpg"


def test_a_face_is_cut_to_its_middle_square_and_resized(tmp_path: Path) -> None:
    celeba(tmp_path)
    read = load("celeba", tmp_path, size=32)
    assert read.images.shape == (9, 3, 32, 32)
    # the white band ends 5 rows above the square: JPEG blocks of 16 bleed no further
    assert abs(int(read.images[4].mean()) - 40) <= 2
    assert load("celeba", tmp_path).images.shape == (9, 3, 64, 64)


def test_a_partition_of_other_images_is_refused(tmp_path: Path) -> None:
    celeba(tmp_path)
    file = tmp_path / "celeba" / "list_eval_partition.txt"
    file.write_text(file.read_text().replace("000002.jpg", "000099.jpg"))
    with pytest.raises(DataError, match="9 and 9, of which 8 are the same"):
        load("celeba", tmp_path)


# --- BDD100K --------------------------------------------------------------------------------------


def test_bdd100k_is_labelled_by_weather_or_scene(tmp_path: Path) -> None:
    bdd100k(tmp_path)
    weather = load("bdd100k", tmp_path)
    assert [weather.classes[label] for label in weather.labels] == [
        *("rainy", "partly cloudy", "clear", "clear", "snowy", "undefined"),
        *("rainy", "partly cloudy"),
    ]
    scene = load("bdd100k", tmp_path, labels="scene")
    assert scene.targets(Task(positive=["tunnel"])).tolist() == [1, 0, 0, 0, 0, 0, 1, 0]
    assert weather.in_split("test").tolist() == [6, 7]
    assert not weather.has_split("validation")
    assert "train/unlabelled.jpg" not in weather.example_ids
    for i in range(6):
        colour = weather.images[i].reshape(3, -1).mean(axis=1)
        assert np.abs(colour - [40 * i, 255 - 40 * i, 128]).max() < 3


def test_large_images_are_decoded_once_and_mapped_from_then_on(tmp_path: Path) -> None:
    bdd100k(tmp_path / "bdd")
    cache = tmp_path / "cache"
    told: list[tuple[int, int]] = []

    def on_progress(done: int, total: int) -> None:
        told.append((done, total))

    def read(**options: Any) -> ImageSet:
        return load("bdd100k", tmp_path / "bdd", cache=cache, on_progress=on_progress, **options)

    first = read()
    assert told == [(i, 8) for i in range(1, 9)]
    assert isinstance(first.images, np.memmap)
    assert not first.images.flags.writeable
    read(labels="scene")
    assert len(told) == 8, "another labelling of the same images decodes nothing"
    assert not (tmp_path / "bdd" / ".adap").exists()

    read(size=32)
    assert len(told) == 16, "another size is another cache"
    changed = tmp_path / "bdd" / "images" / "100k" / "train" / "train-0.jpg"
    Image.new("RGB", (1280, 720), (255, 255, 255)).save(changed)
    assert read().images[0].min() > 250, "a file that changed is read again"


def test_a_broken_image_is_named_and_leaves_no_cache(tmp_path: Path) -> None:
    bdd100k(tmp_path)
    broken = tmp_path / "images" / "100k" / "train" / "train-3.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=r"expected an image in .*train-3\.jpg"):
        load("bdd100k", tmp_path)
    assert not list(tmp_path.rglob("*.npy"))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name", ["celeba", "bdd100k"])
def test_a_cache_that_cannot_be_written_is_refused_and_a_whole_one_is_only_read(
    name: str, tmp_path: Path
) -> None:
    TREES[name](tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected a cache"):
        load(name, tmp_path, cache=tmp_path / "file" / "cache")
    whole = load(name, tmp_path, cache=tmp_path / "cache")
    (tmp_path / "cache" / "lock").unlink()
    (tmp_path / "cache" / "lock").mkdir()  # nobody could write here any more
    read = load(name, tmp_path, cache=tmp_path / "cache")
    np.testing.assert_array_equal(read.images, whole.images)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[{", "expected a list of frames"),
        ('[{"name": "a.jpg"}]', "expected a list of frames"),
        ('[{"name": "../a.jpg", "attributes": {}}]', "expected the name of a file"),
        ('[{"name": "a.jpg", "attributes": {"weather": "hot"}}]', "got hot"),
    ],
)
def test_labels_that_are_not_as_published_are_refused(
    content: str, said: str, tmp_path: Path
) -> None:
    bdd100k(tmp_path)
    (tmp_path / "labels" / "bdd100k_labels_images_train.json").write_text(content)
    with pytest.raises(DataError, match=said):
        load("bdd100k", tmp_path)


# --- class folders --------------------------------------------------------------------------------


def test_folders_and_a_zip_of_them_are_read_alike(tmp_path: Path) -> None:
    class_folders(tmp_path / "pets")
    (tmp_path / "pets" / "README.txt").write_text("not an image")
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in (tmp_path / "pets").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "pets"))
    read, zipped = load("folder", tmp_path / "pets"), load("folder", tmp_path / "pets.zip")
    assert list(read.classes) == ["cat", "dog"]
    assert read.images.shape == (12, 3, 10, 12)
    assert read.images[read.labels == 0, 0].tolist() == np.full((6, 10, 12), 200).tolist()
    assert read.example_ids == zipped.example_ids
    np.testing.assert_array_equal(read.images, zipped.images)
    assert load("folder", tmp_path / "pets", size=16).images.shape == (12, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("train/cat/odd.png", (5, 5), "images of one size"),
        ("train/stray.png", (12, 10), "images in class folders"),
    ],
)
def test_what_does_not_fit_among_the_folders_is_refused(
    name: str, size: tuple[int, int], said: str, tmp_path: Path
) -> None:
    class_folders(tmp_path)
    Image.new("RGB", size).save(tmp_path / name)
    with pytest.raises(DataError, match=said):
        load("folder", tmp_path)


@pytest.mark.slow
def test_real_photographs_are_read_as_pillow_reads_them(shared: Path) -> None:
    """Needs the CIFAR-10 images that lie beside a checkout; skipped elsewhere."""
    path = shared / "data" / "cifar10-test.zip"
    read = load("folder", path)
    assert sorted(read.classes) == sorted(CIFAR10_CLASSES)
    assert read.images.shape[1:] == (3, 32, 32)
    counts = np.bincount(read.labels)
    assert counts.min() == counts.max() > 100
    with (
        zipfile.ZipFile(path) as archive,
        Image.open(io.BytesIO(archive.read(read.example_ids[-1]))) as image,
    ):
        np.testing.assert_array_equal(read.images[-1], np.asarray(image).transpose(2, 0, 1))


# --- packing --------------------------------------------------------------------------------------


def pack(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "adap.core.published", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_a_packed_data_set_is_one_that_the_service_takes(tmp_path: Path) -> None:
    from adap.worker.intake import IntakeLimits, read_dataset

    cifar100(tmp_path)
    target = tmp_path / "packed.npz"
    run = pack("cifar100", tmp_path, "-o", target, "--validation", 0.2, "--seed", 3)
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{target}: 200 images\n"
    taken = read_dataset(target, limits=IntakeLimits(), on_progress=lambda *_: None)
    ours = load("cifar100", tmp_path)
    np.testing.assert_array_equal(taken.images, ours.images)
    assert [taken.classes[i] for i in taken.labels] == [ours.classes[i] for i in ours.labels]
    assert len(taken.in_split("validation")) == 20  # one of the five images of each superclass
    assert len(taken.in_split("test")) == 100


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "expected .*data_batch_1.bin, got no such file"),
        (("--positive", "cat"), "expected --positive and --prevalence together"),
    ],
)
def test_packing_says_what_is_wrong_and_leaves_nothing(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    target = tmp_path / "packed.npz"
    run = pack("cifar10", tmp_path, "-o", target, *arguments)
    assert run.returncode != 0
    assert "Traceback" not in run.stderr
    assert re.search(said, run.stderr)
    assert os.listdir(tmp_path) == []
