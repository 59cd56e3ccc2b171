"""One image file to pixels: PNG, JPEG, WebP, BMP, GIF or TIFF, opaque, of one channel or RGB.

What could be read in more than one way is refused, with a sentence, instead of being guessed:
transparency, animations, values whose range nobody says. Of MPO (a photograph and its preview) and
GIF the first frame is taken, CMYK is made RGB, and whoever asks is told so.
Colour profiles are ignored, as torchvision and most training code ignore them. The EXIF orientation
is applied, so the pixels are as a viewer shows them; whoever asks is told that, too.
"""

import contextlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from adap.core.config.data import Levels, Resize
from adap.models.formats import describe
from adap.worker.intake.effort import effort_problem
from adap.worker.intake.plain import decode_plain

# importing a plugin makes it known; the others (EPS, FITS, PSD, …) are never loaded
FORMATS = tuple(
    plugin.format
    for plugin in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        WebPImagePlugin.WebPImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        TiffImagePlugin.TiffImageFile,
    )
)

_FOREIGN = (  # images that are not read, by how they begin, from a byte on
    (re.compile(rb"P[1-7]\s"), "PPM, PGM or PBM"),
    (re.compile(rb".{4}ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb".{4}ftypavi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
)

LARGE_PIXELS = 100_000_000  # of a baseline JPEG that is made smaller, read at a reduced scale
WHOLE_PIXELS = 25_000_000  # of another image that is made smaller, and is decoded whole before
_LARGE_FROM = 1_000_000  # an operator's limit below is meant for large photographs, too
MAX_GIF_FRAMES = 1000  # to be passed over: a file may have any number

Odd = Literal["first_frame", "cmyk", "exif", "turned", "reduced", "window", "inverted"]
"""What was done to an image that its sender may not expect."""

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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
    """An image that is refused; the message follows the name of its file.

    damaged: whether it is an image that cannot be read, as single files of large collections are.
    """

    def __init__(self, message: str, *, damaged: bool = False) -> None:
        super().__init__(message)
        self.damaged = damaged


class UnscaledError(UnusableImageError):
    """An image of which nothing says what values are black and white: `levels` are to be declared.

    what: follows the values in a sentence.  low, high: the smallest and the largest.
    """

    def __init__(self, what: str, low: float, high: float) -> None:
        self.what, self.low, self.high = what, low, high
        super().__init__(f"its {unscaled(what, low, high)}")


def unscaled(what: str, low: float, high: float) -> str:
    """The values that images have, and the option that says which become black and white."""
    return (
        f"values go from {low:g} to {high:g} and {what}: say which become black and white with "
        f"`levels`, for example --levels {natural_levels(low, high)}"
    )


def natural_levels(low: float, high: float) -> str:
    """The range of numbers that images with these were most likely saved in, else their own."""
    if not float(low).is_integer() or not float(high).is_integer():
        for black, white in ((0, 1), (-1, 1), (0, 255)):
            if black <= low and white / 2 < high <= white and (black == 0 or low < black / 2):
                return f"{black}:{white}"
    return f"{low:g}:{high if high > low else low + 1:g}"


@dataclass(frozen=True)
class Rules:
    """How image files become pixels."""

    max_pixels: int
    levels: Levels | None = None
    resize: Resize | None = None  # only what it needs is decoded of a large photograph


@dataclass(frozen=True)
class Picture:
    """A decoded image file.

    pixels: (H, W) or (H, W, 3) uint8.  values: the smallest and largest value of an image of more
    than 8 bits, as they came, None for others.  came: height and width of the file, where they are
    not those of the pixels.  odd: what was done to it.
    """

    pixels: NDArray[np.uint8]
    values: tuple[float, float] | None = None
    came: tuple[int, int] | None = None
    odd: frozenset[Odd] = frozenset()


@contextlib.contextmanager
def strict_decoding() -> Iterator[None]:
    """Within this, a decoder's warning is an error, in all threads: only one of them enters it."""
    pillows_limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # a bad tag beside sound pixels
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
        warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")
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
    most = rules.max_pixels if rules.resize is None else max(rules.max_pixels, WHOLE_PIXELS)
    if problem := effort_problem(data, max_pixels=most):
        raise UnusableImageError(problem)
    plain = decode_plain(data, max_pixels=rules.max_pixels)
    return _by_pillow(data, rules) if plain is None else Picture(plain)


def decode_by_pillow(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """As `decode` of any file, slower where it is small, with a reason for what is refused."""
    return _by_pillow(data, Rules(max_pixels)).pixels


def _by_pillow(data: bytes, rules: Rules) -> Picture:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, rules)
            odd: set[Odd] = set()
            _check_frames(image, data, odd)
            width, height = image.size
            if rules.resize is not None and width * height > rules.max_pixels:
                side = 2 * max(rules.resize.width, rules.resize.height)
                if image.draft(None, (side, side)) is not None:
                    odd.add("reduced")
            wide = ";16" in str(image.tile)  # of which Pillow keeps the high bytes
            image.load()
            picture = _picture(image, rules, odd, wide=wide)
    except UnusableImageError:
        raise
    except UnidentifiedImageError as error:
        kind = describe(data, data[-64:])
        raise UnusableImageError(
            f"expected a sound PNG, JPEG or WebP image, got {_unread(data, kind)}",
            damaged="archive" not in kind,
        ) from error
    except _UNDECODABLE as error:
        raise UnusableImageError(f"does not decode: {str(error)[:200]!r}", damaged=True) from error
    turned = (picture.pixels.shape[0] > picture.pixels.shape[1]) != (height > width)
    came = (width, height) if turned else (height, width)
    return replace(picture, came=came if "reduced" in odd else None, odd=frozenset(odd))


def _unread(data: bytes, kind: str) -> str:
    """What a file is that Pillow does not open, with what to do. `kind`: what its bytes tell."""
    convert = f"convert to PNG, as {', '.join(FORMATS)} are read"
    if foreign := next((name for start, name in _FOREIGN if start.match(data)), None):
        return f"{foreign}: {convert}"
    if kind.endswith("image"):
        article, _, name = kind.partition(" ")
        return f"{article} {name} that is damaged, or of a kind that is not read: {convert}"
    if kind.endswith("archive"):
        return f"{kind}: unpack it"
    return f"{kind}: {convert}" if kind.endswith("known here") else kind


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


def _check_size(image: Image.Image, rules: Rules) -> None:
    width, height = image.size
    most, name = rules.max_pixels, "ADAP_MAX_IMAGE_PIXELS"
    if rules.resize is not None and rules.max_pixels >= _LARGE_FROM:
        reduced = image.format in ("JPEG", "MPO") and not image.info.get("progressive")
        larger = LARGE_PIXELS if reduced else WHOLE_PIXELS
        if larger > most:
            most, name = larger, "where they are made smaller"
    if width * height > most:
        large = rules.resize is None and rules.max_pixels >= _LARGE_FROM
        hint = "" if not large else ": shrink it, or declare `resize` (--resize 224x224:crop)"
        raise UnusableImageError(
            f"expected at most {most} pixels ({name}), "
            f"got {width * height} ({width}x{height}){hint}"
        )


def _check_frames(image: Image.Image, data: bytes, odd: set[Odd]) -> None:
    """Several frames are refused, but for those formats whose first frame is what is meant."""
    if image.format == "GIF":
        # each frame begins by a comma after the end of a block, or the extension that controls it
        if data.count(b"\x00,") + data.count(b"\x00!\xf9") > MAX_GIF_FRAMES:
            raise UnusableImageError(
                f"expected at most {MAX_GIF_FRAMES} frames, got a GIF image of more"
            )
        if getattr(image, "is_animated", False):
            odd.add("first_frame")
    elif image.format == "MPO":
        odd.add("first_frame")
    elif image.format == "TIFF":
        try:
            image.seek(1)
        except EOFError:
            image.seek(0)
        else:
            raise UnusableImageError(
                "expected a still image, got a TIFF of several pages: save each as a file"
            )
    elif (frames := getattr(image, "n_frames", 1)) != 1:
        raise UnusableImageError(
            f"expected a still image, got {frames} frames: save the one that is meant as a file "
            "of its own"
        )


def _picture(image: Image.Image, rules: Rules, odd: set[Odd], *, wide: bool) -> Picture:
    image = _upright(image, odd)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep(image, rules)
    pixels = _pixels(image, odd)
    if not wide:
        return Picture(pixels)
    if rules.levels is not None:
        raise UnusableImageError(
            "expected one channel where levels are declared, got 16 bits of several: convert it "
            "to 8 bits a channel"
        )
    return Picture(pixels, (int(pixels.min()) << 8, int(pixels.max()) << 8 | 255))


def _deep(image: Image.Image, rules: Rules) -> Picture:
    """One channel of more than 8 bits."""
    deep = np.asarray(image)
    if not np.isfinite(deep).all():
        raise UnusableImageError("expected finite values, got NaN or infinity")
    values = deep.min().item(), deep.max().item()
    if rules.levels is not None:
        return Picture(scaled(deep, rules.levels), values)
    if image.mode in ("I", "F"):
        raise UnscaledError("have 32 bits", *values)
    # the high byte, which is what Pillow itself keeps of 16-bit colour
    return Picture((deep >> 8).astype(np.uint8), values)


def scaled(values: NDArray[np.generic], levels: Levels) -> NDArray[np.uint8]:
    """Values of any kind as 0 to 255, rounded; `levels` are 0 and 255, what lies beyond is cut."""
    share = (values.astype(np.float64) - levels.low) / (levels.high - levels.low)
    made: NDArray[np.uint8] = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
    return made


def _upright(image: Image.Image, odd: set[Odd]) -> Image.Image:
    if "exif" not in image.info:
        return image
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except _UNDECODABLE:  # of the tags alone: the pixels are decoded
        odd.add("exif")
        return image
    if turn is None:
        return image
    odd.add("turned")
    return image.transpose(turn)  # not ImageOps.exif_transpose, which writes all other tags again


def _pixels(image: Image.Image, odd: set[Odd]) -> NDArray[np.uint8]:
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
        case "CMYK" | "YCbCr":
            odd.add("cmyk")
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
            f"expected {width}x{height} pixels (width x height), "
            f"got {pixels.shape[1]}x{pixels.shape[0]}"
        )
    if pixels.ndim == 2:
        return pixels[None].repeat(channels, axis=0)
    if channels != 3:
        has = "one channel" if channels == 1 else f"{channels} channels"
        raise UnusableImageError(f"expected a grey image, as the model has {has}, got colours")
    return pixels.transpose(2, 0, 1)
