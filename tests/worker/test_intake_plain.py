"""The fast way to pixels. Judge: Pillow's own way, for sound files and for damaged ones.

Also that threads, memory that is mapped and sums in place of digests change no result.
"""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from adap.core.datasets import Draft, ImageSet
from adap.worker.intake import IntakeLimits, Rejected, decoding, read_dataset, summarise
from adap.worker.intake.archive import Archive
from adap.worker.intake.images import UnusableImageError, decode, decode_by_pillow, strict_decoding
from adap.worker.intake.plain import decode_plain
from tests.worker.archives import encode, pack, pack_raw, pixels, png
from tests.worker.test_intake_hostile import SOUND, chunk, damaged, read, reasons

MOST = 2**20


def soft(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    """Not noise: what compresses like a photograph."""
    rough = pixels(height, channels=channels, size=(4, 4))
    return np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC))


PICTURES = [
    pixels(1),
    pixels(2, size=(1, 1)),
    pixels(3, size=(17, 33)),
    pixels(4, channels=1, size=(5, 9)),
    soft(40, 24),
    soft(64, 64),
    soft(31, 50, channels=1),
]
OPTIONS = [
    {},
    {"quality": 100, "subsampling": "4:4:4"},
    {"quality": 30, "subsampling": "4:2:2"},
    {"progressive": True},
    {"optimize": True, "comment": b"here"},
    {"restart_marker_blocks": 2},
]
PLAIN = [encode(picture, "JPEG", **options) for picture in PICTURES for options in OPTIONS]
PLAIN += [encode(picture) for picture in PICTURES]
PLAIN += [encode(picture, compress_level=0, dpi=(72, 72)) for picture in PICTURES]


@pytest.mark.parametrize("content", PLAIN, ids=range(len(PLAIN)))
def test_a_plain_file_is_read_as_pillow_reads_it(content: bytes) -> None:
    found = decode_plain(content, max_pixels=MOST)
    assert found is not None
    with strict_decoding():
        expected = decode_by_pillow(content, max_pixels=MOST)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
COLOUR = Image.fromarray(pixels(6))
NOT_PLAIN = {
    "a photograph on its side": encode(COLOUR, "JPEG", exif=EXIF),
    "a colour profile": encode(COLOUR, "JPEG", icc_profile=bytes(200)),
    "four inks": encode(COLOUR.convert("CMYK"), "JPEG"),
    "two pictures": encode(COLOUR, "MPO", save_all=True, append_images=[COLOUR]),
    "a palette": encode(COLOUR.quantize(8)),
    "an alpha": encode(COLOUR.convert("RGBA")),
    "a transparent colour": encode(COLOUR, transparency=(0, 0, 0)),
    "sixteen bits": encode(pixels(6, channels=1).astype(np.uint16) * 256),
    "one bit": encode(COLOUR.convert("1")),
    "an orientation": encode(COLOUR, exif=EXIF),
    "a text": png(1)[:33] + chunk(b"tEXt", b"a\0b") + png(1)[33:],
    "an animation": png(1)[:33] + chunk(b"acTL", struct.pack(">LL", 2, 0)) + png(1)[33:],
    "a chunk after the pixels": png(1)[:-12] + chunk(b"eXIf", EXIF[6:]) + png(1)[-12:],
    "another format": encode(COLOUR, "WEBP"),
    "a byte that is wrong": png(1)[:20] + b"\1" + png(1)[21:],
    "half a file": encode(COLOUR, "JPEG")[:-40],
    "half a PNG": png(1)[:-40],
    "no pixels": png(1)[:33] + chunk(b"IDAT", zlib.compress(b"")),
    "nothing": b"",
}


@pytest.mark.parametrize("case", NOT_PLAIN)
def test_what_is_not_plain_is_left_to_pillow(case: str) -> None:
    assert decode_plain(NOT_PLAIN[case], max_pixels=MOST) is None


def test_a_plain_file_that_is_too_large_is_left_to_pillow_who_says_so() -> None:
    for content in (encode(pixels(1), "JPEG"), png(1)):
        assert decode_plain(content, max_pixels=63) is None
        with pytest.raises(UnusableImageError, match="at most 63 pixels"):
            decode(content, max_pixels=63)


@given(content=damaged(of=PLAIN))
def test_a_damaged_file_is_read_as_pillow_reads_it_or_not_at_all(content: bytes) -> None:
    found = decode_plain(content, max_pixels=MOST)
    if found is not None:
        with strict_decoding():
            assert np.array_equal(found, decode_by_pillow(content, max_pixels=MOST))


# --- members of a zip -----------------------------------------------------------------------------


def test_members_are_read_as_zipfile_reads_them(tmp_path: Path) -> None:
    members = {f"{name}/é{i}": bytes([i % 251]) * i for name in "ab" for i in (0, 1, 50, 10_000)}
    for method in (0, 8):
        path = tmp_path / f"zip{method}"
        # what stands before the archive is skipped, as zipfile does
        path.write_bytes(b"#!/bin/sh\n" * method + pack(members, method=method))
        with Archive(path, limits=IntakeLimits()) as archive:
            assert {name: archive.read(name) for name in archive.names} == members


def test_a_member_whose_own_header_names_another_is_refused(tmp_path: Path) -> None:
    content = pack_raw(SOUND).replace(b"cat/1.png", b"cat/9.png", 1)
    assert any("'cat/1.png': expected a sound member" in got for got in reasons(content, tmp_path))


# --- threads --------------------------------------------------------------------------------------


def mixed(count: int) -> dict[str, bytes]:
    """Images of three sizes, grey ones among them, and some that do not decode."""
    members = {}
    for i in range(count):
        size = [(8, 8), (8, 8), (6, 9), (12, 5)][i % 4]
        picture = pixels(i, channels=1 if i < count // 2 or i % 3 else 3, size=size)
        members[f"{'ab'[i % 2]}/{i:04d}"] = encode(picture, "JPEG" if i % 5 else "PNG")
    return members


@pytest.fixture(params=[1, 2, 4])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many threads decode, a few files at a time."""
    monkeypatch.setattr(decoding.os, "sched_getaffinity", lambda _: range(request.param))
    monkeypatch.setattr(decoding, "SMALL_BYTES", 0)
    monkeypatch.setattr(decoding, "_CHUNK_BYTES", 2_000)
    return int(request.param)


@pytest.mark.usefixtures("threads")
def test_images_stand_where_they_belong_and_turn_to_colour_together(tmp_path: Path) -> None:
    members = {name: data for name, data in mixed(400).items() if int(name[2:]) % 4 < 2}
    image_set = read(pack(members), tmp_path)
    assert image_set.images.shape == (200, 3, 8, 8)
    for i, name in enumerate(image_set.example_ids):
        with strict_decoding():
            expected = decode_by_pillow(members[name], max_pixels=MOST)
        expected = expected if expected.ndim == 3 else np.stack([expected] * 3, axis=-1)
        assert np.array_equal(image_set.images[i], expected.transpose(2, 0, 1))


@pytest.mark.usefixtures("threads")
def test_sizes_and_reasons_do_not_depend_on_threads(tmp_path: Path) -> None:
    members = mixed(100)
    bad = [name for name in members if int(name[2:]) % 10 == 7]
    got = reasons(pack({**members, **dict.fromkeys(bad, b"GIF89a")}), tmp_path)
    assert [reason.split(":")[0] for reason in got[:10]] == [repr(name) for name in sorted(bad)]
    assert "got 45 of 8x8 (width x height), for example 'a/0000'" in got[10]
    assert "got 25 of 9x6 (width x height), for example 'a/0002'" in got[11]
    assert "got 20 of 5x12 (width x height), for example 'b/0003'" in got[12]


@pytest.mark.usefixtures("threads")
def test_no_more_than_a_hundred_reasons_are_looked_for(tmp_path: Path) -> None:
    members = {f"{'ab'[i % 2]}/{i:04d}": b"GIF89a" for i in range(1000)}
    expected = sorted(members)[:100]
    assert [reason.split(":")[0] for reason in reasons(pack(members), tmp_path)] == [
        repr(name) for name in expected
    ]


# --- the stored form, made in place ---------------------------------------------------------------


def test_a_set_made_in_place_is_the_set_made_in_memory(tmp_path: Path) -> None:
    members = {name: data for name, data in mixed(400).items() if int(name[2:]) % 4 < 2}
    (tmp_path / "upload").write_bytes(pack(members))
    options = {"limits": IntakeLimits(), "on_progress": lambda *_: None}
    expected = read_dataset(tmp_path / "upload", **options)
    draft = Draft(tmp_path / "stored")
    made = read_dataset(tmp_path / "upload", room=draft.room, **options)
    summary = summarise(made)
    draft.finish(made)
    stored = ImageSet.load(tmp_path / "stored")
    assert np.array_equal(stored.images, expected.images)
    assert np.array_equal(stored.labels, expected.labels)
    assert list(stored.example_ids) == list(expected.example_ids)
    assert summary == summarise(stored) == summarise(expected)
    assert np.array_equal(load_file(tmp_path / "stored")["images"], expected.images)
    expected.save(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == (tmp_path / "stored").read_bytes()


def test_a_draft_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "stored")
    (tmp_path / "upload").write_bytes(pack({**{f"a/{i}": png(i) for i in range(3)}, "b/1": b"GIF"}))
    with pytest.raises(Rejected):
        read_dataset(
            tmp_path / "upload",
            limits=IntakeLimits(),
            on_progress=lambda *_: None,
            room=draft.room,
        )
    draft.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["upload"]


# VmHWM, as ru_maxrss starts from what the process had that started this one
MEASURE = """
import sys
from pathlib import Path
from adap.worker.intake.pipeline import validate_dataset
from adap.worker.pipelines.requests import DatasetCheck
from adap.worker.work import Work
class Silent:
    def progress(self, *_): pass
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
work = Work(DatasetCheck(), {"upload": Path(sys.argv[1])}, Path(sys.argv[2]))
before = peak()
examples = validate_dataset(work, Silent()).summary.examples
print(examples, (peak() - before) // 1024)
"""


def large(form: str) -> bytes:
    """300 images of a MiB of pixels each, the first in grey: 300 MiB once decoded."""
    if form == "npz":
        file = io.BytesIO()
        images = np.zeros((300, 592, 592, 3), np.uint8)
        np.savez(file, images=images, labels=np.arange(300) % 2)
        return file.getvalue()
    grey, colour = (encode(np.full((592, 592, *c), 7, np.uint8)) for c in ((), (3,)))
    return pack({f"{'ab'[i % 2]}/{i:03d}": colour if i else grey for i in range(300)})


@pytest.mark.parametrize("form", ["zip", "npz"])
def test_memory_does_not_grow_with_the_images(form: str, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(large(form))
    (tmp_path / "work").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "upload"), str(tmp_path / "work")],
        capture_output=True,
        check=True,
        text=True,
    )
    examples, mebibytes = map(int, run.stdout.split())
    assert (tmp_path / "work" / "content.safetensors").stat().st_size > 300 * 2**20
    assert examples == 300
    assert mebibytes < 120  # 32 MiB of mapped pages, and what each thread has in hand


# --- duplicates -----------------------------------------------------------------------------------


@given(
    height=st.integers(1, 5),
    width=st.integers(1, 7),
    levels=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_duplicates_are_those_that_comparing_all_finds(
    height: int, width: int, levels: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    images = (random.integers(0, levels, (40, 1, height, width)) * 85).astype(np.uint8)
    made = ImageSet(images, np.arange(40) % 2, ["a", "b"], [str(i) for i in range(40)])
    earlier = [[j for j in range(i) if np.array_equal(images[i], images[j])] for i in range(40)]
    summary = summarise(made)
    assert summary["duplicates"] == sum(map(bool, earlier))
    assert summary["conflicting"] == sum(
        bool(js) and (js[0] - i) % 2 for i, js in enumerate(earlier)
    )


def test_images_made_to_share_a_sum_are_told_apart() -> None:
    """A top bit moves the sum by 2^63 whatever its weight, so two of them move it by nothing."""
    images = np.zeros((5, 1, 4, 8), np.uint8)
    for image, rows in zip(images, ([], [0, 1], [0, 2], [1, 2], [0, 1]), strict=True):
        image[0, rows, 7] = 128  # the highest byte of a little-endian word
    made = ImageSet(images, np.array([0, 1, 0, 1, 0]), ["a", "b"], list("01234"))
    assert summarise(made)["duplicates"] == 1
