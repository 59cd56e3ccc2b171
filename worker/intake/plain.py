"""The plainest JPEG and PNG files to pixels, in a fraction of the time that Pillow takes.

For a small image Pillow's parsers in Python cost more than its decoders. So the few header fields
that matter are read here; then simplejpeg, the same libjpeg-turbo as Pillow's, decodes a JPEG, and
Pillow's own decoder, called with the same arguments, a PNG. Plain is what most data sets are full
of: JPEG, baseline or progressive, grey or of three components, without EXIF or profiles; PNG, 8
bits, grey or RGB, not interlaced, no transparency. Everything else, and whatever is damaged, is
None: `adap.worker.intake.images` then reads it and says what is wrong. So nothing is accepted here
that Pillow refuses, and pixels are the same; tests compare the two.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from simplejpeg import decode_jpeg

_COLOURS = {1: "GRAY", 3: "RGB"}  # by components of a JPEG

_SOS = 0xDA
_APP0 = 0xE0
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_TABLES = (0xC4, 0xDB, 0xDD, 0xFE)  # Huffman, quantisation, restart interval, comment

_PNG = b"\x89PNG\r\n\x1a\n"
_IHDR = struct.Struct(">LLBBBBB")
_CHUNK = struct.Struct(">L4s")
_PNG_MODES = {(8, 0, 0, 0, 0): "L", (8, 2, 0, 0, 0): "RGB"}
_HARMLESS = {b"gAMA": 4, b"sRGB": 1, b"pHYs": 9, b"cHRM": 32, b"tIME": 7}  # of these lengths


def decode_plain(data: bytes, *, max_pixels: int) -> NDArray[np.uint8] | None:
    """(H, W) or (H, W, 3) of a plain file of at most `max_pixels`; None for all others."""
    try:
        if data.startswith(b"\xff\xd8\xff"):
            found = _jpeg_header(data)
            if found is None or not 0 < found[1] * found[2] <= max_pixels:
                return None
            colour, width, height = found
            pixels: NDArray[np.uint8] = decode_jpeg(data, colour)
            if pixels.shape[:2] != (height, width):
                return None
            return pixels[..., 0] if colour == "GRAY" else pixels
        if data.startswith(_PNG):
            parts = _png_parts(data, max_pixels)
            if parts is None:
                return None
            mode, size, packed = parts
            image = Image.frombytes(mode, size, packed, "zip", mode)
            # np.asarray asks for the same bytes, in a longer way
            bands = () if mode == "L" else (3,)
            return np.frombuffer(image.tobytes(), np.uint8).reshape(size[1], size[0], *bands)
        return None
    except (IndexError, KeyError, ValueError, OSError, struct.error):
        return None


def _jpeg_header(data: bytes) -> tuple[str, int, int] | None:
    """Colours, width and height, where there are no markers but those of a plain file."""
    found = None
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        length = data[at + 2] << 8 | data[at + 3]
        if marker in _FRAMES:
            if found is not None or data[at + 4] != 8:
                return None
            height = data[at + 5] << 8 | data[at + 6]
            width = data[at + 7] << 8 | data[at + 8]
            found = _COLOURS[data[at + 9]], width, height
        elif marker == _SOS:
            return found
        elif marker == _APP0:
            if length < 16:  # a JFIF header that Pillow could not read
                return None
        elif marker not in _TABLES:
            return None
        if length < 2:
            return None
        at += 2 + length
    return None


def _png_parts(data: bytes, max_pixels: int) -> tuple[str, tuple[int, int], bytes] | None:
    """Mode, (width, height) and the packed pixels, where there are only the chunks of a plain file.

    All checksums must fit, and nothing but IEND may follow the pixels.
    """
    length, kind = _CHUNK.unpack_from(data, 8)
    if kind != b"IHDR" or length != _IHDR.size or not _is_sound(data, 8, length):
        return None
    width, height, *rest = _IHDR.unpack_from(data, 16)
    mode = _PNG_MODES[tuple(rest)]
    if not 0 < width * height <= max_pixels:
        return None
    packed: list[bytes] = []
    at = 8 + 12 + length
    while True:
        length, kind = _CHUNK.unpack_from(data, at)
        if not _is_sound(data, at, length):
            return None
        if kind == b"IDAT":
            packed.append(data[at + 8 : at + 8 + length])
        elif kind == b"IEND":
            return mode, (width, height), b"".join(packed)
        elif packed or _HARMLESS.get(kind) != length:
            return None
        at += 12 + length


def _is_sound(data: bytes, at: int, length: int) -> bool:
    """Whether a chunk lies within the file and its checksum fits."""
    end = at + 8 + length
    return data[end : end + 4] == zlib.crc32(data[at + 4 : end]).to_bytes(4)
