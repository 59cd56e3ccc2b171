"""Zips made for tests: honest ones by the standard library, hostile ones byte by byte."""

import csv
import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DEFLATED = zipfile.ZIP_DEFLATED
STORED = zipfile.ZIP_STORED


def pixels(seed: int, *, channels: int = 3, size: tuple[int, int] = (8, 8)) -> NDArray[np.uint8]:
    """(H, W, 3) or (H, W) noise; equal seeds give equal images."""
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encode(array: NDArray[np.uint8] | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int) -> bytes:
    return encode(pixels(seed))


def pack(members: Mapping[str, bytes], *, method: int = DEFLATED) -> bytes:
    """An honest zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def two_classes(**more: bytes) -> dict[str, bytes]:
    """The smallest data set: two images in each of two classes."""
    return {
        "cat/1.png": png(1),
        "cat/2.png": png(2),
        "dog/1.png": png(3),
        "dog/2.png": png(4),
        **more,
    }


def metadata(rows: Sequence[Mapping[str, str]]) -> bytes:
    """A metadata.csv with the columns of the first row."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def grouped(
    *groups: str, splits: Sequence[str] = ("train", "test"), per_class: int = 12
) -> dict[str, bytes]:
    """Grey 8x8 cats and dogs in each split of each group, as metadata.csv says.

    Cats are brighter than dogs, by less from group to group: the first is ranked well by
    brightness, each further one worse.
    """
    random = np.random.default_rng(0)
    members: dict[str, bytes] = {}
    rows = []
    for i, group in enumerate(groups):
        for split in splits:
            for label, side in (("cat", 1), ("dog", -1)):
                for level in random.normal(128 + side * 64 / 4**i, 24, per_class):
                    image = level + random.uniform(-8, 8, (8, 8))
                    name = f"images/{len(rows):04d}.png"
                    members[name] = encode(image.clip(0, 255).astype(np.uint8))
                    rows.append({"file_name": name, "label": label, "split": split, "group": group})
    return {"metadata.csv": metadata(rows), **members}


@dataclass(frozen=True)
class Raw:
    """One member of a zip, whatever it claims about itself."""

    name: str | bytes
    content: bytes = b""  # as it stands in the file: packed, if the method says so
    method: int = STORED
    declared_size: int | None = None
    crc: int | None = None
    flags: int = 0x800  # the name is UTF-8
    mode: int = 0o100644
    offset: int | None = None  # of the local header; by default where it is


def pack_raw(members: Iterable[Raw], *, tail: bytes = b"") -> bytes:
    """A zip with exactly these members, true or not."""
    data, directory, count = b"", b"", 0
    for member in members:
        name = member.name.encode() if isinstance(member.name, str) else member.name
        size = len(member.content) if member.declared_size is None else member.declared_size
        crc = zlib.crc32(member.content) if member.crc is None else member.crc
        sizes = struct.pack("<LLL", crc, len(member.content), size)
        common = struct.pack("<HHHL", 20, member.flags, member.method, 0x21 << 16) + sizes
        offset = len(data) if member.offset is None else member.offset
        data += b"PK\3\4" + common + struct.pack("<HH", len(name), 0) + name + member.content
        directory += b"PK\1\2" + struct.pack("<H", 0x314) + common
        directory += struct.pack("<HHHHHLL", len(name), 0, 0, 0, 0, member.mode << 16, offset)
        directory += name
        count += 1
    end = struct.pack("<HHHHLLH", 0, 0, count, count, len(directory), len(data), len(tail))
    return data + directory + b"PK\5\6" + end + tail


def deflated_zeros(gibibytes: int) -> bytes:
    """A raw deflate stream that unpacks to this many GiB of zeros, 1,000 times its own size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    final = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    return block * (64 * gibibytes) + final
