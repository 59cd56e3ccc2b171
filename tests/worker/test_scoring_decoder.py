"""A real decoder with limits that it cannot keep: for what images are blamed, and for what not."""

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray
from PIL import Image

from adap.models.header import InputSpec
from adap.store.settings import Settings
from adap.worker.sandbox import make_sandbox
from adap.worker.scoring.decoder import Decoder, UnusableImagesError

SIDE, IMAGES = 1024, 16


def decoded(folder: Path, **limits: float) -> tuple[NDArray[Any], int]:
    """Large images, by a decoder with these limits in seconds, and how often it was restarted."""
    spec = InputSpec(channels=1, height=SIDE, width=SIDE, mean=[0.5], std=[0.5])
    file = io.BytesIO()
    Image.new("L", (SIDE, SIDE)).save(file, "PNG")

    async def decode() -> tuple[NDArray[Any], int]:
        decoder = Decoder(make_sandbox(Settings(home=folder / "home")), folder, **limits)
        running = asyncio.create_task(decoder.run())
        try:
            return await decoder.decode("files", [file.getvalue()] * IMAGES, spec), decoder.restarts
        finally:
            running.cancel()
            await asyncio.wait([running])

    return asyncio.run(decode())


def test_images_that_keep_the_processor_busy_for_too_long_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableImagesError, match="got the decoder's end"):
        decoded(tmp_path, processor_limit_s=0.001)
    pixels, restarts = decoded(tmp_path)
    assert pixels.shape == (IMAGES, 1, SIDE, SIDE)
    assert restarts == 0


def test_images_are_not_blamed_for_a_decoder_that_stood_still(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        decoded(tmp_path, limit_s=0)
