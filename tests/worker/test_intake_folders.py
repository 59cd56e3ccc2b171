"""Reading of folders: splits in any spelling and place, or a refusal with both readings.

The judge is what the archives were made of: each image's folder names, written out here.
"""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adap.core.config.base import SPLITS
from adap.core.config.data import DatasetOptions, Levels
from adap.core.datasets import ImageSet
from adap.worker.intake import IntakeLimits, Rejected, read_dataset
from adap.worker.intake.notes import Notes
from tests.worker.archives import encode, metadata, pack, png


def read(
    members: dict[str, bytes], folder: Path, notes: Notes | None = None, **options: object
) -> ImageSet:
    path = folder / "upload"
    path.write_bytes(pack(members))
    return read_dataset(
        path,
        limits=IntakeLimits(),
        on_progress=lambda done, total: None,
        options=DatasetOptions.model_validate(options),
        notes=notes,
    )


def reasons(members: dict[str, bytes], folder: Path, **options: object) -> list[str]:
    with pytest.raises(Rejected) as caught:
        read(members, folder, **options)
    return caught.value.reasons


def filled(*folders: str, each: int = 2) -> dict[str, bytes]:
    """Images, all different, in each of these folders."""
    return {
        f"{folder}/{i}.png": png(each * k + i)
        for k, folder in enumerate(folders)
        for i in range(each)
    }


def held(image_set: ImageSet) -> Counter[tuple[str, str | None]]:
    """How many images of which class in which split."""
    splits = image_set.splits
    return Counter(
        (image_set.label_of(i), None if splits is None else SPLITS[splits[i]])
        for i in range(len(image_set))
    )


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("training_set/training_set", "test_set/test_set", "test"),
        ("seg_train/seg_train", "seg_test/seg_test", "test"),
        ("train2017", "val2017", "validation"),
        ("Training_Set", "Validation-Set", "validation"),
        ("TrainSet", "DevSet", "validation"),
        ("train/images", "holdout/images", "test"),
        ("trainval", "test", "test"),
        ("archive/Train", "archive/Eval", "test"),
        ("1_training", "2_testing", "test"),
    ],
)
def test_top_folders_that_name_splits_are_splits_in_any_spelling(
    train: str, other: str, split: str, tmp_path: Path
) -> None:
    folders = [f"{part}/{name}" for part in (train, other) for name in ("cats", "dogs")]
    notes = Notes()
    made = held(read(filled(*folders), tmp_path, notes))
    assert made == {(name, part): 2 for name in ("cats", "dogs") for part in ("train", split)}
    assert "2 splits from folders" in notes.reading().summary


def test_eval_is_validation_where_something_else_is_the_test_split(tmp_path: Path) -> None:
    folders = [f"{part}/{name}" for part in ("train", "eval", "test") for name in "ab"]
    assert {split for _, split in held(read(filled(*folders), tmp_path))} == set(SPLITS)


@pytest.mark.parametrize("inner", [("train", "test"), ("Training", "Testing")])
def test_splits_below_the_classes_are_splits(inner: tuple[str, str], tmp_path: Path) -> None:
    folders = [f"{name}/{part}" for name in ("cats", "dogs") for part in inner]
    made = held(read(filled(*folders), tmp_path))
    assert made == {(name, part): 2 for name in ("cats", "dogs") for part in ("train", "test")}


AMBIGUOUS = {
    "splits beside something else": (["train/cat", "train/dog", "more/cat"], "split folders"),
    "splits with no class in common": (["test_tube/a", "train_station/b"], "split/class or class"),
    "splits inside some classes": (["cat/train", "cat/odd", "dog/train"], "class/split or class"),
    "folders that recur": (
        ["north/cat", "north/dog", "south/cat", "south/dog"],
        "class or -/class or group/class",
    ),
    "splits alone": (["train_set", "test_set"], "--folders class"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_could_be_splits_or_classes_is_refused_with_the_option_that_chooses(
    case: str, tmp_path: Path
) -> None:
    folders, told = AMBIGUOUS[case]
    (reason,) = reasons(filled(*folders), tmp_path)
    assert told in reason
    assert "`folders`" in reason
    chosen = held(read(filled(*folders), tmp_path, folders="class"))
    assert chosen == Counter((folder.split("/")[0], None) for folder in folders for _ in range(2))


SITES = ("north", "south")
DEEPER = {  # folders, readings, the one that is meant
    "sites above splits": (
        [f"{site}/train/{name}" for site in SITES for name in ("cat", "dog")],
        "class/split or -/split/class or group/split/class",
        "-/split/class",
    ),
    "sites inside splits": (
        [f"train/{site}/{name}" for site in SITES for name in ("cat", "dog")],
        "split/class or split/-/class or split/group/class",
        "split/-/class",
    ),
    "sites with a folder in each": (
        [f"{site}/images/{name}" for site in SITES for name in ("cat", "dog")],
        "class or -/-/class or group/-/class",
        "-/-/class",
    ),
    "splits in a folder of each class": (
        [f"{name}/images/{split}" for split in ("train", "test") for name in ("cat", "dog")],
        "class/-/split or class",
        "class/-/split",
    ),
}


@pytest.mark.parametrize("case", DEEPER)
def test_classes_and_splits_that_lie_deeper_are_not_passed_over_in_silence(
    case: str, tmp_path: Path
) -> None:
    folders, told, meant = DEEPER[case]
    (reason,) = reasons(filled(*folders), tmp_path)
    assert f"--folders {told}" in reason
    made = held(read(filled(*folders), tmp_path, folders=meant))
    levels = meant.split("/")
    split = levels.index("split") if "split" in levels else None
    parts = [folder.split("/") for folder in folders]
    assert made == Counter(
        (part[levels.index("class")], None if split is None else part[split])
        for part in parts
        for _ in range(2)
    )


def test_a_split_whose_classes_no_other_has_is_refused_as_one_without_labels(
    tmp_path: Path,
) -> None:
    folders = ["train/cat", "train/dog", "val/cat", "val/dog", "test/unknown"]
    (reason,) = reasons(filled(*folders), tmp_path)
    assert "'unknown'" in reason
    assert "leave 'test' out" in reason
    folders[-1:] = ["test/emu", "test/kiwi"]
    (reason,) = reasons(filled(*folders), tmp_path)
    assert "--folders split/class" in reason
    made = held(read(filled(*folders), tmp_path, folders="split/class"))
    assert made["emu", "test"] == made["kiwi", "test"] == made["cat", "validation"] == 2


def test_what_is_joined_in_a_split_or_a_class_is_told(tmp_path: Path) -> None:
    tops = ("train", "test", "test_blurred")
    notes = Notes()
    folders = [f"{top}/{name}" for top in tops for name in ("cat", "dog")]
    made = held(read(filled(*folders, "train/cat/more"), tmp_path, notes))
    assert made["cat", "test"] == made["cat", "train"] == 4
    told = {fact.code: fact.message for fact in notes.facts}
    assert "'test', 'test_blurred' are one test split" in told["joined_splits"]
    assert "'more' and the images beside them are all 'cat'" in told["folders_below_classes"]


def test_declared_folders_are_read_as_declared(tmp_path: Path) -> None:
    folders = [f"{site}/{name}" for site in ("north", "south") for name in ("cat", "dog")]
    of_class = read(filled(*folders), tmp_path, folders="-/class")
    assert held(of_class) == {("cat", None): 4, ("dog", None): 4}
    grouped = read(filled(*folders), tmp_path, folders="group/class")
    assert grouped.groups == ["north"] * 4 + ["south"] * 4
    clustered = read(filled(*folders), tmp_path, folders="cluster/class")
    assert clustered.clusters == ["north"] * 4 + ["south"] * 4
    assert "named like a split" in reasons(filled(*folders), tmp_path, folders="split/class")[0]
    clustered.save(tmp_path / "stored")
    assert ImageSet.load(tmp_path / "stored").clusters == clustered.clusters


def test_folders_of_a_table_are_splits_where_all_are_and_no_column_is(tmp_path: Path) -> None:
    images = filled("train", "test", each=4)
    rows = [{"file_name": name, "label": "ab"[i % 2]} for i, name in enumerate(images)]
    members = {**images, "metadata.csv": metadata(rows)}
    made = held(read(members, tmp_path))
    assert made == {(name, split): 2 for name in "ab" for split in ("train", "test")}
    assert read(members, tmp_path, folders="-").splits is None
    mixed = [{**row, "file_name": row["file_name"].replace("test", "more")} for row in rows]
    renamed = {name.replace("test", "more"): data for name, data in images.items()}
    assert "no column `split`" in reasons({**renamed, "metadata.csv": metadata(mixed)}, tmp_path)[0]


def test_files_that_are_no_images_name_no_class_and_are_told_of(tmp_path: Path) -> None:
    others = {"annotations/instances.json": b"{}", "labels.csv": b"a,b", "cat/.DS_Store": b"?"}
    notes = Notes()
    made = read({**filled("street", "field"), **others}, tmp_path, notes)
    assert list(made.classes) == ["field", "street"]
    (fact,) = (fact for fact in notes.facts if fact.code == "other_files")
    assert "'annotations/instances.json'" in fact.message
    assert fact.figures == {"files": 2}
    assert "ignored: 'cat/.DS_Store'" in notes.steps


def test_classes_that_differ_in_case_alone_are_told_of(tmp_path: Path) -> None:
    notes = Notes()
    names = ["Cat", "cat", "dog", "sea lion", "sea_lion", "a-1", "a1", " owl", "owl", "-1", "1"]
    assert len(read(filled(*names), tmp_path, notes).classes) == 11
    told = [fact.message for fact in notes.reading().cautions if fact.code == "case_variants"]
    assert len(told) == 4
    assert not any("'-1'" in message for message in told)


def test_images_of_a_split_without_class_folders_are_refused_once(tmp_path: Path) -> None:
    flat = {f"val/ILSVRC2012_val_{i}.JPEG": png(i) for i in range(4)}  # as ImageNet's
    (reason,) = reasons({**filled("train/cat", "train/dog"), **flat}, tmp_path)
    assert "got 4 images outside" in reason
    assert "leave the folder 'val' out" in reason


def grey16(low: int, high: int) -> bytes:
    values = np.random.default_rng(low + high).integers(low, high + 1, (16, 16), np.uint16)
    values[0, :2] = low, high
    return encode(Image.fromarray(values))


def test_a_narrow_range_of_16_bits_is_refused_with_the_levels_that_it_has(tmp_path: Path) -> None:
    members = {f"{'ab'[i % 2]}/{i}.png": grey16(100 * (i == 0), 1500) for i in range(4)}
    (reason,) = reasons(members, tmp_path)
    assert "0 to 1,500 of 65,535: only 6 of 256 grey levels" in reason
    assert "--levels 0:1500" in reason
    made = read(members, tmp_path, levels={"low": 0, "high": 1500})
    with Image.open(io.BytesIO(members["a/0.png"])) as image:
        values = np.asarray(image).astype(float)
    assert np.array_equal(made.images[0, 0], np.rint(values / 1500 * 255))


def test_values_beyond_the_declared_levels_are_a_caution(tmp_path: Path) -> None:
    members = {f"{'ab'[i % 2]}/{i}.png": grey16(0, 60_000) for i in range(4)}
    for levels, level in ((None, "info"), (Levels(low=0, high=65535), "info")):
        notes = Notes()
        read(members, tmp_path, notes, levels=levels)
        assert [fact.level for fact in notes.facts] == [level]
    notes = Notes()
    made = read(members, tmp_path, notes, levels={"low": 1000, "high": 4095})
    assert notes.facts[0].level == "caution"
    assert notes.facts[0].figures == {"images": 4, "low": 0, "high": 60_000}
    assert (made.images.min(), made.images.max()) == (0, 255)


@pytest.mark.parametrize(
    ("values", "code"), [((3, 4, 5, 9), "narrow_range"), ((0, 255), "few_levels")]
)
def test_pixels_of_few_values_are_a_caution(
    values: tuple[int, ...], code: str, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    members = {
        f"{'ab'[i % 2]}/{i}.png": encode(random.choice(values, (8, 8)).astype(np.uint8))
        for i in range(4)
    }
    notes = Notes()
    read(members, tmp_path, notes)
    (fact,) = notes.reading().cautions
    assert fact.code == code
    assert fact.figures == {"low": values[0], "high": values[-1], "levels": len(values)}


def test_a_folder_without_files_is_no_class_and_told_of(tmp_path: Path) -> None:
    notes = Notes()
    assert list(read({**filled("cat", "dog"), "emu/": b""}, tmp_path, notes).classes) == [
        "cat",
        "dog",
    ]
    assert [(fact.code, fact.figures) for fact in notes.facts] == [
        ("empty_folders", {"folders": 1})
    ]


MASKS = {
    "beside their images": ["a/{}.png", "a/{}_mask.png", "b/{}9.png", "b/{}9_mask_1.png"],
    "with the class in the name": ["a/a ({}).png", "a/a ({})_Mask.png", "b/b ({}).png"],
    "in folders beside": ["images/{}.png", "masks/{}.png"],
    "in folders of splits": ["train/images/{}.png", "train/masks/{}.png"],
    "with splits inside": ["images/train/{}.png", "annotations/train/{}.png"],
    "with splits in the name": ["train_images/{}.png", "train_masks/{}.png"],
    "of Pascal VOC": ["VOC/JPEGImages/{}.jpg", "VOC/SegmentationClass/{}.png"],
    "below classes": ["a/images/{}.png", "a/labels/{}_label.png", "b/images/{}.png"],
    "in a folder below the images": ["a/{}.png", "a/masks/{}.png", "b/{}.png"],
    "with classes inside": ["images/a/{}.png", "images/b/{}.png", "masks/a/{}.png"],
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_are_no_examples_and_are_refused_with_the_way_out(case: str, tmp_path: Path) -> None:
    names = [name.format(i) for name in MASKS[case] for i in (1, 2)]
    members = {name: png(i) for i, name in enumerate(names)}
    (said,) = reasons(members, tmp_path)
    assert "look like segmentation masks" in said
    assert "metadata.csv" in said
    table = metadata(
        [{"file_name": name, "label": "ab"[i % 2], "split": "test"} for i, name in enumerate(names)]
    )
    assert len(read(members | {"metadata.csv": table}, tmp_path)) == len(names)


@pytest.mark.parametrize(
    "folders",
    [("mask", "no_mask"), ("with_mask", "without_mask"), ("labels", "logos"), ("cat", "cat_seg")],
)
def test_a_class_called_like_masks_is_a_class(folders: tuple[str, str], tmp_path: Path) -> None:
    assert list(read(filled(*folders), tmp_path).classes) == sorted(folders)


def test_a_folder_that_repeats_the_classes_beside_it_is_refused(tmp_path: Path) -> None:
    members = filled("yes", "no", "brain/yes", "brain/no")
    (said,) = reasons(members, tmp_path)
    assert "'no', 'yes' inside 'brain' and beside it" in said
    assert list(read(members, tmp_path, folders="class").classes) == ["brain", "no", "yes"]
    inside = {f"train/{name}": content for name, content in members.items()}
    assert "inside 'brain'" in reasons(inside, tmp_path)[0]


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (("trian", "tset"), "'trian' like train and 'tset' like test"),  # once classes in silence
        (("train", "tets"), "'tets' like test"),
        (("trian/cat", "trian/dog", "validaton/cat", "validaton/dog"), "'validaton' like"),
        (("seg_trian/cat", "seg_trian/dog", "seg_tst/cat", "seg_tst/dog"), "'seg_tst' like test"),
        (("train/cat", "train/dog", "vaild/cat", "vaild/dog"), "'vaild' like validation"),
    ],
)
def test_misspelt_splits_are_no_classes_in_silence(
    folders: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    tops = sorted({folder.partition("/")[0] for folder in folders})
    (reason,) = reasons(filled(*folders), tmp_path)
    assert told in reason
    assert "send `folders` (--folders class)" in reason
    if "/" not in folders[0]:
        classes = held(read(filled(*folders), tmp_path, folders="class"))
        assert classes == {(top, None): 2 for top in tops}


@pytest.mark.parametrize(
    "names",
    [
        ("rain", "snow"),
        ("nest", "vest"),
        ("brain", "lung", "test"),
        ("rain", "west"),
        ("grain", "pest"),
        ("train", "rest"),
        ("rain_forest", "west_coast"),
        ("grain_rust", "pest_damage"),
        ("trein_station", "tast_buds"),  # no words, but not alone
    ],
)
def test_words_that_are_near_a_split_are_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    assert set(read(filled(*names), tmp_path).classes) == set(names)
