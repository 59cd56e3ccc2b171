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
from dataclasses import dataclass

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

from adap.core.config import Levels, Resize
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


@dataclass(frozen=True)
class Rules:
    """How image files become pixels."""

    max_pixels: int
    levels: Levels | None = None


@dataclass(frozen=True)
class Picture:
    """A decoded image file.

    pixels: (H, W) or (H, W, 3) uint8.  values: the smallest and largest value of an image of more
    than 8 bits, as they came, None for others.
    """

    pixels: NDArray[np.uint8]
    values: tuple[int, int] | None = None


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
    return read_picture(data, Rules(max_pixels)).pixels


def read_picture(data: bytes, rules: Rules) -> Picture:
    """The same by rules, with what is to be known of it."""
    if problem := effort_problem(data, max_pixels=rules.max_pixels):
        raise UnusableImageError(problem)
    plain = decode_plain(data, max_pixels=rules.max_pixels)
    return _by_pillow(data, rules) if plain is None else Picture(plain)


def decode_by_pillow(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """As `decode` of any file, slower where it is small, with a reason for what is refused."""
    return _by_pillow(data, Rules(max_pixels)).pixels


def _by_pillow(data: bytes, rules: Rules) -> Picture:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, rules.max_pixels)
            wide = ";16" in str(image.tile)  # of which Pillow keeps the high bytes
            image.load()
            return _picture(image, rules, wide=wide)
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


def _picture(image: Image.Image, rules: Rules, *, wide: bool) -> Picture:
    if image.mode.startswith("I;16"):
        deep = np.asarray(_upright(image))
        values = int(deep.min()), int(deep.max())
        if rules.levels is not None:
            return Picture(scaled(deep, rules.levels), values)
        # the high byte, which is what Pillow itself keeps of 16-bit colour
        return Picture((deep >> 8).astype(np.uint8), values)
    pixels = _pixels(image)
    if not wide:
        return Picture(pixels)
    if rules.levels is not None:
        raise UnusableImageError(
            "expected one channel where levels are declared, got 16 bits of several: convert it "
            "to 8 bits a channel"
        )
    return Picture(pixels, (int(pixels.min()) << 8, int(pixels.max()) << 8 | 255))


def scaled(values: NDArray[np.generic], levels: Levels) -> NDArray[np.uint8]:
    """Values of any kind as 0 to 255, rounded; `levels` are 0 and 255, what lies beyond is cut."""
    share = (values.astype(np.float64) - levels.low) / (levels.high - levels.low)
    made: NDArray[np.uint8] = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
    return made


def _upright(image: Image.Image) -> Image.Image:
    if "exif" in image.info and image.getexif().get(_ORIENTATION, 1) != 1:
        return ImageOps.exif_transpose(image)
    return image


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    image = _upright(image)
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
