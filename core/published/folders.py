"""Images in class folders, as torchvision's ImageFolder reads them, also below split folders.

    root/cat/0.png                   or  root/train/cat/0.png, root/test/cat/1.png

The root is a folder or a zip of one. All images have one size, or are resized to `size`. Only for
files that are trusted: what others upload is opened by `adap.worker.intake`, in a sandbox.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from adap.core.config.base import SPLITS
from adap.core.datasets import ImageSet
from adap.core.errors import DataError
from adap.core.published.base import MissingFileError, Published, Reading

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


def _read(root: Path, reading: Reading) -> ImageSet:
    reading.labelling(("folder",))
    if root.is_dir():
        files = {
            path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()
        }
        named = sorted(name for name in files if _is_image(name))
        contents = (files[name].read_bytes() for name in named)
        return _join(root, named, contents, reading)
    if not zipfile.is_zipfile(root):
        raise MissingFileError(f"expected a folder or a zip of class folders in {root}, got none")
    with zipfile.ZipFile(root) as archive:
        named = sorted(name for name in archive.namelist() if _is_image(name))
        return _join(root, named, (archive.read(name) for name in named), reading)


def _is_image(name: str) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and name.lower().endswith(SUFFIXES)


def _join(root: Path, names: list[str], contents: Iterator[bytes], reading: Reading) -> ImageSet:
    parts = [name.split("/") for name in names]
    split_folders = bool(parts) and all(part[0] in SPLITS for part in parts)
    depth = 3 if split_folders else 2
    for name, part in zip(names, parts, strict=True):
        if len(part) != depth:
            raise DataError(f"expected images in class folders of {root}, got {name}")
    classes = sorted({part[-2] for part in parts})
    if len(classes) < 2:
        raise DataError(f"expected at least two class folders with images in {root}, got {classes}")
    images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None = None
    for number, (name, content) in enumerate(zip(names, contents, strict=True)):
        pixels = _pixels(name, content, reading.size)
        if images is None:
            images = np.empty((len(names), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise DataError(
                "expected images of one size, or a size to bring them to, got "
                f"{images.shape[3]}x{images.shape[2]} and {pixels.shape[2]}x{pixels.shape[1]} "
                f"({name})"
            )
        images[number] = pixels
        reading.on_progress(number + 1, len(names))
    assert images is not None
    return ImageSet(
        images=images,
        labels=np.array([classes.index(part[-2]) for part in parts], np.int64),
        classes=classes,
        example_ids=names,
        splits=np.array([SPLITS.index(part[0]) for part in parts], np.int8)
        if split_folders
        else None,
    )


def _pixels(
    name: str, content: bytes, size: int | None
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(3, H, W) uint8."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            rgb = image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"expected an image in {name}, got {error}") from error
    if size is not None:
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb).transpose(2, 0, 1)


FOLDER = Published(
    name="folder",
    description="class folders of PNG, JPEG or WebP images, also below train/, validation/, test/",
    source="any folder, or zip of one",
    tasks=(),
    read=_read,
)
