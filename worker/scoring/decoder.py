"""Image files to pixels, in the sandbox: the only place of scoring that reads a stranger's format.

A decoder process serves all requests of one tenant. It is told the size that the model takes, so a
larger image is refused by its header. What ends the process (a crash, or the time limit) fails the
request whose files it was reading, and no other: it is started again, and everybody of that frame
is tried once more, alone. Files are at fault that end it alone, or keep its processor busy for too
long; one that has used no processor is that of a machine that stood still, which says nothing about
them. What this does NOT keep apart: a decoder that a file has taken over, without crashing, could
give wrong pixels to the same tenant's requests after it.
"""

import asyncio
import contextlib
import io
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adap.core.config.data import Resize
from adap.models.header import InputSpec
from adap.store.settings import GIB
from adap.worker.child import die_with_the_worker
from adap.worker.intake import IntakeLimits
from adap.worker.intake.archive import Archive
from adap.worker.intake.arrays import read_pixels
from adap.worker.intake.images import (
    FORMATS,
    Rules,
    UnusableImageError,
    fitted,
    read_picture,
    resized,
    strict_decoding,
)
from adap.worker.intake.limits import Rejected
from adap.worker.sandbox import Sandbox, limit_resources
from adap.worker.scoring.link import (
    BUFFER_BYTES,
    Frame,
    FrameStream,
    read_frame,
    write_frame,
)

log = logging.getLogger(__name__)

MAX_IMAGES = 1000  # of one request
FRAME_FILES = 64  # decoded between two looks at who else is waiting
REQUEST_FILES = 16  # of these, from one request
PROCESSOR_LIMIT_S = 20.0  # of one frame; the kernel counts it and ends the decoder
DECODE_LIMIT_S = 60.0  # of one frame, on the clock
HEAP_BYTES = 2 * GIB  # of a decoder: the files and the pixels of a frame
FITTED_PIXELS = 2**22  # of one image that is made smaller, or larger
MAX_PIXEL_BYTES = 256 * 2**20  # of one request, decoded


class UnusableImagesError(Exception):
    """Images that cannot be scored: pairs of an image's place in the request, or None, and why."""

    def __init__(self, reasons: Sequence[tuple[int | None, str]]) -> None:
        super().__init__("; ".join(reason for _, reason in reasons))
        self.reasons = list(reasons)


@dataclass(frozen=True)
class Unit:
    """Some files of one request, decoded together: image files, or one NPZ."""

    form: str
    files: list[bytes]
    spec: InputSpec
    fit: str | None  # how files of another size are made the model's
    done: "asyncio.Future[NDArray[Any]]" = field(compare=False)

    def as_frame(self) -> Frame:
        """What crosses to the process."""
        size = {name: getattr(self.spec, name) for name in ("channels", "height", "width")}
        return {"form": self.form, "files": self.files, "size": size, "fit": self.fit}


class Decoder:
    """The decoder process, seen from the event loop of the scoring process."""

    def __init__(
        self,
        sandbox: Sandbox,
        folder: Path,
        *,
        processor_limit_s: float = PROCESSOR_LIMIT_S,
        limit_s: float = DECODE_LIMIT_S,
    ) -> None:
        self.restarts = 0
        self._processor_limit_s = processor_limit_s
        self._limit_s = limit_s
        self._sandbox = sandbox
        self._folder = folder
        self._waiting: deque[Unit] = deque()
        self._more = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: FrameStream | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, or of the sandbox around it; None while there is none."""
        return None if self._process is None else self._process.pid

    async def decode(
        self, form: str, files: list[bytes], spec: InputSpec, *, fit: str | None = None
    ) -> NDArray[Any]:
        """(N, C, H, W), uint8, or float32 in [0, 1] from an NPZ.

        form: `files` for image files, `npz` for one NPZ. fit: stretch, crop or pad for files of
        another size than the model's. Raises UnusableImagesError; TimeoutError
        where the decoder stood still, twice, and nothing is known about the images.
        """
        parts, reasons = [], []
        for start in range(0, len(files), REQUEST_FILES):
            unit = Unit(
                form,
                files[start : start + REQUEST_FILES],
                spec,
                fit,
                asyncio.get_running_loop().create_future(),
            )
            self._waiting.append(unit)
            self._more.set()
            try:
                parts.append(await unit.done)
            except UnusableImagesError as error:
                reasons += [
                    (None if place is None else start + place, reason)
                    for place, reason in error.reasons
                ]
        if reasons:
            raise UnusableImagesError(reasons)
        return await asyncio.to_thread(np.concatenate, parts) if len(parts) > 1 else parts[0]

    async def run(self) -> None:
        """Decode what is asked for until cancelled; the process then ends, too."""
        try:
            await self._start()  # ready before it is needed
            while True:
                await self._more.wait()
                units, count = [], 0
                while self._waiting and count < FRAME_FILES:
                    unit = self._waiting.popleft()
                    if not unit.done.cancelled():
                        units.append(unit)
                        count += len(unit.files)
                if not self._waiting:
                    self._more.clear()
                if units:
                    await self._decode(units)
        finally:
            self._stop()

    async def _decode(self, units: list[Unit], *, alone: bool = False) -> None:
        """Answer units; if the process ends over them, each by itself and once more."""
        try:
            async with asyncio.timeout(self._limit_s):
                answers = await self._exchange(units)
        except (EOFError, OSError, ValueError, TimeoutError) as error:
            log.warning("decoder.died", extra={"units": len(units), "reason": repr(error)})
            self._stop()
            self.restarts += 1
            await self._start()
            if alone:
                _fail(
                    units[0],
                    error
                    if isinstance(error, TimeoutError)
                    else UnusableImagesError(
                        [(None, "expected images that decode, got the decoder's end")]
                    ),
                )
                return
            for unit in units:
                if not unit.done.done():
                    await self._decode([unit], alone=True)
            return
        for unit, answer in zip(units, answers, strict=True):
            if unit.done.done():
                continue
            if "reasons" in answer:
                reasons = [(place, str(reason)) for place, reason in answer["reasons"]]
                _fail(unit, UnusableImagesError(reasons))
            else:
                unit.done.set_result(_pixels(unit, answer))

    async def _exchange(self, units: list[Unit]) -> list[Any]:
        if self._stream is None:
            await self._start()
        assert self._stream is not None
        await self._stream.send({"units": [unit.as_frame() for unit in units]})
        answers = (await self._stream.read(max_bytes=2**31))["answers"]
        if len(answers) != len(units):
            raise ValueError(f"expected {len(units)} answers, got {len(answers)}")
        for unit, answer in zip(units, answers, strict=True):
            if "reasons" not in answer:
                _pixels(unit, answer)
        return list(answers)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = self._sandbox.start(
                [
                    *(sys.executable, "-P", "-m", "adap.worker.scoring.decoder"),
                    *(str(theirs.fileno()), str(self._sandbox.memory_bytes)),
                    str(self._sandbox.heap_bytes(HEAP_BYTES)),
                    str(self._processor_limit_s),
                ],
                pass_fd=theirs.fileno(),
                folder=self._folder,
                inputs=[],
            )
        self._stream = FrameStream(*await asyncio.open_connection(sock=ours, limit=BUFFER_BYTES))

    def _stop(self) -> None:
        process, self._process = self._process, None
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _fail(unit: Unit, error: Exception) -> None:
    if not unit.done.done():
        unit.done.set_exception(error)


def _pixels(unit: Unit, answer: Frame) -> NDArray[Any]:
    """What the decoder made, if it is what it can only be; ValueError otherwise."""
    dtype, spec = np.dtype(answer["dtype"]), unit.spec
    if dtype not in (np.uint8, np.float32):
        raise ValueError(f"expected uint8 or float32, got {dtype}")
    count = len(unit.files) if unit.form == "files" else -1
    flat = np.frombuffer(answer["pixels"], dtype)
    pixels = flat.reshape(count, spec.channels, spec.height, spec.width)
    if not 0 < len(pixels) <= MAX_IMAGES:
        raise ValueError(f"expected 1 to {MAX_IMAGES} images, got {len(pixels)}")
    return pixels


# --- inside the sandbox ---------------------------------------------------------------------------


def _answer(unit: Frame) -> Frame:
    """Decode the files of one unit; every reason against them."""
    files = [bytes(file) for file in unit["files"]]  # long ones come as views
    try:
        if unit["form"] == "npz":
            pixels = _decode_npz(files[0], unit["size"])
        else:
            pixels = _decode_files(files, unit["size"], unit["fit"])
    except UnusableImagesError as error:
        return {"reasons": error.reasons}
    except MemoryError:
        return {"reasons": [(None, "expected images that fit the memory for decoding, got larger")]}
    return {"pixels": np.ascontiguousarray(pixels).data.cast("B"), "dtype": pixels.dtype.str}


def _decode_files(
    files: list[bytes], size: dict[str, int], fit: Literal["stretch", "crop", "pad"] | None
) -> NDArray[np.uint8]:
    images = np.empty((len(files), size["channels"], size["height"], size["width"]), np.uint8)
    height, width = size["height"], size["width"]
    rules = Rules(height * width)
    if fit is not None:
        rules = Rules(FITTED_PIXELS, resize=Resize(height=height, width=width, fit=fit))
    reasons = []
    for i, data in enumerate(files):
        try:
            pixels = read_picture(data, rules).pixels
            if rules.resize is not None:
                pixels = resized(pixels, rules.resize)
            images[i] = fitted(pixels, **size)
        except UnusableImageError as error:
            other = None if fit is not None else _other_size(data, height=height, width=width)
            reasons.append((i, other or str(error)))
    if reasons:
        raise UnusableImagesError(reasons)
    return images


def _other_size(data: bytes, *, height: int, width: int) -> str | None:
    """What to say of an image that is of another size than the model takes; None for others."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            came = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if came == (width, height):
        return None
    return (
        f"expected {width}x{height} pixels (width x height), as the model takes, got "
        f"{came[0]}x{came[1]}: send it in that size, or ask for `resize` (--resize crop, or "
        "stretch, or pad)"
    )


def _decode_npz(data: bytes, size: dict[str, int]) -> NDArray[Any]:
    limits = IntakeLimits(entries=MAX_IMAGES, unpacked_bytes=MAX_PIXEL_BYTES)
    descriptor = os.memfd_create("npz")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        with Archive(Path(f"/proc/self/fd/{descriptor}"), limits=limits) as archive:
            return read_pixels(archive, **size, limits=limits)
    except Rejected as error:
        raise UnusableImagesError([(None, reason) for reason in error.reasons]) from error
    finally:
        os.close(descriptor)


def main() -> None:
    """Answer frame after frame on an inherited descriptor, until the other end is closed."""
    limit_resources(memory_bytes=int(sys.argv[2]), heap_bytes=int(sys.argv[3]))
    stream = socket.socket(fileno=int(sys.argv[1]))
    die_with_the_worker(Connection(os.dup(stream.fileno())))
    with strict_decoding(), stream.makefile("rwb") as file:
        while frame := read_frame(file):
            signal.setitimer(signal.ITIMER_PROF, float(sys.argv[4]))  # whose signal ends us
            write_frame(file, {"answers": [_answer(unit) for unit in frame["units"]]})


if __name__ == "__main__":
    main()
