"""The API's line to the scoring process: frames of MessagePack over one stream, many at a time.

A frame is the length of what follows in 4 bytes, big-endian, and a MessagePack map. Every question
carries a number, and its answer the same one, so answers may come in another order. Nothing but
numbers, text and bytes can cross. Imports nothing of ours, and no torch.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import msgpack

Frame = dict[str, Any]

UNIX = "unix://"
LENGTH_BYTES = 4
BUFFER_BYTES = 2**20  # of a stream, before its sender has to wait
CONNECT_LIMIT_S = 2.0


class ScoringGoneError(Exception):
    """The scoring process cannot be reached, or went away before it answered."""


def write_frame(writer: asyncio.StreamWriter, frame: Frame) -> None:
    """Send a frame; await `writer.drain()` before many or large ones."""
    content = msgpack.packb(frame)
    writer.writelines((len(content).to_bytes(LENGTH_BYTES), content))  # one packet, one wake-up


async def read_frame(reader: asyncio.StreamReader, *, max_bytes: int) -> Frame:
    """The next frame. EOFError at the end of the stream; ValueError for what is no frame."""
    length = int.from_bytes(await reader.readexactly(LENGTH_BYTES))
    if length > max_bytes:
        raise ValueError(f"expected a frame of at most {max_bytes} bytes, got {length}")
    content = msgpack.unpackb(await reader.readexactly(length))
    if not isinstance(content, dict):
        raise ValueError(f"expected a map, got {type(content).__name__}")
    frame: Frame = content
    return frame


async def open_stream(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to `unix:///path` or `tcp://host:port`."""
    if url.startswith(UNIX):  # not split: a path may hold # and ?
        return await asyncio.open_unix_connection(url.removeprefix(UNIX), limit=BUFFER_BYTES)
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port, limit=BUFFER_BYTES)


class ScoringLink:
    """One stream to the scoring process, opened when it is first needed and again after it broke.

    url: None where the service has no scoring process. For use within one event loop.
    """

    def __init__(self, url: str | None) -> None:
        self.url = url
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._opening = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None

    async def ask(self, question: Frame) -> Frame:
        """Send a question and wait for its answer; a cancelled wait takes the question back.

        Raises ScoringGoneError, after which the question may be asked again.
        """
        async with self._line() as writer:
            number = next(self._numbers)
            answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
            self._waiting[number] = answer
            try:
                write_frame(writer, {**question, "number": number})
                await writer.drain()
                return await answer
            except asyncio.CancelledError:
                write_frame(writer, {"ask": "cancel", "number": number})
                raise
            finally:
                self._waiting.pop(number, None)

    async def forget(self, model_id: str) -> None:
        """Have the memory of a removed model given back; where nobody listens, none is held."""
        with contextlib.suppress(ScoringGoneError):
            await self.ask({"ask": "forget", "model_id": model_id})

    async def close(self) -> None:
        """Hang up."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
            self._listener = None

    @contextlib.asynccontextmanager
    async def _line(self) -> AsyncIterator[asyncio.StreamWriter]:
        try:
            async with self._opening:
                if self._writer is None:
                    await self._open()
            assert self._writer is not None
            yield self._writer
        except (OSError, TimeoutError) as error:
            raise ScoringGoneError(str(error) or type(error).__name__) from error

    async def _open(self) -> None:
        if self.url is None:
            raise ScoringGoneError("this service has none")
        async with asyncio.timeout(CONNECT_LIMIT_S):
            reader, self._writer = await open_stream(self.url)
        self._listener = asyncio.create_task(self._listen(reader, self._writer))

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand out answers until the stream ends; then everybody who waits learns of it."""
        try:
            while True:
                answer = await read_frame(reader, max_bytes=2**30)
                waiting = self._waiting.get(answer.pop("number"))
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        except (EOFError, OSError):
            pass
        finally:
            self._writer = None
            writer.close()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ScoringGoneError("it ended before it answered"))
