"""Image files as cameras, scanners and old tools write them. The judge is Pillow."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adap.core.config.data import DatasetOptions, Resize
from adap.core.datasets import Draft, ImageSet
from adap.worker.intake import IntakeLimits, Rejected, read_dataset
from adap.worker.intake.notes import Notes
from tests.worker.archives import encode, pack, pixels, png

COLOUR = pixels(6)


def read(
    members: dict[str, bytes], folder: Path, notes: Notes | None = None, **options: Any
) -> ImageSet:
    path = folder / "upload"
    path.write_bytes(pack(members))
    room = options.pop("room", None)
    return read_dataset(
        path,
        limits=IntakeLimits(),
        on_progress=lambda done, total: None,
        options=DatasetOptions.model_validate(options),
        notes=notes,
        **({} if room is None else {"room": room}),
    )


def beside(content: bytes) -> dict[str, bytes]:
    """The file among sound ones; it is the first example."""
    return {f"a/{i}.png": png(i) for i in (1, 2)} | {"a/0": content, "b/1": png(3), "b/2": png(4)}


def with_bad_exif(jpeg: bytes) -> bytes:
    tags = b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHLL", 0x8298, 2, 500, 9000)
    exif = b"Exif\0\0" + tags + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


JPEG = encode(COLOUR, "JPEG", quality=95)
CMYK = encode(Image.fromarray(COLOUR).convert("CMYK"), "JPEG")
FILES = {
    "BMP": (encode(COLOUR, "BMP"), None),
    "TIFF": (encode(COLOUR, "TIFF"), None),
    "packed TIFF": (encode(COLOUR, "TIFF", compression="tiff_lzw"), None),
    "GIF": (encode(Image.fromarray(COLOUR).quantize(16), "GIF"), None),
    "animated GIF": (
        encode(COLOUR, "GIF", save_all=True, append_images=[Image.fromarray(COLOUR[::-1])]),
        "first_frame",
    ),
    "a photograph with its preview": (
        encode(COLOUR, "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))]),
        "first_frame",
    ),
    "CMYK": (CMYK, "cmyk"),
    "a bad tag in EXIF": (with_bad_exif(JPEG), None),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", FILES)
def test_a_file_is_read_as_pillow_reads_it_and_what_was_done_is_told(
    case: str, tmp_path: Path
) -> None:
    content, code = FILES[case]
    notes = Notes()
    made = read(beside(content), tmp_path, notes)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(made.images[list(made.example_ids).index("a/0")], expected)
    assert [fact.code for fact in notes.facts] == ([] if code is None else [code])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            encode(COLOUR, "TIFF", save_all=True, append_images=[Image.fromarray(COLOUR)]),
            "got a TIFF of several pages",
        ),
        (encode(Image.fromarray(np.eye(8, dtype=np.float32)), "TIFF"), "--levels 0:1"),
        (encode(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"), "`levels`"),
    ],
)
def test_a_tiff_that_can_be_read_in_several_ways_is_refused(
    content: bytes, told: str, tmp_path: Path
) -> None:
    with pytest.raises(Rejected) as caught:
        read(beside(content), tmp_path)
    assert told in caught.value.reasons[0]


def test_values_of_a_scientific_tiff_are_scaled_as_declared(tmp_path: Path) -> None:
    values = np.linspace(-1000, 400, 64, dtype=np.float32).reshape(8, 8)
    members = {
        f"{'ab'[i % 2]}/{i}.tif": encode(Image.fromarray(values + i), "TIFF") for i in range(4)
    }
    with pytest.raises(Rejected) as caught:
        read(members, tmp_path)
    assert "4 images: values go from -1000 to 403" in caught.value.reasons[0]  # all files' range
    made = read(members, tmp_path, levels={"low": -1000, "high": 403})
    expected = np.rint((values.astype(float) + 1000) / 1403 * 255)
    assert np.array_equal(made.images[0, 0], expected)


def test_a_large_photograph_is_read_where_it_is_made_smaller(tmp_path: Path) -> None:
    rough = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    photo = Image.fromarray(rough).resize((3200, 2400), Image.Resampling.BICUBIC)
    members = {
        f"{name}/{i}.jpg": encode(photo, "JPEG", quality=90) for name in "ab" for i in (0, 1)
    }
    with pytest.raises(Rejected, match="shrink it, or declare `resize`"):
        read(members, tmp_path)
    notes = Notes()
    rule = Resize(height=24, width=32, fit="crop")
    made = read(members, tmp_path, notes, resize=rule)
    expected = np.asarray(photo.resize((32, 24), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(made.images[0].astype(int) - expected).mean() < 2
    assert [fact.code for fact in notes.facts] == ["reduced"]
    assert notes.sizes == {(2400, 3200): 4}


BAD = {"a/0.png": b"", "b/9.png": png(9)[:60], "b/8.png": b"not an image"}


def test_files_that_cannot_be_read_are_left_out_only_when_asked_and_counted(
    tmp_path: Path,
) -> None:
    sound = {
        f"{name}/{i}.png": png(i + 10 * k) for k, name in enumerate("ab", 1) for i in (1, 2, 3)
    }
    with pytest.raises(Rejected) as caught:
        read({**sound, **BAD}, tmp_path)
    *named, way = caught.value.reasons
    assert [reason.split("'")[1] for reason in named] == sorted(BAD)
    assert "left out with `skip_unreadable` (--skip-unreadable)" in way
    notes, draft = Notes(), Draft(tmp_path / "stored")
    made = read({**sound, **BAD}, tmp_path, notes, skip_unreadable=True, room=draft.room)
    draft.finish(made)
    expected = read(sound, tmp_path)
    stored = ImageSet.load(tmp_path / "stored")
    assert list(stored.example_ids) == list(expected.example_ids)
    assert np.array_equal(stored.images, expected.images)
    assert np.array_equal(stored.labels, expected.labels)
    (fact,) = notes.reading().cautions
    assert fact.figures == {"files": 3, "share": 3 / 9}
    assert "'a/0.png', 'b/8.png', 'b/9.png'" in fact.message


def test_a_class_that_is_lost_with_its_files_is_refused(tmp_path: Path) -> None:
    members = {**{f"a/{i}.png": png(i) for i in range(3)}, "b/1.png": png(7), "b/2.png": b""}
    with pytest.raises(Rejected, match="class 'b': expected at least 2 images, got 1"):
        read(members, tmp_path, skip_unreadable=True)


def test_how_many_photographs_were_turned_is_told(tmp_path: Path) -> None:
    tags = Image.Exif()
    members, expected = {}, 0
    for i, orientation in enumerate([1, 3, 6, 8, 0, 9]):
        tags[0x0112] = orientation
        expected += orientation in (3, 6, 8)
        members[f"{'ab'[i % 2]}/{i}.jpg"] = encode(pixels(i), "JPEG", exif=tags)
    notes = Notes()
    read(members, tmp_path, notes)
    (step,) = [step for step in notes.steps if "orientation" in step]
    assert step.startswith(f"orientation of {expected} photographs applied (EXIF)")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (encode(COLOUR, "PPM"), "PPM"),
        (bytes(3) + b"\x18ftypheic" + bytes(40), "HEIC"),
        (bytes(3) + b"\x1cftypavif" + bytes(40), "AVIF"),
    ],
)
def test_an_image_of_a_kind_that_is_not_read_is_refused_with_the_kinds_that_are(
    content: bytes, kind: str, tmp_path: Path
) -> None:
    with pytest.raises(Rejected) as caught:
        read(beside(content), tmp_path)
    said = caught.value.reasons[0]
    assert kind in said
    assert "convert to PNG" in said
    assert all(name in said for name in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"))


def test_levels_that_no_image_needs_are_told(tmp_path: Path) -> None:
    notes = Notes()
    read(beside(png(0)), tmp_path, notes, levels={"low": 0, "high": 4095})
    assert "levels_not_used" in [fact.code for fact in notes.facts]
