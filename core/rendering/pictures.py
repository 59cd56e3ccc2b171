"""Images of a data set as PNG files."""

import io

import numpy as np
from numpy.typing import NDArray


def png(levels: NDArray[np.uint8], *, side: int | None = None, smallest: bool = False) -> bytes:
    """An image as a PNG file: grey for one or two channels, of which the first; else RGB.

    levels: (C, H, W).
    side: pixels of the longer side at most, for a larger image; by default each pixel is as it was.
    smallest: take the time to make the file as small as it can be.
    """
    from PIL import Image  # the web process, which opens nothing with it, loads it when asked

    image = Image.fromarray(levels[:3].transpose(1, 2, 0) if len(levels) >= 3 else levels[0])
    if side is not None:
        image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=smallest)
    return file.getvalue()
