"""The API's lines to the scoring process: frames over a stream for each tenant, many at a time.

A frame is the length of a head in 4 bytes, big-endian, and the head, a MessagePack map. Long bytes
follow it, in their order; in the head stands their length. Nobody copies them as a whole, and
between two pieces of them everybody else has his turn, so that no question, however long, makes
others wait. Every question carries a number, and its answer the same one, so answers may come in
another order. Nothing but numbers, text and bytes can cross. Imports nothing of ours, and no torch.
"""

import asyncio
import contextlib
import itertools
import logging
from collections import OrderedDict
from io import BufferedReader, BufferedRWPair, BufferedWriter
from typing import Any
from urllib.parse import urlsplit

import msgpack
import numpy as np

log = logging.getLogger(__name__)

Frame = dict[str, Any]

UNIX = "unix://"
LENGTH_BYTES = 4
BUFFER_BYTES = 2**20  # of a stream, before its sender has to wait
PIECE_BYTES = 2**18  # of long bytes, sent or read at once
SHORT_BYTES = 2**14  # that stand in the head
CONNECT_LIMIT_S = 2.0
MAX_LINES = 32  # that are open, and used by nobody
_LONG = 1  # the extension type that stands for long bytes: their length in 8 bytes, big-endian


class ScoringGoneError(Exception):
    """The scoring process cannot be reached, or went away before it answered."""


class FrameStream:
    """Frames in both directions; several tasks may send at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._sending = asyncio.Lock()

    def send_at_once(self, frame: Frame) -> bool:
        """Send a short frame without waiting for anybody; whether it was, as there is room."""
        full = self._writer.transport.get_write_buffer_size() > BUFFER_BYTES
        if full or self._sending.locked():
            return False
        head, long = _packed(frame)
        if long:
            return False
        self._writer.write(head)
        return True

    async def send(self, frame: Frame) -> None:
        """Send a frame, whole unless the stream ends or this is cancelled. Raises OSError."""
        head, long = _packed(frame)
        async with self._sending:
            self._writer.write(head)
            for content in long:
                for start in range(0, len(content), PIECE_BYTES):
                    self._writer.write(content[start : start + PIECE_BYTES])
                    await self._writer.drain()
            await self._writer.drain()

    async def read(self, *, max_bytes: int) -> Frame:
        """The next frame. EOFError at the end of the stream; ValueError for what is no frame."""
        length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES))
        if length > max_bytes:
            raise ValueError(f"expected a frame of at most {max_bytes} bytes, got {length}")
        head = await self._reader.readexactly(length)
        frame, long = _unpacked(head, max_bytes=max_bytes - length)
        for room in long:
            position = 0
            while position < len(room):
                piece = await self._reader.read(min(PIECE_BYTES, len(room) - position))
                if not piece:
                    raise EOFError("expected the rest of a frame, got the end")
                room[position : position + len(piece)] = piece
                position += len(piece)
        return frame

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


def write_frame(file: "BufferedRWPair[Any, Any] | BufferedWriter", frame: Frame) -> None:
    """Send a frame over a file that blocks."""
    head, long = _packed(frame)
    file.write(head)
    for content in long:
        file.write(content)
    file.flush()


def read_frame(file: "BufferedRWPair[Any, Any] | BufferedReader") -> Frame | None:
    """The next frame of a file that blocks, whose sender is trusted; None at its end."""
    length = file.read(LENGTH_BYTES)
    if not length:
        return None
    frame, long = _unpacked(file.read(int.from_bytes(length)), max_bytes=2**62)
    for room in long:
        file.readinto(room)
    return frame


def _packed(frame: Frame) -> tuple[bytes, list[memoryview]]:
    """The head of a frame, with its length before it, and the long bytes that follow."""
    long: list[memoryview] = []
    head = msgpack.packb(_without_long(frame, long))
    return len(head).to_bytes(LENGTH_BYTES) + head, long


def _without_long(value: Any, long: list[memoryview]) -> Any:
    if isinstance(value, dict):
        return {name: _without_long(inner, long) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_long(inner, long) for inner in value]
    if isinstance(value, bytes | memoryview) and len(value) > SHORT_BYTES:
        long.append(memoryview(value))
        return msgpack.ExtType(_LONG, len(value).to_bytes(8))
    return value


def _unpacked(head: bytes, *, max_bytes: int) -> tuple[Frame, list[memoryview]]:
    """A frame, and the rooms in it that its long bytes go to. ValueError for what is no frame."""
    rooms: list[memoryview] = []

    def make_room(kind: int, content: bytes) -> memoryview:
        length = int.from_bytes(content)
        if kind != _LONG or length + sum(map(len, rooms)) > max_bytes:
            raise ValueError(f"expected at most {max_bytes} more bytes, got {length}")
        rooms.append(np.empty(length, np.uint8).data)  # takes no memory before it is filled
        return rooms[-1]

    frame = msgpack.unpackb(head, ext_hook=make_room)
    if not isinstance(frame, dict):
        raise ValueError(f"expected a map, got {type(frame).__name__}")
    return frame, rooms


async def open_stream(url: str) -> FrameStream:
    """Connect to `unix:///path` or `tcp://host:port`."""
    if url.startswith(UNIX):  # not split: a path may hold # and ?
        path = url.removeprefix(UNIX)
        return FrameStream(*await asyncio.open_unix_connection(path, limit=BUFFER_BYTES))
    parts = urlsplit(url)
    return FrameStream(
        *await asyncio.open_connection(parts.hostname, parts.port, limit=BUFFER_BYTES)
    )


class ScoringLink:
    """A line for each tenant, so that nobody's question waits behind another's long one.

    url: None where the service has no scoring process. For use within one event loop.
    """

    def __init__(self, url: str | None) -> None:
        self.url = url
        self._lines: OrderedDict[str, _Line] = OrderedDict()  # whoever asked last, last

    async def ask(self, question: Frame) -> Frame:
        """Send a question and wait for its answer; a cancelled wait takes the question back.

        Raises ScoringGoneError, after which the question may be asked again.
        """
        tenant = question.get("tenant", "")
        line = self._lines.setdefault(tenant, _Line(self.url))
        self._lines.move_to_end(tenant)
        try:
            return await line.ask(question)
        finally:
            await self._make_room()

    async def forget(self, model_id: str) -> None:
        """Have the memory of a removed model given back; where nobody listens, none is held."""
        with contextlib.suppress(ScoringGoneError):
            await self.ask({"ask": "forget", "model_id": model_id})

    async def close(self) -> None:
        """Hang up."""
        while self._lines:
            await self._lines.popitem()[1].close()

    async def _make_room(self) -> None:
        idle = [tenant for tenant, line in self._lines.items() if not line.in_use]
        closing = [self._lines.pop(tenant) for tenant in idle[: max(len(idle) - MAX_LINES, 0)]]
        for line in closing:
            await line.close()


class _Line:
    """One stream, opened when it is first needed and again after it broke."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._opening = asyncio.Lock()
        self._stream: FrameStream | None = None
        self._listener: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._users = 0

    @property
    def in_use(self) -> bool:
        """Whether somebody waits for an answer, or something is still being sent."""
        return bool(self._users or self._sending)

    async def ask(self, question: Frame) -> Frame:
        """As `ScoringLink.ask`."""
        self._users += 1
        number = next(self._numbers)
        try:
            stream = self._stream or await self._opened()
            answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
            self._waiting[number] = answer
            try:
                sending = self._send(stream, {**question, "number": number})
                if sending is not None:
                    await asyncio.shield(sending)
                return await answer
            except asyncio.CancelledError:
                self._send(stream, {"ask": "cancel", "number": number})
                raise
        except (OSError, TimeoutError) as error:
            raise ScoringGoneError(str(error) or type(error).__name__) from error
        finally:
            self._waiting.pop(number, None)
            self._users -= 1

    async def close(self) -> None:
        """Hang up."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
            self._listener = None

    def _send(self, stream: FrameStream, frame: Frame) -> asyncio.Task[None] | None:
        """Send a frame to its end, whoever waits for it: half of one would end the stream.

        Returns what sends one that is too long to be sent at once.
        """
        if stream.send_at_once(frame):
            return None
        task = asyncio.create_task(stream.send(frame))
        self._sending.add(task)
        task.add_done_callback(self._sent)
        return task

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled():
            task.exception()  # who waits for the answer is told by the listener, too

    async def _opened(self) -> FrameStream:
        """The stream, opened if it is not. Raises OSError, TimeoutError, ScoringGoneError."""
        if self._url is None:
            raise ScoringGoneError("this service has none")
        async with self._opening:
            if self._stream is None:
                async with asyncio.timeout(CONNECT_LIMIT_S):
                    self._stream = await open_stream(self._url)
                self._listener = asyncio.create_task(self._listen(self._stream))
            return self._stream

    async def _listen(self, stream: FrameStream) -> None:
        """Hand out answers until the stream ends; then everybody who waits learns of it."""
        try:
            while True:
                answer = await stream.read(max_bytes=2**30)
                waiting = self._waiting.get(answer.pop("number"))
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        except (EOFError, OSError):
            pass
        except (ValueError, KeyError) as error:
            log.warning("scoring.bad_answer", extra={"reason": repr(error)})
        finally:
            self._stream = None
            stream.close()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ScoringGoneError("it ended before it answered"))
