"""Uploads made to hurt. Each must be refused with a reason, cheaply, and leave nothing behind."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import PngImagePlugin

from adap.core.datasets import ImageSet
from adap.worker.intake import IntakeLimits, Rejected, read_dataset
from adap.worker.intake.images import UnusableImageError, decode, strict_decoding
from tests.worker.archives import (
    DEFLATED,
    STORED,
    Raw,
    deflated_zeros,
    encode,
    pack,
    pack_raw,
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
    check_reasons(caught.value)
    return caught.value.reasons


def check_reasons(rejected: Rejected) -> None:
    """They are shown to people and written to logs: one printable line each, at most 100."""
    assert 0 < len(rejected.reasons) <= 100
    assert all(reason.isprintable() and len(reason) < 800 for reason in rejected.reasons)


SOUND = [Raw(name, content) for name, content in two_classes().items()]


def test_the_hand_made_zip_of_these_tests_is_sound(tmp_path: Path) -> None:
    content = pack_raw(SOUND)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
    assert len(read(content, tmp_path)) == 4


# --- cost: measured in a process of its own -------------------------------------------------------

# VmHWM, as ru_maxrss starts from what the process had that started this one
MEASURE = """
import json, sys, time
from pathlib import Path
from adap.worker.intake import IntakeLimits, Rejected, read_dataset
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before, start = peak(), time.process_time()
try:
    read_dataset(Path(sys.argv[1]), limits=IntakeLimits(), on_progress=lambda done, total: None)
    reasons = []
except Rejected as rejected:
    reasons = rejected.reasons
took = time.process_time() - start
print(json.dumps({"reasons": reasons, "seconds": took, "memory": peak() - before}))
"""


def bomb(gibibytes: int) -> Raw:
    """A member of 1 MB a GiB that tells the truth about its size, but for its checksum."""
    content = deflated_zeros(gibibytes)
    return Raw(
        "cat/0.png", content, method=DEFLATED, declared_size=min(gibibytes * 2**30, 2**32 - 1)
    )


def quoted_overlap(count: int) -> bytes:
    """One packed kernel of zeros, and a directory that lists it again and again."""
    kernel = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = kernel.compress(bytes(2**20)) + kernel.flush()
    members = [
        Raw("cat/0", packed, method=DEFLATED, declared_size=2**20, crc=zlib.crc32(bytes(2**20)))
    ]
    members += [
        Raw(f"cat/{i}", b"", method=DEFLATED, declared_size=2**20, crc=members[0].crc, offset=0)
        for i in range(1, count)
    ]
    return pack_raw(members)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png_of(width: int, height: int, *, body: bytes = b"") -> bytes:
    """A PNG that claims a size; grey, 8 bits."""
    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + (body or chunk(b"IDAT", zlib.compress(b"")))


def png_text_bomb() -> bytes:
    """An image of 8x8 with 64 texts that unpack to 16 MiB each."""
    packed = zlib.compress(bytes(2**24), 9)
    text = chunk(b"iTXt", b"k\0\1\0\0\0" + packed)
    sound = png(1)
    return sound[:33] + text * 64 + sound[33:]


def webp_of(width: int, height: int) -> bytes:
    """A WebP whose extended header claims a canvas."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frames = encode(pixels(1), "WEBP", lossless=True)[12:]
    body = b"WEBPVP8X" + struct.pack("<L", 10) + bytes(4) + canvas + frames
    return b"RIFF" + struct.pack("<L", len(body)) + body


def npz_claiming(shape: tuple[int, ...]) -> bytes:
    """An NPZ whose images claim a shape that is not there."""
    buffer = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    labels = io.BytesIO()
    np.save(labels, np.array([0, 1] * 2))
    return pack({"images.npy": buffer.getvalue() + bytes(64), "labels.npy": labels.getvalue()})


COSTLY = {
    "10 MB that unpack to 4 GiB": (lambda: pack_raw([*SOUND, bomb(10)]), "100 times its packed"),
    "10 MB that claim 100 kB": (
        lambda: pack_raw(
            [*SOUND, Raw("cat/0", deflated_zeros(10), method=DEFLATED, declared_size=100_000)]
        ),
        "'cat/0': expected a sound member of the zip",
    ),
    "one packed block listed 10,000 times": (lambda: quoted_overlap(10_000), "overlaps 'cat/"),
    "a million members": (
        lambda: many_members(10**6),
        "expected a zip whose list of files has at most 32000000 bytes",
    ),
    "300,000 members": (
        lambda: many_members(300_000),
        "at most 250000 files (ADAP_MAX_IMAGES), got 300000",
    ),
    "a PNG of 20,000 x 20,000": (
        lambda: pack({**two_classes(), "cat/0.png": png_of(20_000, 20_000)}),
        "expected at most 4194304 pixels (ADAP_MAX_IMAGE_PIXELS), got 400000000 (20000x20000)",
    ),
    "a PNG of 2,000,000,000 x 2,000,000,000": (
        lambda: pack({**two_classes(), "cat/0.png": png_of(2 * 10**9, 2 * 10**9)}),
        "expected at most 4194304 pixels",
    ),
    "a PNG with texts that unpack to a gigabyte": (
        lambda: pack({**two_classes(), "cat/0.png": png_text_bomb()}),
        "does not decode",
    ),
    "a WebP canvas of 16,383 x 16,383": (
        lambda: pack({**two_classes(), "cat/0.png": webp_of(16_383, 16_383)}),
        "'cat/0.png': ",
    ),
    "a GIF of 100,000 frames": (
        lambda: pack({**two_classes(), "cat/0.png": gif_of(100_000)}, method=STORED),
        "got a GIF image",
    ),
    "an APNG of 100,000 frames": (
        lambda: pack({**two_classes(), "cat/0.png": apng_of(100_000)}),
        "expected a still image, got 100001 frames",
    ),
    "an NPZ that claims a petabyte": (
        lambda: npz_claiming((4, 2**24, 2**24, 1)),
        "images: expected 1125899906842624 bytes",
    ),
}


def many_members(count: int) -> bytes:
    """A directory of empty members that all stand at the start of the file."""
    entry = b"PK\1\2" + struct.pack("<HHHHHHLLLHHHHHLL", *[20] * 2, *[0] * 6, 0, 1, *[0] * 6) + b"a"
    assert len(entry) == 47
    directory = entry * count
    zip64 = struct.pack(
        "<LQHHLLQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, len(directory), 4
    )
    locator = struct.pack("<LLQL", 0x07064B50, 0, 4 + len(directory), 1)
    end = struct.pack("<LHHHHLLH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return b"PK\3\4" + directory + zip64 + locator + end


def gif_of(frames: int) -> bytes:
    sound = encode(pixels(1), "GIF")
    return sound[:-1] + sound[sound.index(b",") : -1] * frames + b";"


def apng_of(frames: int) -> bytes:
    """A sound image that announces an animation."""
    sound = png(1)
    return sound[:33] + chunk(b"acTL", struct.pack(">LL", frames, 0)) + sound[33:]


@pytest.mark.parametrize("case", COSTLY)
def test_a_bomb_is_refused_within_seconds_and_little_memory(case: str, tmp_path: Path) -> None:
    make, reason = COSTLY[case]
    path = tmp_path / "upload"
    path.write_bytes(make())
    before = sorted(os.listdir(tmp_path))
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, check=True, cwd=tmp_path
    )
    measured = json.loads(run.stdout)
    assert any(reason in got for got in measured["reasons"])
    assert measured["seconds"] < 5
    assert measured["memory"] < 300 * 2**20
    assert sorted(os.listdir(tmp_path)) == before


# --- names ----------------------------------------------------------------------------------------

SLIPPERY = [
    "../evil.png",
    "../../../../../../tmp/evil.png",
    "cat/../../evil.png",
    "cat/..",
    "cat/../",
    "..",
    "../",
    "./cat/1.png",
    "cat/./1.png",
    "/etc/passwd",
    "//etc/passwd",
    "/",
    "cat//1.png",
    "\\evil.png",
    "..\\evil.png",
    "cat\\..\\..\\evil.png",
    "\\\\server\\share\\evil.png",
    "C:\\evil.png",
    "C:/evil.png",
    "C:evil.png",
    "c:../evil.png",
    "file:///etc/passwd",
    "cat/evil\0.png",
    "\0",
    "cat/evil\n.png",
    "cat/evil\r\n.png",
    "cat/\x1b[2J.png",
    "cat/\x7f.png",
    "cat/\u202egnp.live",
    "cat/\u200b.png",
    "cat/\ufeff.png",
    "cat/\u2028.png",
    "cat/" + "a" * 500,
    "a/" * 300 + "1.png",
    "",
    " /../evil.png",
    "cat/.. /../evil.png",
    "%2e%2e/../evil.png",
    "nul/../../evil.png",
    "..;/../evil.png",
    b"cat/\xff\xfe.png",
    b"..\xc0\xafevil.png",
]


@pytest.mark.parametrize("name", SLIPPERY)
def test_a_name_that_is_not_plain_is_refused_and_nothing_is_written(
    name: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "a" / "b" / "c"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    reasons(pack_raw([*SOUND, Raw(name, png(9))]), inner)
    assert [path.name for path in sorted(tmp_path.rglob("*")) if path.is_file()] == ["upload"]


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (Raw("cat/3.png", b"/etc/passwd", mode=0o120777), "expected a plain file, got a link"),
        (Raw("cat/3.png", mode=0o020666), "expected a plain file, got a link or a device"),
        (Raw("cat/3.png", mode=0o010644), "expected a plain file, got a link or a device"),
        (Raw("cat/3.png", png(1), flags=0x801), "not encrypted"),
        (Raw("cat/3.png", png(1), flags=0x841), "not encrypted"),
        (Raw("cat/3.png", png(1), method=zipfile.ZIP_LZMA), "stored or deflated"),
        (Raw("cat/3.png", png(1), method=zipfile.ZIP_BZIP2), "stored or deflated"),
        (Raw("cat/3.png", png(1), method=9), "stored or deflated"),
        (Raw("cat/3.png", png(1), crc=1), "expected a sound member of the zip"),
        (Raw("cat/3.png", png(1), declared_size=9999), "expected a sound member of the zip"),
        (Raw("cat/3.png", png(1), declared_size=50), "expected a sound member of the zip"),
        (Raw("cat/3.png", b"no deflate", method=DEFLATED), "expected a sound member of the zip"),
        (Raw("cat/3.png", png(1), offset=10**9), "lies outside the archive"),
        (Raw("cat/3.png", png(1), offset=10), "overlaps 'cat/1.png' in the archive"),
        (Raw("cat/2.png", png(9)), "expected each name once"),
        (Raw("inner/a.zip", pack(two_classes())), "'inner/a.zip': an archive"),
    ],
)
def test_a_member_that_is_not_a_plain_file_is_refused(
    member: Raw, reason: str, tmp_path: Path
) -> None:
    extra = [Raw("inner/1.png", png(8))] if member.name == "inner/a.zip" else []
    assert any(reason in got for got in reasons(pack_raw([*SOUND, *extra, member]), tmp_path))


def test_two_spellings_of_one_name_are_one_name(tmp_path: Path) -> None:
    spellings = ["cat/caf\u00e9.png", "cat/cafe\u0301.png"]
    got = reasons(pack_raw([*SOUND, *(Raw(name, png(9)) for name in spellings)]), tmp_path)
    assert got == ["'cat/café.png': expected each name once, got it again: pack it anew"]


def test_an_archive_that_holds_itself_is_not_followed(tmp_path: Path) -> None:
    content = pack(two_classes())
    for _ in range(5):
        content = pack({**two_classes(), "cat/inner.zip": content})
    (reason,) = reasons(content, tmp_path)
    assert reason.startswith("expected images, got 'cat/inner.zip': an archive")


@pytest.mark.parametrize("keep", [4, 21, 22, 60, -1, -21, -40])
def test_an_archive_that_is_cut_short_is_refused(keep: int, tmp_path: Path) -> None:
    assert "expected a sound zip archive" in reasons(pack(two_classes())[:keep], tmp_path)[0]


def test_limits_on_members_are_named(tmp_path: Path) -> None:
    content = pack(two_classes())
    total = sum(len(data) for data in two_classes().values())
    for limits, reason in (
        (IntakeLimits(entries=3), "expected at most 3 files (ADAP_MAX_IMAGES), got 4"),
        (
            IntakeLimits(unpacked_bytes=total - 1),
            f"at most {total - 1} bytes unpacked, got {total}",
        ),
        (IntakeLimits(entry_bytes=9), "'cat/1.png': expected at most 9 bytes unpacked"),
    ):
        assert reason in reasons(content, tmp_path, limits=limits)[0]
    assert len(read(content, tmp_path, limits=IntakeLimits(entries=4, unpacked_bytes=total))) == 4


# --- pickles --------------------------------------------------------------------------------------


class Payload:
    """Whoever unpickles this leaves a canary behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("name", ["images", "labels", "classes", "split", "groups"])
def test_an_array_of_objects_is_refused_and_never_unpickled(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    arrays: dict[str, Any] = {
        "images": np.zeros((4, 8, 8), np.uint8),
        "labels": np.array([0, 1, 0, 1]),
        name: np.array([Payload(canary)] * 4, dtype=object),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    assert (
        f"{name}: expected numbers or text, got Python objects"
        in reasons(buffer.getvalue(), tmp_path)[0]
    )
    assert not canary.exists()
    with np.load(io.BytesIO(buffer.getvalue()), allow_pickle=True) as archive:
        archive[name]
    assert canary.exists()  # so the payload does work


def test_a_pickle_in_place_of_an_array_or_an_image_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    payload = pickle.dumps(Payload(canary))
    for members in (
        {"images.npy": payload, "labels.npy": payload},
        {**two_classes(), "cat/0.png": payload},
        {**two_classes(), "metadata.csv": payload},
    ):
        reasons(pack(members), tmp_path)
    reasons(payload, tmp_path)
    assert not canary.exists()


def test_an_array_whose_header_may_be_gigabytes_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([0, 1, 0, 1]), version=(2, 0))
    members = {"images.npy": buffer.getvalue(), "labels.npy": buffer.getvalue()}
    assert reasons(pack(members), tmp_path) == ["labels: expected the .npy format 1.0, got (2, 0)"]


# --- fuzz -----------------------------------------------------------------------------------------

IMAGES = [
    encode(pixels(1)),
    encode(pixels(1, channels=1)),
    encode(pixels(1), "JPEG"),
    encode(pixels(1), "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    encode(pixels(1), "WEBP"),
    encode(pixels(1), "WEBP", lossless=True),
]


@st.composite
def damaged(draw: st.DrawFn, *, of: list[bytes]) -> bytes:
    """One of these with some bytes changed, and perhaps cut short."""
    content = bytearray(draw(st.sampled_from(of)))
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


@given(content=damaged(of=IMAGES) | st.binary(max_size=64))
def test_any_image_decodes_or_is_refused(content: bytes) -> None:
    with strict_decoding():
        try:
            decoded = decode(content, max_pixels=64 * 64)
        except UnusableImageError:
            return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 2 or decoded.shape[2] == 3
    assert decoded.shape[0] * decoded.shape[1] <= 64 * 64


def array_file(header: bytes, data: bytes, version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


HEADERS = st.builds(
    lambda descr, order, shape: f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}",
    st.sampled_from(
        ["'|u1'", "'<f4'", "'<U3'", "'|O'", "'<m8[s]'", "[('a', '<f4')]", "'V9'", "'<U'"]
    )
    | st.text(max_size=8).map(repr),
    st.sampled_from(["True", "False", "1", "None"]),
    st.lists(st.integers(-1, 2**40), max_size=5).map(tuple)
    | st.sampled_from(["()", "(True,)", "[4]"]),
)


@given(
    images=st.builds(array_file, HEADERS.map(str.encode), st.binary(max_size=64))
    | st.builds(
        array_file,
        st.binary(max_size=64),
        st.binary(max_size=64),
        st.binary(min_size=2, max_size=2),
    ),
    labels=st.builds(
        array_file,
        HEADERS.map(str.encode)
        | st.just(b"{'descr': '<U2', 'fortran_order': False, 'shape': (2,)}"),
        st.binary(min_size=16, max_size=16),
    ),
)
def test_any_array_is_read_or_refused(
    images: bytes, labels: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        read(pack({"images.npy": images, "labels.npy": labels}), tmp_path_factory.mktemp("fuzz"))
    except Rejected as rejected:
        check_reasons(rejected)


TABLE = st.lists(
    st.lists(
        st.sampled_from(["file_name", "label", "split", "group", "1.png", "a", "train", '"', ""])
        | st.text(max_size=4),
        max_size=4,
    ).map(",".join),
    max_size=5,
).map("\n".join)


@given(table=TABLE.map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=32))
def test_any_table_of_labels_is_read_or_refused(
    table: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    members = {"metadata.csv": table, "1.png": png(1), "2.png": png(2)}
    try:
        read(pack(members), tmp_path_factory.mktemp("fuzz"))
    except Rejected as rejected:
        check_reasons(rejected)


@given(content=damaged(of=[pack(two_classes()), pack_raw(SOUND, tail=b"comment")]))
def test_any_archive_is_read_or_refused(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        image_set = read(content, tmp_path_factory.mktemp("fuzz"))
    except Rejected as rejected:
        check_reasons(rejected)
    else:
        assert image_set.images.shape == (4, 3, 8, 8)


def test_a_text_chunk_does_not_reach_the_reasons(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("k\n", "<script>\n" * 9)
    members = {f"{'ab'[i % 2]}/{i}": encode(pixels(i), pnginfo=info) for i in range(4)}
    assert len(read(pack(members), tmp_path)) == 4


@pytest.mark.parametrize("kind", ["<U0", "|S0", "|V0"])
def test_an_array_whose_values_have_no_width_is_refused_by_its_name(
    kind: str, tmp_path: Path
) -> None:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': (60,), }}\n".encode()
    images = io.BytesIO()
    np.save(images, np.zeros((60, 8, 8), np.uint8))
    members = {"images.npy": images.getvalue(), "labels.npy": array_file(header, b"")}
    (reason,) = reasons(pack(members), tmp_path)
    assert reason.startswith("labels: expected values of some width, got ")
