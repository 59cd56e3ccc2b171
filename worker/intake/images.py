"""One image file to pixels: PNG, JPEG or WebP, still, opaque, grey or RGB, 8 bits a channel.

What could be read in more than one way is refused, with a sentence, instead of being guessed:
transparency, CMYK, animations. Colour profiles are ignored, as torchvision and most training code
ignore them. The EXIF orientation is applied, so the pixels are as a viewer shows them.
"""

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import (
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from adap.core.config import Resize
from adap.models.formats import describe
from adap.worker.intake.effort import effort_problem
from adap.worker.intake.plain import decode_plain

# importing a plugin makes it known; the others (EPS, FITS, TIFF, …) are never loaded
FORMATS = tuple(
    plugin.format
    for plugin in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        WebPImagePlugin.WebPImageFile,
    )
)

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright

# all that Pillow's three decoders raise for damaged files, its warnings included
_UNDECODABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
    Warning,
)


class UnusableImageError(ValueError):
    """An image that is refused; the message follows the name of its file."""


@contextlib.contextmanager
def strict_decoding() -> Iterator[None]:
    """Within this, a decoder's warning is an error, in all threads: only one of them enters it."""
    pillows_limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Image.MAX_IMAGE_PIXELS = None  # `decode` has a lower one, and says what it got
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = pillows_limit


def decode(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """(H, W) for a grey image, (H, W, 3) for a coloured one.

    Raises UnusableImageError for everything else, before memory for the pixels is taken.
    """
    if problem := effort_problem(data, max_pixels=max_pixels):
        raise UnusableImageError(problem)
    plain = decode_plain(data, max_pixels=max_pixels)
    return decode_by_pillow(data, max_pixels=max_pixels) if plain is None else plain


def decode_by_pillow(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """The same of any file, slower where it is small, with a reason for what is refused."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, max_pixels)
            image.load()
            return _pixels(image)
    except UnusableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnusableImageError(
            f"expected a sound PNG, JPEG or WebP image, got {describe(data, data[-64:])}"
        ) from error
    except _UNDECODABLE as error:
        raise UnusableImageError(f"does not decode: {str(error)[:200]!r}") from error


def resized(pixels: NDArray[np.uint8], resize: Resize) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) as `decode` gives them, made the declared size."""
    size = (resize.width, resize.height)
    if pixels.shape[1::-1] == size:
        return pixels
    image, method = Image.fromarray(pixels), Image.Resampling.BILINEAR
    match resize.fit:
        case "stretch":
            image = image.resize(size, method)
        case "crop":
            image = ImageOps.fit(image, size, method)
        case "pad":
            image = ImageOps.pad(image, size, method, color=0)
    return np.asarray(image)


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise UnusableImageError(
            f"expected at most {max_pixels} pixels (ADAP_MAX_IMAGE_PIXELS), "
            f"got {width * height} ({width}x{height})"
        )
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise UnusableImageError(f"expected a still image, got {frames} frames")


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    if "exif" in image.info and image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if "transparency" in image.info:  # a transparent colour, or an alpha for each palette entry
        image = image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    if image.mode in ("LA", "RGBA", "PA"):
        return _without_alpha(image)
    match image.mode:
        case "L" | "RGB":
            return np.asarray(image)
        case "1":
            return np.asarray(image.convert("L"))
        case "P":
            return np.asarray(image.convert("RGB"))
        case "I;16" | "I;16B":
            # the high byte, which is what Pillow itself keeps of 16-bit colour
            return (np.asarray(image) >> 8).astype(np.uint8)
    raise UnusableImageError(f"expected a grey or RGB image, got mode {image.mode}: convert it")


def _without_alpha(image: Image.Image) -> NDArray[np.uint8]:
    """An alpha channel may be there, but may not matter: which background would be meant?"""
    pixels = np.asarray(image.convert("RGBA") if image.mode == "PA" else image)  # (H, W, 2 or 4)
    alpha = pixels[..., -1]
    if (alpha != 255).any():
        raise UnusableImageError(
            f"expected an opaque image, got {int((alpha != 255).sum())} transparent pixels: "
            "flatten it on a background"
        )
    return pixels[..., 0] if image.mode == "LA" else pixels[..., :3]


def fitted(
    pixels: NDArray[np.uint8], *, channels: int, height: int, width: int
) -> NDArray[np.uint8]:
    """Decoded pixels as the (C, H, W) that a model takes: grey for all channels, else RGB."""
    if pixels.shape[:2] != (height, width):
        raise UnusableImageError(
            f"expected {height}x{width} pixels (height x width), "
            f"got {pixels.shape[0]}x{pixels.shape[1]}"
        )
    if pixels.ndim == 2:
        return pixels[None].repeat(channels, axis=0)
    if channels != 3:
        has = "one channel" if channels == 1 else f"{channels} channels"
        raise UnusableImageError(f"expected a grey image, as the model has {has}, got colours")
    return pixels.transpose(2, 0, 1)
