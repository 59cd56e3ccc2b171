"""A real decoder with limits that it cannot keep: for what images are blamed, and for what not."""

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adap.models.header import InputSpec
from adap.store.settings import Settings
from adap.worker.sandbox import make_sandbox
from adap.worker.scoring.decoder import Decoder, UnusableImagesError
from adap.worker.scoring.link import SHORT_BYTES

SIDE, IMAGES = 1024, 16


NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)


def written(form: str) -> bytes:
    """A file of the image: some 1 MB of PNG or JPEG, or an NPZ."""
    file = io.BytesIO()
    if form == "npz":
        np.savez_compressed(file, images=NOISE[None])
    else:
        Image.fromarray(NOISE).save(file, form, quality=100)
    return file.getvalue()


def decoded(
    folder: Path, files: list[bytes], form: str = "files", **limits: float
) -> tuple[NDArray[Any], int]:
    """Images by a decoder with these limits in seconds, and how often it was restarted."""
    spec = InputSpec(channels=1, height=SIDE, width=SIDE, mean=[0.5], std=[0.5])

    async def decode() -> tuple[NDArray[Any], int]:
        decoder = Decoder(make_sandbox(Settings(home=folder / "home")), folder, **limits)
        running = asyncio.create_task(decoder.run())
        try:
            return await decoder.decode(form, files, spec), decoder.restarts
        finally:
            running.cancel()
            await asyncio.wait([running])

    return asyncio.run(decode())


def _black() -> bytes:
    file = io.BytesIO()
    Image.new("L", (SIDE, SIDE)).save(file, "PNG")
    return file.getvalue()


MANY = [_black()] * IMAGES


@pytest.mark.parametrize("form", ["png", "jpeg", "npz"])
def test_long_files_decode_to_pillows_pixels(tmp_path: Path, form: str) -> None:
    file = written(form)
    assert len(file) > 10 * SHORT_BYTES

    pixels, restarts = decoded(tmp_path, [file], "npz" if form == "npz" else "files")

    expected = NOISE if form == "npz" else np.asarray(Image.open(io.BytesIO(file)).convert("L"))
    np.testing.assert_array_equal(pixels[0, 0], expected)
    assert restarts == 0


def test_images_that_keep_the_processor_busy_for_too_long_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableImagesError, match="got the decoder's end"):
        decoded(tmp_path, MANY, processor_limit_s=0.001)
    pixels, restarts = decoded(tmp_path, MANY)
    assert pixels.shape == (IMAGES, 1, SIDE, SIDE)
    assert restarts == 0


def test_images_are_not_blamed_for_a_decoder_that_stood_still(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        decoded(tmp_path, MANY, limit_s=0)
