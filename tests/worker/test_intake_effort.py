"""Files that are small and cost a decoder much are refused; what looks like them is decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from adap.worker.intake.effort import MAX_PARTS, MAX_SCANS
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
