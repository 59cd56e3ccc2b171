"""Honest data sets, and honest mistakes. Judges: lossless images made here, torchvision, numpy."""

import io
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score
from torchvision.datasets import ImageFolder

from adap.core.config.base import SPLITS
from adap.core.datasets import ImageSet
from adap.worker.intake import IntakeLimits, Rejected, read_dataset, summarise
from tests.worker.archives import (
    STORED,
    encode,
    grouped,
    metadata,
    pack,
    pixels,
    png,
    two_classes,
)


def read(content: bytes, folder: Path, *, limits: IntakeLimits | None = None) -> ImageSet:
    path = folder / "upload"
    path.write_bytes(content)
    return read_dataset(path, limits=limits or IntakeLimits(), on_progress=lambda done, total: None)


def reasons(content: bytes, folder: Path, *, limits: IntakeLimits | None = None) -> list[str]:
    with pytest.raises(Rejected) as caught:
        read(content, folder, limits=limits)
    assert all(reason.isprintable() and len(reason) < 600 for reason in caught.value.reasons)
    return caught.value.reasons


def npz(*, packed: bool = False, **arrays: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


# --- zip of class folders -------------------------------------------------------------------------


def test_class_folders_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    members = {
        f"{name}/{folder}{number}.png": png(seed * 10 + number)
        for seed, name in enumerate(["zebra", "ant", "Bee"])
        for number in range(3)
        for folder in ("", "more/")
    }
    content = pack(members)
    image_set = read(content, tmp_path)

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path / "folders")
    judge = ImageFolder(str(tmp_path / "folders"))
    assert list(image_set.classes) == judge.classes
    theirs = {
        str(Path(path).relative_to(tmp_path / "folders")): (np.asarray(image), label)
        for (path, _), (image, label) in zip(judge.samples, judge, strict=True)
    }
    assert set(image_set.example_ids) == set(theirs)
    for i, example_id in enumerate(image_set.example_ids):
        image, label = theirs[example_id]
        assert np.array_equal(image_set.images[i], image.transpose(2, 0, 1))
        assert image_set.labels[i] == label
    assert image_set.splits is None
    assert image_set.images.dtype == np.uint8


def test_the_order_of_the_archive_does_not_matter(tmp_path: Path) -> None:
    members = two_classes()
    first = read(pack(members), tmp_path)
    second = read(pack(dict(reversed(members.items())), method=STORED), tmp_path)
    assert first.example_ids == second.example_ids == sorted(members)
    assert np.array_equal(first.images, second.images)


@pytest.mark.parametrize("root", ["", "data/", "outer/inner/"])
def test_folders_that_only_wrap_are_left_out_of_the_names(root: str, tmp_path: Path) -> None:
    image_set = read(pack({root + name: data for name, data in two_classes().items()}), tmp_path)
    assert list(image_set.classes) == ["cat", "dog"]
    assert image_set.example_ids[0] == "cat/1.png"


@pytest.mark.parametrize("root", ["", "data/"])
@pytest.mark.parametrize(
    ("validation", "test"), [("validation", "test"), ("val", "Test"), ("valid", "testing")]
)
def test_split_folders_are_read_under_their_usual_names(
    root: str, validation: str, test: str, tmp_path: Path
) -> None:
    members = {
        f"{root}{split}/{name}": data
        for split in ("train", validation, test)
        for name, data in two_classes().items()
    }
    image_set = read(pack(members), tmp_path)
    assert list(image_set.classes) == ["cat", "dog"]
    for split, folder in zip(SPLITS, ("train", validation, test), strict=True):
        ids = {image_set.example_ids[i] for i in image_set.in_split(split)}
        assert ids == {f"{folder}/{name}" for name in two_classes()}


def test_one_split_alone_is_a_split_and_not_a_wrapper(tmp_path: Path) -> None:
    image_set = read(pack({f"test/{k}": v for k, v in two_classes().items()}), tmp_path)
    assert image_set.has_split("test")
    assert not image_set.has_split("train")


def test_a_class_may_be_named_like_a_split(tmp_path: Path) -> None:
    members = {f"{name}/{i}.png": png(i) for name in ("train", "car") for i in range(2)}
    image_set = read(pack(members), tmp_path)
    assert list(image_set.classes) == ["car", "train"]
    assert image_set.splits is None


def test_what_operating_systems_and_people_leave_behind_is_skipped(tmp_path: Path) -> None:
    left = dict.fromkeys(
        ["__MACOSX/cat/._1.png", "cat/.DS_Store", "dog/Thumbs.db", ".git/config", "README.md"],
        b"not an image",
    )
    left["cat/Icon\r"] = b""  # of a folder on a Mac
    thumbnails = [
        "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.png",
        "$RECYCLE.BIN/$R1.png",
        "#recycle/1.png",
    ]
    left |= {name: png(20 + i) for i, name in enumerate(thumbnails)}
    image_set = read(pack({**two_classes(), **left, "cat/": b""}), tmp_path)
    assert image_set.example_ids == sorted(two_classes())


def test_names_from_a_mac_are_those_that_a_request_will_spell(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    members = {f"{decomposed}/{i}.png": png(i) for i in range(2)}
    image_set = read(pack({**members, **{f"tea/{i}.png": png(i) for i in range(2)}}), tmp_path)
    assert list(image_set.classes) == [unicodedata.normalize("NFC", "café"), "tea"]


# --- metadata.csv ---------------------------------------------------------------------------------

LABELS = "file_name,label\na.png,yes\nb.png,no\nc.png,no\nsub/d.png,yes\n"
IMAGES = {"a.png": png(1), "b.png": png(2), "c.png": png(3), "sub/d.png": png(4)}


@pytest.mark.parametrize("root", ["", "data/"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_table_of_labels_decides_in_place_of_folders(
    root: str, mark: str, tmp_path: Path
) -> None:
    members = {root + name: data for name, data in IMAGES.items()}
    image_set = read(pack({**members, f"{root}metadata.csv": (mark + LABELS).encode()}), tmp_path)
    assert image_set.example_ids == ["a.png", "b.png", "c.png", "sub/d.png"]
    assert [image_set.classes[i] for i in image_set.labels] == ["yes", "no", "no", "yes"]
    assert np.array_equal(image_set.images[3], pixels(4).transpose(2, 0, 1))


def test_a_table_may_declare_splits_and_quote_names(tmp_path: Path) -> None:
    table = (
        'file_name,label,split\r\n"a.png","yes, really",train\r\nb.png,no,train\r\n'
        'c.png,no,test\r\nsub/d.png,"yes, really",test\r\n\r\n'
    )
    image_set = read(pack({**IMAGES, "metadata.csv": table.encode()}), tmp_path)
    assert list(image_set.classes) == ["no", "yes, really"]
    assert image_set.in_split("train").tolist() == [0, 1]
    assert image_set.in_split("test").tolist() == [2, 3]


@pytest.mark.parametrize(
    "columns",
    [
        "file_name,label,group",
        "group,label,split,file_name",
        "label,file_name",
        "split,file_name,label",
    ],
)
def test_a_table_has_its_columns_in_any_order(columns: str, tmp_path: Path) -> None:
    told = {"label": "cat dog dog cat", "split": "train train test test", "group": "é é ø,1 ø,1"}
    values = {"file_name": list(IMAGES)} | {name: text.split() for name, text in told.items()}
    rows = [{name: values[name][i] for name in columns.split(",")} for i in range(4)]
    image_set = read(pack({**IMAGES, "metadata.csv": metadata(rows)}), tmp_path)
    assert image_set.example_ids == list(IMAGES)
    assert [image_set.classes[i] for i in image_set.labels] == values["label"]
    assert (image_set.splits is not None) == ("split" in columns)
    if image_set.splits is not None:
        assert [SPLITS[i] for i in image_set.splits] == values["split"]
    assert image_set.group_names(np.arange(4)) == (values["group"] if "group" in columns else None)


def test_groups_follow_their_images_and_not_the_lines(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    table = f"file_name,label,group\nsub/d.png,1,four\nc.png,0, three \nb.png,0,{decomposed}\n"
    content = pack({**IMAGES, "metadata.csv": (table + "a.png,1,one\n").encode()})
    image_set = read(content, tmp_path)
    assert image_set.example_ids == ["a.png", "b.png", "c.png", "sub/d.png"]
    assert image_set.groups == ["one", unicodedata.normalize("NFC", "café"), "three", "four"]


@pytest.mark.parametrize("count", [1_000, 1_001])
def test_a_column_of_ids_is_not_one_of_groups(count: int, tmp_path: Path) -> None:
    names = np.array([f"patient {i}" for i in range(count)])
    images = np.zeros((count, 2, 2), np.uint8)
    rows = [
        {"file_name": f"{i}.png", "label": "ab"[i % 2], "group": name}
        for i, name in enumerate(names.tolist())
    ]
    members = {row["file_name"]: png(1) for row in rows}
    for content in (
        npz(images=images, labels=np.arange(count) % 2, groups=names),
        pack({**members, "metadata.csv": metadata(rows)}),
    ):
        if count == 1_000:
            assert read(content, tmp_path).groups is not None
        else:
            (reason,) = reasons(content, tmp_path)
            assert "expected at most 1000 different groups, got 1001" in reason


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (LABELS + "e.png,no\n", ["line 6: expected the name of an image, got 'e.png'"]),
        (
            LABELS + "a.png,no\n",
            ["of the same image, the first metadata.csv, line 6, for 'a.png': keep one"],
        ),
        (LABELS.replace("c.png,no\n", ""), ["'c.png': expected a line with its label"]),
        (
            LABELS.replace("c.png,no", "c.png, "),
            ["line 4: expected a label, got none: give it one, or leave the line"],
        ),
        (LABELS.replace("c.png,no", "c.png"), ["line 4: expected 2 values, got 1", "'c.png'"]),
        (LABELS.replace("c.png,no", "c.png,no,1"), ["line 4: expected 2 values", "'c.png'"]),
        (LABELS.replace("label", "word"), ["got 'file_name, word': name yours with"]),
        (LABELS.replace("label", "label,group"), ["line 2: expected 3 values, got 2"]),
        (LABELS.replace("label", "label,site"), ["line 2: expected 3 values, got 2"]),
        (LABELS.replace("label", "label,label"), ["got 'file_name,label,label'"]),
        (LABELS.replace("label", "split"), ["one column label or labels, got 'file_name, split'"]),
        (
            LABELS.replace("\n", ",here\n")
            .replace("label,here", "label,group", 1)
            .replace("b.png,no,here", "b.png,no, ")
            .replace("c.png,no,here", "c.png,no," + "g" * 201),
            [
                "line 3: expected a group of 1 to 200 printable characters, got ''",
                "line 4: expected a group of 1 to 200 printable characters, got 'ggg",
            ],
        ),
        (LABELS.replace("c.png,no", 'c.png,"no'), ["expected CSV"]),
        ("", ["expected lines with file_name and label, got none"]),
        (
            "file_name,label,split\n" + LABELS.split("\n", 1)[1].replace("\n", ",hold-out\n"),
            ["expected a split among train, validation, test, got 'hold-out'"] * 4,
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_line(
    table: str, expected: list[str], tmp_path: Path
) -> None:
    got = reasons(pack({**IMAGES, "metadata.csv": table.encode()}), tmp_path)
    assert len(got) >= len(expected)
    for reason, part in zip(got, expected, strict=False):
        assert part in reason


def test_a_table_must_be_utf8_and_there_must_be_one(tmp_path: Path) -> None:
    latin = LABELS.replace("yes", "é").encode("latin-1")
    assert "expected UTF-8" in reasons(pack({**IMAGES, "metadata.csv": latin}), tmp_path)[0]
    both = {"metadata.csv": b"", "test/metadata.csv": b"", **IMAGES}
    assert "expected one metadata.csv" in reasons(pack(both), tmp_path)[0]


# --- pixels ---------------------------------------------------------------------------------------

GREY = pixels(5, channels=1)
COLOUR = pixels(6)


def of_images(*contents: bytes, folder: Path) -> NDArray[np.uint8]:
    """(N, C, H, W) of these files, in this order."""
    members = {f"{'ab'[i % 2]}/{i}": content for i, content in enumerate(contents)}
    image_set = read(pack(members), folder)
    order = np.argsort([int(example_id[2:]) for example_id in image_set.example_ids])
    return image_set.images[order]


OPAQUE = np.dstack([COLOUR, np.full(GREY.shape, 255, np.uint8)])

EXACT = {
    "PNG": (encode(COLOUR), COLOUR),
    "WebP": (encode(COLOUR, "WEBP", lossless=True), COLOUR),
    "PNG with an alpha that does nothing": (encode(OPAQUE), COLOUR),
    "PNG with a palette": (
        encode(Image.fromarray(COLOUR).quantize(64)),
        np.asarray(Image.fromarray(COLOUR).quantize(64).convert("RGB")),
    ),
    "PNG of a photograph on its side": (
        encode(
            COLOUR, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
        ),
        COLOUR[::-1, ::-1],  # EXIF orientation 3: turned by 180 degrees
    ),
    "grey PNG": (encode(GREY), GREY),
    "grey PNG of 16 bits": (encode(GREY.astype(np.uint16) * 256 + 99), GREY),
    "grey PNG with an alpha that does nothing": (
        encode(Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (8, 8), 255)])),
        GREY,
    ),
    "PNG of one bit": (
        encode(Image.fromarray(GREY > 100)),
        np.where(GREY > 100, 255, 0).astype(np.uint8),
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_pixels_arrive_as_they_were_saved(case: str, tmp_path: Path) -> None:
    content, expected = EXACT[case]
    images = of_images(*[content] * 4, folder=tmp_path)
    expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
    assert np.array_equal(images, np.stack([expected] * 4))


def test_jpegs_arrive_as_pillow_decodes_them(tmp_path: Path) -> None:
    content = encode(COLOUR, "JPEG", quality=90)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image).transpose(2, 0, 1)
    assert np.array_equal(of_images(*[content] * 4, folder=tmp_path)[0], expected)


@pytest.mark.parametrize("position", range(4))
def test_one_image_in_colour_makes_all_of_them_rgb(position: int, tmp_path: Path) -> None:
    contents = [encode(pixels(i, channels=1)) for i in range(4)]
    contents[position] = encode(COLOUR)
    images = of_images(*contents, folder=tmp_path)
    assert images.shape == (4, 3, 8, 8)
    for i in range(4):
        grey = np.stack([pixels(i, channels=1)] * 3)
        assert np.array_equal(images[i], COLOUR.transpose(2, 0, 1) if i == position else grey)


TRANSPARENT = OPAQUE.copy()
TRANSPARENT[0, 0, 3] = 254

UNUSABLE = {
    "transparency": (encode(TRANSPARENT), "got 1 transparent pixels: flatten"),
    "a transparent palette entry": (
        encode(Image.fromarray(COLOUR).quantize(4), transparency=0),
        "transparent pixels: flatten",
    ),
    "a transparent grey": (encode(GREY, transparency=int(GREY[0, 0])), "transparent pixels"),
    "a transparent WebP": (encode(TRANSPARENT, "WEBP", lossless=True), "1 transparent pixels"),
    "an animated PNG": (
        encode(COLOUR, save_all=True, append_images=[Image.fromarray(COLOUR[::-1])]),
        "expected a still image, got 2 frames",
    ),
    "an animated WebP": (
        encode(COLOUR, "WEBP", save_all=True, append_images=[Image.fromarray(COLOUR[::-1])]),
        "expected a still image, got 2 frames",
    ),
    "an EPS": (encode(COLOUR, "EPS"), "got a PostScript file"),
    "a FITS": (b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800), "got a FITS"),
    "a nested archive": (pack(two_classes()), "got a zip archive"),
    "a text": (b"hello", "got a file of a kind that is not known"),
    "nothing": (b"", "got an empty file"),
    "a PNG that is cut short": (encode(COLOUR)[:100], "does not decode"),
    "a JPEG that is cut short": (encode(COLOUR, "JPEG")[:-40], "does not decode"),
    "a WebP that is cut short": (encode(COLOUR, "WEBP")[:-10], "decode|kind"),
    "a PNG with a wrong checksum": (
        encode(COLOUR).replace(b"IDAT", b"IDAT\0", 1),
        "does not decode",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_image_that_is_not_plain_is_refused_by_name(case: str, tmp_path: Path) -> None:
    content, reason = UNUSABLE[case]
    got = reasons(pack({**two_classes(), "cat/0.png": content}), tmp_path)
    assert len(got) == 1 or (len(got) == 2 and "`skip_unreadable`" in got[1])
    assert got[0].startswith("'cat/0.png': ")
    assert any(part in got[0] for part in reason.split("|"))


def test_the_limit_on_pixels_is_named(tmp_path: Path) -> None:
    limits = IntakeLimits(pixels=63)
    got = reasons(pack(two_classes()), tmp_path, limits=limits)
    assert got[0] == "'cat/1.png': expected at most 63 pixels (ADAP_MAX_IMAGE_PIXELS), got 64 (8x8)"
    assert len(read(pack(two_classes()), tmp_path, limits=IntakeLimits(pixels=64))) == 4


def test_the_limit_on_decoded_bytes_is_named(tmp_path: Path) -> None:
    exact = 4 * 3 * 8 * 8
    assert len(read(pack(two_classes()), tmp_path, limits=IntakeLimits(decoded_bytes=exact))) == 4
    got = reasons(pack(two_classes()), tmp_path, limits=IntakeLimits(decoded_bytes=exact - 1))
    assert got == [
        "expected images of at most 767 bytes together once decoded, got 4 of 8x8: 768 bytes"
    ]


def test_images_of_several_sizes_are_refused_with_the_sizes_and_an_example_of_each(
    tmp_path: Path,
) -> None:
    odd = {"dog/3.png": encode(pixels(7, size=(8, 9))), "dog/4.png": encode(pixels(8, size=(9, 8)))}
    assert reasons(pack({**two_classes(), **odd}), tmp_path) == [
        "expected images of one size, got 4 of 8x8 (width x height), for example 'cat/1.png'",
        "expected images of one size, got 1 of 9x8 (width x height), for example 'dog/3.png'",
        "expected images of one size, got 1 of 8x9 (width x height), for example 'dog/4.png'",
        "got 3 sizes: to have all images made one size, declare how with `resize`, for example "
        "8x8, crop (--resize 8x8:crop; or stretch, pad)",
    ]


def test_every_bad_image_is_named_up_to_a_hundred(tmp_path: Path) -> None:
    bad = {f"cat/bad{i:03}.png": b"?" for i in range(99)}
    got = reasons(pack({**two_classes(), **bad}), tmp_path)
    assert [reason.split("'")[1] for reason in got[:-1]] == list(bad)
    assert got[-1].startswith("99 files cannot be read: mend them, leave them out")
    more = {f"cat/bad{i:03}.png": b"?" for i in range(250)}
    assert len(reasons(pack({**two_classes(), **more}), tmp_path)) == 100


# --- what a data set must be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, "expected images in class folders, got an archive without any"),
        ({"cat/": b"", "README.md": b""}, "expected images in class folders, got an archive"),
        ({"1.png": png(1), "2.png": png(2)}, "got 2 images outside, for example '1.png': leave"),
        ({**two_classes(), "top.png": png(9)}, "got 1 image outside, for example 'top.png'"),
        ({"cat/1.png": png(1), "cat/2.png": png(2)}, "at least two classes, got 'cat' alone"),
        ({**two_classes(), "emu/1.png": png(5)}, "class 'emu': expected at least 2 images, got 1"),
        ({"train/1.png": png(1), "test/1.png": png(2)}, "expected class folders inside 'test'"),
        (
            {**{f"train/{k}": v for k, v in two_classes().items()}, "more/cat/1.png": png(1)},
            "expected only split folders beside 'train', got 'more'",
        ),
        (
            {**{f"train/{k}": v for k, v in two_classes().items()}, "test/cat/1.png": png(1)},
            "split test: expected at least two classes, got 'cat' alone",
        ),
        (
            {**{f"train/{k}": v for k, v in two_classes().items()}, "train/1.png": png(1)},
            "inside the split folders, got 1 image outside, for example 'train/1.png': leave the "
            "folder 'train' out, or say the labels of all images in a metadata.csv",
        ),
    ],
)
def test_a_data_set_that_cannot_be_ranked_is_refused(
    members: dict[str, bytes], expected: str, tmp_path: Path
) -> None:
    assert any(expected in reason for reason in reasons(pack(members), tmp_path))


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "an empty file"),
        (png(1), "a PNG image"),
        (b"BZh9", "a bzip2 archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"file_name,label\n", "a file of a kind that is not known here"),
        (b"\x93NUMPY\1\0", "one NumPy array, which is not read"),
    ],
)
def test_a_file_that_is_not_an_archive_is_named(content: bytes, got: str, tmp_path: Path) -> None:
    (reason,) = reasons(content, tmp_path)
    assert reason.startswith(
        f"expected a zip or tar of class folders, an NPZ or Parquet, got {got}"
    )
    assert ("adap dataset add FOLDER" in reason) != ("NumPy" in got)
    assert ("unpack it" in reason) == ("archive" in got)


def test_the_limit_on_the_file_is_named(tmp_path: Path) -> None:
    content = pack(two_classes())
    got = reasons(content, tmp_path, limits=IntakeLimits(archive_bytes=100))
    assert got == [f"expected a file of at most 100 bytes, got {len(content)}"]


# --- NPZ ------------------------------------------------------------------------------------------

BATCH = np.stack([pixels(i) for i in range(4)])  # (N, H, W, C)
YES_NO = np.array([0, 1, 1, 0])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (BATCH, BATCH.transpose(0, 3, 1, 2)),
        (np.ascontiguousarray(BATCH.transpose(0, 3, 1, 2)), BATCH.transpose(0, 3, 1, 2)),
        (BATCH[..., 0].copy(), BATCH[:, None, :, :, 0]),
        (BATCH[..., :1].copy(), BATCH[:, None, :, :, 0]),
        (BATCH.astype(np.float32) / 255, BATCH.transpose(0, 3, 1, 2)),
        (BATCH.astype(">f8") / 255, BATCH.transpose(0, 3, 1, 2)),
        ((BATCH / 255).astype(np.float16), BATCH.transpose(0, 3, 1, 2)),
    ],
)
def test_images_in_arrays_arrive_whatever_their_layout(
    images: NDArray[np.generic], expected: NDArray[np.uint8], packed: bool, tmp_path: Path
) -> None:
    image_set = read(npz(images=images, labels=YES_NO, packed=packed), tmp_path)
    assert image_set.images.dtype == np.uint8
    assert np.array_equal(image_set.images, expected)
    assert image_set.example_ids == ["0", "1", "2", "3"]


def test_many_arrays_are_read_block_by_block(tmp_path: Path) -> None:
    # 4 blocks: 30 MiB of float32 against 8 MiB a block
    images = np.random.default_rng(0).random((2560, 32, 32, 3), np.float32)
    seen: list[tuple[int, int]] = []
    path = tmp_path / "upload"
    path.write_bytes(npz(images=images, labels=np.arange(2560) % 2))
    image_set = read_dataset(path, limits=IntakeLimits(), on_progress=lambda *at: seen.append(at))
    assert np.array_equal(image_set.images, np.rint(images * 255).transpose(0, 3, 1, 2))
    assert len(seen) == 4
    assert seen[-1] == (2560, 2560)


@pytest.mark.parametrize(
    ("labels", "classes", "names", "indices"),
    [
        (np.array([7, -1, -1, 7]), None, ["-1", "7"], [1, 0, 0, 1]),
        (np.array([10, 9, 9, 10], np.uint8), None, ["9", "10"], [1, 0, 0, 1]),
        (np.array([2**64 - 1, 0, 0, 2**64 - 1], np.uint64), None, ["0", str(2**64 - 1)], None),
        (np.array([True, False, False, True]), None, ["0", "1"], [1, 0, 0, 1]),
        (np.array(["dog", "cat", "cat", "dog"]), None, ["cat", "dog"], [1, 0, 0, 1]),
        (np.array([1, 0, 0, 1]), np.array(["z", "a"]), ["z", "a"], [1, 0, 0, 1]),
        (np.array(["a", "z", "z", "a"]), np.array(["z", "a"]), ["z", "a"], [1, 0, 0, 1]),
    ],
)
def test_labels_are_numbers_or_text(
    labels: NDArray[np.generic],
    classes: NDArray[np.str_] | None,
    names: list[str],
    indices: list[int] | None,
    tmp_path: Path,
) -> None:
    more = {} if classes is None else {"classes": classes}
    image_set = read(npz(images=BATCH, labels=labels, **more), tmp_path)
    assert list(image_set.classes) == names
    assert image_set.labels.tolist() == (indices or [1, 0, 0, 1])


def test_arrays_may_declare_splits(tmp_path: Path) -> None:
    split = np.array(["train", "train", "val", "val"])
    image_set = read(npz(images=BATCH, labels=np.array([0, 1, 0, 1]), split=split), tmp_path)
    assert image_set.in_split("train").tolist() == [0, 1]
    assert image_set.in_split("validation").tolist() == [2, 3]


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        (np.array(["north", "süd", "süd", "north"]), ["north", "süd", "süd", "north"]),
        (np.array([10, 9, -1, 10]), ["10", "9", "-1", "10"]),
        (np.array([2**64 - 1, 0, 0, 0], np.uint64), [str(2**64 - 1), "0", "0", "0"]),
    ],
)
def test_arrays_may_have_groups(
    groups: NDArray[np.generic], names: list[str], tmp_path: Path
) -> None:
    image_set = read(npz(images=BATCH, labels=YES_NO, groups=groups), tmp_path)
    assert image_set.groups == names


NOT_A_NUMBER = (BATCH / 255).astype(np.float32)
NOT_A_NUMBER[3, 0, 0, 0] = np.nan

BAD_ARRAYS: dict[str, tuple[dict[str, NDArray[np.generic]], str]] = {
    "no labels": ({"images": BATCH}, "expected an array 'labels' in the NPZ, got 'images'"),
    "no images": ({"labels": YES_NO}, "expected an array 'images' in the NPZ"),
    "a name that is not there": ({"pictures": BATCH, "labels": YES_NO}, "`image_column`"),
    "more labels": ({"images": BATCH, "labels": np.arange(6) % 2}, "each of 6 labels, got 4"),
    "labels in two dimensions": (
        {"images": BATCH, "labels": YES_NO[None]},
        "expected (N,) or (N, K), got (1, 4): send labels.reshape(-1)",
    ),
    "labels that are fractions": ({"images": BATCH, "labels": YES_NO / 2}, "with fractions"),
    "no examples": ({"images": BATCH[:0], "labels": YES_NO[:0]}, "got (0,)"),
    "images of two dimensions": ({"images": BATCH[..., 0, 0].copy(), "labels": YES_NO}, "(4, 8)"),
    "two channels": ({"images": BATCH[..., :2].copy(), "labels": YES_NO}, "got (4, 8, 8, 2)"),
    "an ambiguous layout": (
        {"images": BATCH[:, :3].copy(), "labels": YES_NO},
        "(4, 3, 8, 3) could be either",
    ),
    "floats from 0 to 255": (
        {"images": BATCH.astype(np.float32), "labels": YES_NO},
        "expected floats in [0, 1], got values from 0 to 255",
    ),
    "floats around 0": ({"images": BATCH / 255 - 0.5, "labels": YES_NO}, "from -0.5 to 0.5"),
    "NaN": (
        {"images": NOT_A_NUMBER, "labels": YES_NO},
        "got NaN or infinity: leave these images out",
    ),
    "signed numbers": (
        {"images": BATCH.astype(np.int16) - 256, "labels": YES_NO},
        "whole numbers from 0 to 255, got int16 from -",
    ),
    "complex numbers": ({"images": BATCH * 1j, "labels": YES_NO}, "got complex128"),
    "columns first": (
        {"images": np.asfortranarray(BATCH), "labels": YES_NO},
        "save np.ascontiguousarray(images)",
    ),
    "an index out of range": (
        {"images": BATCH, "labels": YES_NO + 1, "classes": np.array(["a", "b"])},
        "expected indices from 0 to 1 into classes, got 1 to 2",
    ),
    "a name out of range": (
        {"images": BATCH, "labels": np.array(list("abca")), "classes": np.array(["a", "b"])},
        "expected names among classes, got 'c'",
    ),
    "a name twice": (
        {"images": BATCH, "labels": YES_NO, "classes": np.array(["a", "a"])},
        "expected each name once",
    ),
    "an empty name": (
        {"images": BATCH, "labels": np.array(["", "a", "a", ""])},
        "expected a label of 1 to 200 printable characters",
    ),
    "an unknown split": (
        {"images": BATCH, "labels": YES_NO, "split": np.array(list("abca"))},
        "expected a split among train, validation, test, got 'a'",
    ),
    "splits for fewer": (
        {"images": BATCH, "labels": YES_NO, "split": np.array(["train"])},
        "split: expected one for each of 4 labels, got 1",
    ),
    "groups for fewer": (
        {"images": BATCH, "labels": YES_NO, "groups": np.array(["north"])},
        "groups: expected one for each of 4 labels, got 1",
    ),
    "groups that are floats": (
        {"images": BATCH, "labels": YES_NO, "groups": YES_NO / 1},
        "groups: expected whole numbers or text, got float64",
    ),
    "an empty group": (
        {"images": BATCH, "labels": YES_NO, "groups": np.array(["", "a", "a", ""])},
        "groups: expected a group of 1 to 200 printable characters, got ''",
    ),
    "groups that are no characters": (
        {
            "images": BATCH,
            "labels": YES_NO,
            "groups": np.array([65, 0x110000, 66, 65], ">u4").view(">U1"),
        },
        "groups: expected text, got numbers that are no characters",
    ),
    "one class": ({"images": BATCH, "labels": YES_NO * 0}, "at least two classes, got '0' alone"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_do_not_fit_are_refused(case: str, tmp_path: Path) -> None:
    arrays, reason = BAD_ARRAYS[case]
    assert any(reason in got for got in reasons(npz(**arrays), tmp_path))


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (
            IntakeLimits(pixels=63),
            "images: expected at most 63 pixels each (ADAP_MAX_IMAGE_PIXELS), got 8x8",
        ),
        (IntakeLimits(decoded_bytes=767), "images: expected at most 767 bytes as uint8, got 768"),
        (IntakeLimits(entries=3), "labels: expected one dimension of 1 to 3, got (4,)"),
    ],
)
def test_limits_hold_for_arrays_too(limits: IntakeLimits, reason: str, tmp_path: Path) -> None:
    assert reasons(npz(images=BATCH, labels=YES_NO), tmp_path, limits=limits) == [reason]


# --- the rest -------------------------------------------------------------------------------------


def test_the_summary_counts_what_is_there(tmp_path: Path) -> None:
    members = {f"train/{k}": v for k, v in two_classes().items()}
    members |= {f"test/{k}": v for k, v in two_classes(**{"dog/3.png": png(9)}).items()}
    summary = summarise(read(pack(members), tmp_path))
    assert summary == {
        "examples": 9,
        "multilabel": False,
        "classes": {"cat": 4, "dog": 5},
        "prevalence": {"cat": 4 / 9, "dog": 5 / 9},
        "splits": {"train": {"cat": 2, "dog": 2}, "test": {"cat": 2, "dog": 3}},
        "split_examples": {"train": 4, "test": 5},
        "groups": None,
        "clusters": None,
        "channels": 3,
        "height": 8,
        "width": 8,
        "sizes": {"8x8": 9},
        "duplicates": 4,
        "conflicting": 0,
        "across_splits": 4,
    }


def test_duplicates_are_counted_and_not_refused(tmp_path: Path) -> None:
    members = two_classes(**{"dog/again.png": png(1), "dog/third.png": png(1)})
    image_set = read(pack(members), tmp_path)
    assert len(image_set) == 6
    assert summarise(image_set)["duplicates"] == 2


def test_the_summary_counts_each_group(tmp_path: Path) -> None:
    image_set = read(npz(images=BATCH, labels=YES_NO, groups=np.array(list("zaza"))), tmp_path)
    assert list(summarise(image_set)["groups"].items()) == [("a", 2), ("z", 2)]


def test_the_grouped_set_of_these_tests_is_ranked_worse_from_group_to_group(tmp_path: Path) -> None:
    image_set = read(pack(grouped("north", "south", "west", per_class=40)), tmp_path)
    brightness = image_set.images.mean((1, 2, 3))
    aps = []
    for group in ("north", "south", "west"):
        of_group = np.array(image_set.groups) == group
        assert of_group.sum() == 160
        aps.append(average_precision_score(image_set.labels[of_group] == 0, brightness[of_group]))
    assert aps[0] > 0.99 > aps[1] + 0.05 > aps[2] + 0.1


def test_a_summary_without_splits_says_none(tmp_path: Path) -> None:
    assert summarise(read(pack(two_classes()), tmp_path))["splits"] is None


def test_progress_ends_at_the_number_of_images(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(pack({f"{'ab'[i % 2]}/{i}.png": png(i) for i in range(250)}))
    seen: list[tuple[int, int]] = []
    read_dataset(path, limits=IntakeLimits(), on_progress=lambda *at: seen.append(at))
    assert seen == [(100, 250), (200, 250), (250, 250)]


def test_a_data_set_survives_its_stored_form(tmp_path: Path) -> None:
    image_set = read(pack(two_classes()), tmp_path)
    image_set.save(tmp_path / "stored")
    stored = ImageSet.load(tmp_path / "stored")
    assert np.array_equal(stored.images, image_set.images)
    assert list(stored.example_ids) == image_set.example_ids


def test_intake_loads_no_torch() -> None:
    code = "import sys, worker.intake; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_photographs_are_read_by_class(shared: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared / "data" / "cifar10-test.zip") as archive:
        some = {
            name: archive.read(name)
            for name in archive.namelist()
            if name.split("/")[1] < "0020.jpg"
        }
        example = archive.read("truck/0007.jpg")
    with Image.open(io.BytesIO(example)) as image:
        expected = np.asarray(image).transpose(2, 0, 1)
    image_set = read(pack(some, method=STORED), tmp_path)
    assert image_set.images.shape == (200, 3, 32, 32)
    assert len(image_set.classes) == 10
    index = list(image_set.example_ids).index("truck/0007.jpg")
    assert np.array_equal(image_set.images[index], expected)
    assert image_set.classes[image_set.labels[index]] == "truck"
