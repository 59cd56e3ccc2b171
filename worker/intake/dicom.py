"""One DICOM file to pixels: a frame of one channel, uncompressed or RLE, by its window or levels.

Of all elements only those named here are made values: patients' names, ids and dates are passed
over, never kept, and no message repeats what a file holds. Values are rescaled to their modality's
unit (Hounsfield, for CT); then `levels` say which become black and white, else the first window of
the file does, else they are 8 bits as they stand. What is white at low values (MONOCHROME1) is
inverted. Imported only when such a file comes: pydicom takes a while to start.

Source: DICOM PS3.3, C.7.6.3 (pixels), C.11.1 (rescale), C.11.2.1 (window); PS3.5, annex G (RLE).
"""

import io
import logging
import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels.processing import apply_rescale

from adap.core.config.data import Levels
from adap.worker.intake.images import (
    WHOLE_PIXELS,
    Odd,
    Picture,
    Rules,
    UnscaledError,
    UnusableImageError,
    scaled,
)

MAX_READS = 50_000  # an element takes a few; images from scanners have some hundred elements

_ELEMENTS = [
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
]
_UNCOMPRESSED = (
    pydicom.uid.ImplicitVRLittleEndian,
    pydicom.uid.ExplicitVRLittleEndian,
    pydicom.uid.ExplicitVRBigEndian,
)
_RLE = pydicom.uid.RLELossless
_RLE_HEADER = struct.Struct("<16L")  # the number of segments, and where each begins
_RLE_PADDING = 1024  # bytes behind the pixels of a segment that do no harm
# all of it would be unpacked before any of it could be looked at
_DEFLATED = str(pydicom.uid.DeflatedExplicitVRLittleEndian).encode()
_GREY = ("MONOCHROME1", "MONOCHROME2")
# all that pydicom raises for damaged files
_DAMAGED = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    struct.error,
)
_UNREADABLE = (
    *_DAMAGED,
    Warning,
    NotImplementedError,
    RecursionError,
    pydicom.errors.InvalidDicomError,
)

logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # it would write values


def read_dicom(data: bytes, rules: Rules) -> Picture:
    """The image in a DICOM file; raises UnusableImageError for others than are described above."""
    if _DEFLATED in data:
        raise _compressed("Deflated Explicit VR Little Endian")
    try:
        dataset: Any = pydicom.dcmread(_CountedReads(data), specific_tags=[*_ELEMENTS])
        _check(dataset, rules)
        return _picture(dataset, rules.levels)
    except UnusableImageError:
        raise
    except _UNREADABLE as error:
        raise UnusableImageError(
            f"does not decode as DICOM ({type(error).__name__})", damaged=True
        ) from error


class _CountedReads(io.BytesIO):
    """A file that is read a limited number of times: elements are looked at one by one."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise UnusableImageError("expected a DICOM file of fewer elements: save it again")
        return super().read(size)


def _check(dataset: Any, rules: Rules) -> None:
    """Raise UnusableImageError where the pixels could not be read or shown, before they are."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in (*_UNCOMPRESSED, _RLE):
        raise _compressed(syntax.name if syntax.is_transfer_syntax else "an unknown syntax")
    if "PixelData" not in dataset:
        raise UnusableImageError("expected a DICOM image, got one without pixels")
    if dataset.PhotometricInterpretation not in _GREY or dataset.SamplesPerPixel != 1:
        raise UnusableImageError(
            "expected one channel (MONOCHROME1 or MONOCHROME2), got colours: save it as PNG"
        )
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise UnusableImageError("expected a single frame: save each as a file of its own")
    if dataset.BitsAllocated not in (8, 16):
        raise UnusableImageError(f"expected 8 or 16 bits allocated, got {dataset.BitsAllocated}")
    pixels = dataset.Rows * dataset.Columns
    most = rules.max_pixels if rules.resize is None else max(rules.max_pixels, WHOLE_PIXELS)
    if not 0 < pixels <= most:
        raise UnusableImageError(
            f"expected 1 to {most} pixels (ADAP_MAX_IMAGE_PIXELS), got {pixels} "
            f"({dataset.Columns}x{dataset.Rows})"
        )
    if syntax == _RLE:
        _check_runs(dataset.PixelData, pixels=pixels)
    if dataset.get("ModalityLUTSequence"):
        raise UnusableImageError(
            "expected values that a slope and an intercept rescale, got a table (Modality LUT): "
            "apply it and save again"
        )


def _check_runs(encapsulated: bytes, *, pixels: int) -> None:
    """Raise UnusableImageError where runs would unpack to more bytes than the image has pixels.

    Each segment holds one byte of every pixel; two bytes of it may stand for 128.
    """
    (frame,) = pydicom.encaps.generate_frames(encapsulated, number_of_frames=1)
    count, *starts = _RLE_HEADER.unpack_from(frame)
    segments = list(pairwise([*starts[:count], len(frame)]))
    if not (
        1 <= count <= len(starts)
        and starts[0] >= _RLE_HEADER.size
        and all(start < end for start, end in segments)
    ):
        raise UnusableImageError(
            "expected segments of runs (RLE) in order, got other places in their header: save it "
            "again",
            damaged=True,
        )
    for start, end in segments:
        at, unpacked = start, 0
        while at < end and unpacked <= pixels + _RLE_PADDING:
            length = frame[at]
            unpacked += 0 if length == 128 else length + 1 if length < 128 else 257 - length
            at += 1 if length == 128 else length + 2 if length < 128 else 2
        if unpacked > pixels + _RLE_PADDING:
            raise UnusableImageError(
                f"expected runs (RLE) of {pixels} pixels, got more: save it again", damaged=True
            )


def _picture(dataset: Any, declared: Levels | None) -> Picture:
    stored = dataset.pixel_array  # (H, W) of whole numbers
    with np.errstate(all="ignore"):
        values = apply_rescale(stored, dataset)
    if not np.isfinite(values).all():
        raise UnusableImageError("expected finite values after rescaling, got NaN or infinity")
    used = float(values.min()), float(values.max())
    odd: set[Odd] = set()
    if declared is not None:
        pixels = scaled(values, declared)
    elif (window := _window(dataset)) is not None:
        pixels = scaled(values, window)
        odd.add("window")
    elif stored.dtype == np.uint8 and dataset.BitsStored == 8 and np.array_equal(stored, values):
        pixels = stored
    else:
        raise UnscaledError("no window beside them says which are shown", *used)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        odd.add("inverted")
        pixels = 255 - pixels
    return Picture(pixels, None if declared is None else used, odd=frozenset(odd))


def _window(dataset: Any) -> Levels | None:
    """Which values the first window of the file makes black and white, if it has any.

    LINEAR, the default: below c - 1/2 - (w - 1)/2 and above c - 1/2 + (w - 1)/2.
    LINEAR_EXACT: below c - w/2 and above c + w/2.
    """
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    instead = "say which values become black and white with `levels` (--levels LOW:HIGH)"
    if centre is None or width is None:
        if dataset.get("VOILUTSequence"):
            raise UnusableImageError(f"expected a window, got a table (VOI LUT): {instead}")
        return None
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise UnusableImageError(f"expected a linear window, got another one: {instead}")
    if not (np.isfinite(centre) and 0 < width < np.inf):
        raise UnusableImageError(f"expected a window of some width, got none: {instead}")
    return Levels(low=centre - width / 2, high=centre + width / 2)


def _first(value: Any) -> float | None:
    """The first of one or several numbers."""
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, pydicom.multival.MultiValue):
        return float(value[0]) if value else None
    return float(value)


def _compressed(name: str) -> UnusableImageError:
    return UnusableImageError(
        f"expected DICOM that is uncompressed or RLE, got {name}: decompress it first, for example "
        "with pydicom's Dataset.decompress(), dcmdjpeg or gdcmconv --raw"
    )
