"""Files that hold images and labels in a form that is not read, recognised to say the way on.

Arrays (NumPy, HDF5, MATLAB, IDX as MNIST, CIFAR's pickles and binaries), records (TFRecord, LMDB,
Arrow), volumes (NIfTI), tables of pixels, and archives inside of archives. Only the beginning of a
file and its name are looked at; nothing is opened.
"""

import re
import zlib
from collections.abc import Sequence

from adap.models.formats import describe
from adap.worker.intake.archive import AnyArchive
from adap.worker.intake.examples import suffix_of
from adap.worker.intake.limits import Rejected
from adap.worker.intake.notes import listed

_HEAD = 4096  # bytes of a file that are looked at, after one gzip
_MOST_KINDS = 8  # suffixes of which a file is looked at
_IMAGES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".dcm"),
    *(".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm", ".pgm", ".pbm"),
}
_NPZ = (
    "load it where you trust it, and write an NPZ: np.savez_compressed('data.npz', images=images, "
    "labels=labels)"
)
_CIFAR = (
    "as the folder that was unpacked it is packed by adap dataset add FOLDER --from cifar10 (or "
    "cifar100)"
)
_FILES = "write its images as files in class folders, or an NPZ or Parquet of them"
_INNER = "send it alone, or all unpacked, as a folder or a zip of it; leave it out if it is no part"
_TARS = "send the folder, or a zip of it, in which each tar is a split or a class"
_VOLUME = (
    "NIfTI, a volume",
    "write its slices as 16-bit PNG or TIFF, or as an NPZ with `levels` (--levels LOW:HIGH)",
)

_BEGINNINGS = (
    (re.compile(rb"\x89HDF\r\n\x1a\n|MATLAB 7\.3 "), "HDF5", _NPZ),
    (re.compile(rb"MATLAB 5\.0 "), "MATLAB's form", _NPZ),
    (re.compile(rb"\x93NUMPY"), "one NumPy array", _NPZ),
    (re.compile(rb"\0\0[\x08-\x0e][\x01-\x04]"), "IDX, as MNIST is published", _NPZ),
    (re.compile(rb"\x5c\x01\0\0|\0\0\x01\x5c|\x1c\x02\0\0n\+2\0"), *_VOLUME),
    (
        re.compile(rb"ARROW1\0\0|\xff\xff\xff\xff..\0\0", re.DOTALL),
        "Arrow, as Hugging Face's save_to_disk writes it",
        "write Parquet: dataset.to_parquet('train.parquet')",
    ),
    (re.compile(rb".{16}\xde\xc0\xef\xbe", re.DOTALL), "LMDB", _FILES),
    # a length of 64 bits and its checksum, then the first field of an Example
    (re.compile(rb".{4}\0{4}.{4}\n", re.DOTALL), "TFRecord", _FILES),
)
_ARCHIVE = re.compile(rb"PK\x03\x04|Rar!|7z\xbc\xaf\x27\x1c|PAR1")
_NAMES = (  # of a file, with its folders
    (re.compile(r"(.*/)?((data|test)_batch(_\d)?(\.bin)?|cifar-100?-[^/]+/.*)"), "CIFAR", _CIFAR),
    (re.compile(r".*\.tfrec(ord)?s?([-_.]\d+.*)?"), "TFRecord", _FILES),
    (re.compile(r"(.*/)?data\.mdb"), "LMDB", _FILES),
    (re.compile(r".*\.nii(\.gz)?"), *_VOLUME),
)
_PIXEL = re.compile(r"(pixels?|px|pix)[ _-]?\d*(x\d+)?|\d+x\d+", re.IGNORECASE)


def way_on_from(name: str, head: bytes) -> str | None:
    """What a file is that begins so, and what to send instead; None for all others."""
    head = _unpacked(head)
    for pattern, kind, instead in _NAMES:
        if pattern.fullmatch(name.lower()):
            return f"{kind}, which is not read: {instead}"
    for start, kind, instead in _BEGINNINGS:
        if start.match(head):
            return f"{kind}, which is not read: {instead}"
    if (kind := describe(head, b"")).startswith("a Python pickle"):
        return f"a Python pickle, which runs code when it is opened and never is here: {_NPZ}"
    if _is_table_of_pixels(head):
        return (
            "a table of pixels: write an NPZ of it, np.savez_compressed('data.npz', "
            "images=pixels.reshape(-1, HEIGHT, WIDTH).astype('uint8'), labels=labels)"
        )
    return None


def refuse_containers(archive: AnyArchive, images: Sequence[str]) -> None:
    """Raise Rejected, in one sentence, where what should be images are files of another form.

    images: those of the archive that their names do not tell to be something else.
    """
    if any(name.rpartition("/")[2] == "data.pkl" for name in archive.names):
        raise Rejected(f"expected images, got what torch.save wrote, a pickle: {_NPZ}")
    kinds: dict[str, list[str]] = {}
    for name in images or archive.names:
        if (suffix := suffix_of(name)) not in _IMAGES:
            kinds.setdefault(suffix, []).append(name)
    for names in list(kinds.values())[:_MOST_KINDS]:
        try:
            head = archive.read(names[0])[:_HEAD]
        except Rejected:  # larger than an image may be: its name may tell
            head = b""
        told = f"{_inner(head)}: {_INNER}" if _ARCHIVE.match(head) else way_on_from(names[0], head)
        if told is None and suffix in (".tar", ".tgz", ".zst"):
            told = f"a tar inside of a tar: unpack the outer one, and {_TARS}"
        if told:
            raise Rejected(f"expected images, got {listed(names)}: {told}")


def _inner(head: bytes) -> str:
    return "Parquet" if head.startswith(b"PAR1") else "an archive"


def _unpacked(head: bytes) -> bytes:
    """The beginning of what is in a gzip, or of the file itself."""
    if head.startswith(b"\x1f\x8b"):
        try:
            return zlib.decompressobj(31).decompress(head, _HEAD)
        except zlib.error:
            pass
    return head[:_HEAD]


def _is_table_of_pixels(head: bytes) -> bool:
    """Whether the first line names pixels as columns, as Kaggle's digits and faces do."""
    try:
        columns = head.partition(b"\n")[0].decode("ascii").strip().split(",")
    except UnicodeDecodeError:
        return False
    found = [name for name in columns if _PIXEL.fullmatch(name.strip(' "'))]
    return len(columns) > 1 and len(found) >= max(1, len(columns) - 3)
