"""Files that are small and cost a decoder much are refused; what looks like them is decoded."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from adap.worker.intake.effort import (
    MAX_FILLING_BYTES,
    MAX_PARTS,
    MAX_RUNS_BYTES,
    MAX_SCANS,
    MAX_STRIPS,
)
from adap.worker.intake.images import UnusableImageError, decode, strict_decoding

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
PROGRESSIVE = {"progressive": True, "quality": 90}


def saved(form: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, form, **options)
    return file.getvalue()


def segment(content: bytes, marker: int = 0xE5) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    checked = kind + content
    return struct.pack(">L", len(content)) + checked + struct.pack(">L", zlib.crc32(checked))


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes so often that there are `count`."""
    data = saved("JPEG", **PROGRESSIVE)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[start:end] * (count - data.count(b"\xff\xda")) + b"\xff\xd9"


def decoded(data: bytes) -> np.ndarray:
    with strict_decoding():
        return decode(data, max_pixels=PIXELS.size)


def refusal(data: bytes) -> str:
    with pytest.raises(UnusableImageError) as found:
        decoded(data)
    return str(found.value)


def as_pillow_reads(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def test_a_jpeg_of_very_many_scans_is_refused_and_one_of_as_many_as_allowed_is_not() -> None:
    assert "at most 64 scans" in refusal(with_scans(MAX_SCANS + 1))
    assert "at most 64 scans" in refusal(with_scans(60_000))
    allowed = with_scans(MAX_SCANS)
    np.testing.assert_array_equal(decoded(allowed), as_pillow_reads(allowed))


def test_scans_in_a_thumbnail_or_behind_the_image_are_not_counted() -> None:
    data = saved("JPEG", **PROGRESSIVE)
    thumbnails = segment(b"\xff\xd8" + b"\xff\xda\xff\xd9" * 500) * 3
    video = np.random.default_rng(1).bytes(2**20) + b"\xff\xda" * 1000
    found = decoded(data[:2] + thumbnails + data[2:] + video)
    np.testing.assert_array_equal(found, as_pillow_reads(data))


def test_restart_markers_are_no_segments() -> None:
    data = saved("JPEG", restart_marker_blocks=1, subsampling=0)
    large = io.BytesIO()
    Image.new("L", (512, 512)).save(large, "JPEG", restart_marker_blocks=1)
    assert large.getvalue().count(b"\xff\xd0") > 500
    with strict_decoding():
        assert decode(large.getvalue(), max_pixels=512 * 512).shape == (512, 512)
    np.testing.assert_array_equal(decoded(data), as_pillow_reads(data))


def test_a_jpeg_of_very_many_segments_is_refused() -> None:
    data = saved("JPEG")
    assert "segments" in refusal(data[:2] + segment(b"") * 50_000 + data[2:])
    assert decoded(data[:2] + segment(b"") * (MAX_PARTS // 2) + data[2:]).shape == PIXELS.shape


@pytest.mark.parametrize("filling", [b"\xff", b"\0", b"\xff\0", b"\xff\xd0", b"ab"])
def test_a_jpeg_of_much_between_its_segments_is_refused_and_of_little_is_not(
    filling: bytes,
) -> None:
    data = saved("JPEG")
    second = data.index(b"\xff", 4)
    for place in (2, second):  # at once, and behind a segment
        much = filling * (2**20 // len(filling))
        assert "between its segments" in refusal(data[:place] + b"\xff" + much + data[place:])
    little = filling * (MAX_FILLING_BYTES // 2 // len(filling))
    np.testing.assert_array_equal(
        decoded(data[:second] + little + data[second:]), as_pillow_reads(data)
    )


def test_a_png_of_very_many_chunks_is_refused() -> None:
    data = saved("PNG")
    assert "chunks" in refusal(data[:33] + chunk(b"teSt") * 50_000 + data[33:])
    some = data[:33] + chunk(b"teSt") * (MAX_PARTS // 2) + data[33:]
    np.testing.assert_array_equal(decoded(some), PIXELS)


@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_that_declares_a_huge_canvas_is_refused_by_its_header(lossless: bool) -> None:
    data = saved("WEBP", lossless=lossless)
    np.testing.assert_array_equal(decoded(data), as_pillow_reads(data))
    side = (16383).to_bytes(3, "little")
    canvas = b"VP8X" + struct.pack("<L", 10) + bytes(4) + side + side
    body = b"WEBP" + canvas + data[12:]
    assert "(16384x16384)" in refusal(b"RIFF" + struct.pack("<L", len(body)) + body)
    plain = bytearray(data)
    if lossless:
        plain[21:25] = (0x0FFF_FFFF).to_bytes(4, "little")
    else:
        plain[26:30] = struct.pack("<HH", 16383, 16383)
    assert "ADAP_MAX_IMAGE_PIXELS" in refusal(bytes(plain))


def tiff_of(strips: int, order: str = "<") -> bytes:
    """One grey column: each row is a strip, and all of them are the same byte."""
    fields = [(256, 1), (257, strips), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1)]
    start = 8 + 2 + 12 * (len(fields) + 2) + 4
    entries = [struct.pack(f"{order}HHLL", tag, 4, 1, value) for tag, value in fields]
    sizes = start + 4 * strips
    entries.insert(5, struct.pack(f"{order}HHLL", 273, 4, strips, start))
    entries.append(struct.pack(f"{order}HHLL", 279, 4, strips, sizes))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}LH", 8, len(entries))
    pixel = struct.pack(f"{order}L", sizes + 4 * strips)
    ones = struct.pack(f"{order}L", 1)
    return head + b"".join(entries) + bytes(4) + pixel * strips + ones * strips + b"\x7f"


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_very_many_strips_is_refused_and_one_strip_a_row_is_not(order: str) -> None:
    allowed = tiff_of(MAX_STRIPS, order)
    with strict_decoding():
        found = decode(allowed, max_pixels=MAX_STRIPS)
    np.testing.assert_array_equal(found, np.full((MAX_STRIPS, 1), 0x7F))
    assert f"at most {MAX_STRIPS} strips" in refusal(tiff_of(MAX_STRIPS + 1, order))


def test_a_tiff_of_very_many_tags_is_refused() -> None:
    data = saved("TIFF")
    (start,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    own = data[start + 2 : start + 2 + 12 * count]
    more = b"".join(struct.pack("<HHLL", 40_000, 4, 1, 0) for _ in range(60_000))
    rest = struct.pack("<H", count + 60_000) + own + more + bytes(4)
    assert "tags" in refusal(data[:4] + struct.pack("<L", len(data)) + data[8:] + rest)
    assert decoded(data).shape == PIXELS.shape


def test_a_bmp_of_very_many_runs_is_refused_and_a_usual_one_is_not() -> None:
    def packed(runs: bytes) -> bytes:
        head = struct.pack("<LllHHLLllLL", 40, 16, 16, 1, 8, 1, len(runs), 0, 0, 256, 0)
        colours = b"".join(bytes([i, i, i, 0]) for i in range(256))
        start = 14 + len(head) + len(colours)
        file = b"BM" + struct.pack("<LHHL", start + len(runs), 0, 0, start)
        return file + head + colours + runs

    rows = b"".join(bytes([16, 10 * row]) + b"\0\0" for row in range(16)) + b"\0\1"
    np.testing.assert_array_equal(decoded(packed(rows)), as_pillow_reads(packed(rows)))
    assert "packed runs" in refusal(packed(b"\1\0" * (MAX_RUNS_BYTES // 2 + 1)))


def test_turning_an_image_upright_reads_no_other_tag() -> None:
    """4 MB of rationals in one tag, which take seconds to read and to write again."""
    block = bytes([1, 0, 0, 0]) * 1_000_000
    entries = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0)
    entries += struct.pack("<HHLL", 40_000, 5, len(block) // 8, 8 + 2 + 24 + 4)
    exif = b"II*\0" + struct.pack("<LH", 8, 2) + entries + bytes(4) + block
    data = saved("PNG")
    begun = time.process_time()
    found = decoded(data[:33] + chunk(b"eXIf", exif) + data[33:])
    assert time.process_time() - begun < 0.5
    np.testing.assert_array_equal(found, np.rot90(PIXELS, -1))
