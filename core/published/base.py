"""Base of the published data sets: finding their files, decoding their images.

Files lie where their publisher puts them; nothing is downloaded. Large images are decoded once,
resized, into an .npy file that later readings map into memory.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from adap.core.datasets import ImageSet
from adap.core.errors import ConfigError, DataError

OnProgress = Callable[[int, int], None]
Box = tuple[int, int, int, int]


class MissingFileError(DataError):
    """A file of a published data set is not there; the message says where it comes from."""


@dataclass(frozen=True)
class Reading:
    """How a data set is to be read.

    labels: which of its labellings, None for the first.  size: height and width of the images,
    None for the default.  cache: folder of decoded images.  on_progress: told of images decoded.
    """

    labels: str | None
    size: int | None
    cache: Path
    on_progress: OnProgress

    def labelling(self, known: Sequence[str]) -> str:
        """The labelling asked for. ConfigError for one that the data set does not have."""
        if self.labels is None:
            return known[0]
        if self.labels not in known:
            raise ConfigError(f"expected labels among {', '.join(known)}; got {self.labels}")
        return self.labels


@dataclass(frozen=True)
class Published:
    """A data set as its publisher lays it out.

    tasks: those of the paper, as labelling (None for the only one) and positive class.
    """

    name: str
    description: str
    source: str
    tasks: tuple[tuple[str | None, str], ...]
    read: Callable[[Path, Reading], ImageSet]


def find(root: Path, name: str, *, places: Sequence[str], source: str) -> Path:
    """The file or folder `name` in the first of these places below the root.

    Raises MissingFileError that names the likeliest path and where the file comes from.
    """
    for place in places:
        path = root / place / name
        if path.exists():
            return path
    raise MissingFileError(f"expected {root / places[0] / name}, got no such file; {source}")


def decoded(
    paths: Sequence[Path], *, height: int, width: int, crop: Box | None = None, reading: Reading
) -> NDArray[np.uint8]:
    """(N, 3, height, width) uint8 images, decoded once and mapped into memory from then on.

    crop: box (left, upper, right, lower) that is cut out before resizing.
    The cache's name is a hash of the size and of every file's path, length and time of change, so
    that other files make another cache. It is whole or not there, whatever is killed when, and one
    process makes it while others wait. Raises MissingFileError for an image that is not there,
    DataError for a file that is no image, ConfigError for a cache that cannot be written.
    """
    text = hashlib.sha256(f"{height} {width} {crop}".encode())
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise MissingFileError(
                f"expected {path}, which the labels name, got no such file"
            ) from error
        text.update(f"{os.path.abspath(path)}\0{status.st_size} {status.st_mtime_ns}\n".encode())
    final = reading.cache / f"{text.hexdigest()[:32]}.npy"
    if not final.exists():
        with alone(reading.cache):
            if not final.exists():  # nobody has made it while we waited
                with replacing(final) as partial:
                    _decode(paths, partial, height, width, crop, reading.on_progress)
    images: NDArray[np.uint8] = np.load(final, mmap_mode="r", allow_pickle=False)
    return images


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to that takes the place of `path` at the end, or is gone on an error."""
    partial = path.with_name(f"{path.name}.part")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def alone(cache: Path) -> Iterator[None]:
    """The folder, made if need be, with no other process of this house writing to it.

    Raises ConfigError where it cannot be written to.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / "lock").open("ab")
    except OSError as error:
        raise ConfigError(
            f"expected a cache, a folder for decoded images that can be written to: {error}"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _decode(
    paths: Sequence[Path],
    target: Path,
    height: int,
    width: int,
    crop: Box | None,
    on_progress: OnProgress,
) -> None:
    images = np.lib.format.open_memmap(
        target, mode="w+", dtype=np.uint8, shape=(len(paths), 3, height, width)
    )

    def one(number: int) -> None:
        images[number] = read_image(paths[number], height=height, width=width, crop=crop)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the GIL
        try:
            for done, _ in enumerate(pool.map(one, range(len(paths))), start=1):
                on_progress(done, len(paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    images.flush()


def read_image(
    path: Path, *, height: int | None, width: int | None, crop: Box | None = None
) -> NDArray[np.uint8]:
    """(3, height, width) uint8; in its own size where none is given."""
    try:
        with Image.open(path) as image:
            if crop is None and height is not None and width is not None:
                image.draft("RGB", (width, height))  # JPEG: decodes only what the size needs
            rgb = image.convert("RGB")
    except FileNotFoundError as error:
        raise MissingFileError(f"expected {path}, got no such file") from error
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"expected an image in {path}, got {error}") from error
    if height is not None and width is not None:
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR, box=crop)
    return np.asarray(rgb).transpose(2, 0, 1)
