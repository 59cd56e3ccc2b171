"""Decoding effort of an image file, foreseen by its bytes before a decoder sees them.

A file of a few hundred kilobytes can keep a decoder busy for minutes: a JPEG is gone over once more
for each of its scans, and every segment, chunk, tag or strip is a step of a parser. A WebP can have
memory set aside for a canvas that its pixels never fill, and the packed runs of a BMP are unpacked
one by one in Python, as is what fills a JPEG between its segments. So scans, parts, filling,
strips, runs and canvas are counted here, once for data sets
and for scoring alike; what is over the limit is refused in a sentence. Damage is none of this
module's business: the decoder says what is wrong. Frames of a GIF and elements of a DICOM file are
counted where they are read.

Source: ITU T.81, annex B (JPEG markers); RFC 2083, section 3 (PNG chunks); RFC 9649 (WebP);
TIFF 6.0, section 2 (directories); BITMAPINFOHEADER (BMP).
"""

import re
import struct

MAX_SCANS = 64  # encoders that search for the best script end below 20
MAX_PARTS = 1000  # segments or chunks of any size; a larger file may have more:
PART_BYTES = 1024  # one more for each of these
MAX_FILLING_BYTES = 8192  # between the segments of a JPEG, which Pillow reads one by one
MAX_STRIPS = 16_384  # or tiles of a TIFF: one a row, of the tallest images that there are
MAX_RUNS_BYTES = 2 * 1024**2  # of a BMP whose pixels are packed as runs

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_STRIPS, _TILES = 273, 324  # tags: where each of them is
_RUNS = (1, 2)  # compression of a BMP, of 8 bits and of 4
_START_OF_SCAN, _END = 0xDA, 0xD9
_BARE = (0xD8, 0x01)  # markers that nothing belongs to: start of image, temporary
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")  # restarts stand inside a scan


def effort_problem(data: bytes, *, max_pixels: int) -> str | None:
    """Why an image file would cost its decoder too much; None where it does not."""
    if data.startswith(_JPEG):
        return _jpeg_problem(data)
    if data.startswith(_PNG):
        return _parts_problem(_chunks(data), data, "chunks")
    if data.startswith(_TIFF):
        return _tiff_problem(data)
    if data.startswith(b"BM"):
        return _bmp_problem(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        width, height = _canvas(data)
        if width * height > max_pixels:
            return (
                f"expected at most {max_pixels} pixels (ADAP_MAX_IMAGE_PIXELS), "
                f"got {width * height} ({width}x{height})"
            )
    return None


def _jpeg_problem(data: bytes) -> str | None:
    if (filling := _filling(data)) > MAX_FILLING_BYTES:
        return (
            f"expected a JPEG of at most {MAX_FILLING_BYTES} bytes between its segments, got "
            f"{filling} or more: save it again"
        )
    bounds = data.count(b"\xff") - data.count(b"\xff\x00"), data.count(b"\xff\xda")
    if bounds[0] <= MAX_PARTS and bounds[1] <= MAX_SCANS:  # no more than these, wherever they are
        return None
    segments = scans = position = 0
    while found := _MARKER.search(data, position):
        marker, position = found[1][0], found.end()
        if marker == _END:
            break
        if marker in _BARE:
            continue
        segments += 1
        scans += marker == _START_OF_SCAN
        if scans > MAX_SCANS:
            return (
                f"expected a JPEG of at most {MAX_SCANS} scans, got more: "
                "save it again, baseline or with a usual progressive script"
            )
        if problem := _parts_problem(segments, data, "segments"):
            return problem
        position += int.from_bytes(data[position : position + 2])
    return None


def _filling(data: bytes) -> int:
    """Bytes before the first scan that belong to no segment, at least as far as there are many."""
    filling = position = 0
    for _ in range(MAX_PARTS + len(data) // PART_BYTES):
        found = _MARKER.search(data, position)
        if found is None:
            return filling + len(data) - position if position < len(data) else filling
        filling += found.end() - position - 2
        marker, position = found[1][0], found.end()
        if marker in (_START_OF_SCAN, _END) or filling > MAX_FILLING_BYTES:
            break
        if marker not in _BARE:
            position += int.from_bytes(data[position : position + 2])
    return filling


def _parts_problem(count: int, data: bytes, what: str) -> str | None:
    most = MAX_PARTS + len(data) // PART_BYTES
    if count <= most:
        return None
    return f"expected at most {most} {what} in a file of {len(data)} bytes, got more: save it again"


def _chunks(data: bytes) -> int:
    """How many chunks a PNG has, or one more than are allowed."""
    most = MAX_PARTS + len(data) // PART_BYTES
    count, position = 0, len(_PNG)
    while position + 8 <= len(data) and count <= most:
        length, kind = struct.unpack_from(">L4s", data, position)
        count += 1
        if kind == b"IEND":
            break
        position += length + 12
    return count


def _tiff_problem(data: bytes) -> str | None:
    """Of its first image: more than one are refused, and no decoder looks at the others."""
    order, big = "<" if data[:1] == b"I" else ">", b"+" in data[:4]
    length, entry = (f"{order}Q", f"{order}HHQ") if big else (f"{order}H", f"{order}HHL")
    try:
        (start,) = struct.unpack_from(f"{order}{'Q' if big else 'L'}", data, 8 if big else 4)
        (tags,) = struct.unpack_from(length, data, start)
        if problem := _parts_problem(tags, data, "tags"):
            return problem
        for i in range(tags):
            place = start + struct.calcsize(length) + i * (20 if big else 12)
            tag, _, count = struct.unpack_from(entry, data, place)
            if tag in (_STRIPS, _TILES) and count > MAX_STRIPS:
                return (
                    f"expected a TIFF of at most {MAX_STRIPS} strips or tiles, got {count}: save "
                    "it again, in larger ones"
                )
    except struct.error:  # cut off
        return None
    return None


def _bmp_problem(data: bytes) -> str | None:
    try:
        start, _, _, _, _, packing = struct.unpack_from("<LLllLL", data, 10)
    except struct.error:
        return None
    runs = len(data) - start
    if packing in _RUNS and runs > MAX_RUNS_BYTES:
        return (
            f"expected a BMP of at most {MAX_RUNS_BYTES} bytes of packed runs, got {runs}: save it "
            "as PNG"
        )
    return None


def _canvas(data: bytes) -> tuple[int, int]:
    """Width and height that a WebP declares; (0, 0) where it says nothing that is understood."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return 0, 0
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0
