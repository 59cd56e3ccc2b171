"""Limits on slow requests, slow readers and crumbled bodies; bodies unasked for are read away."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, NoReturn, cast

import h11
from h11._readers import ChunkedReader  # the only one that reads lines after a body
from h11._receivebuffer import ReceiveBuffer
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from adap.api.deps import END, PROVEN
from adap.api.joined import Joined
from adap.api.overload import LET_THROUGH, Overload, path_of
from adap.api.strangers import Connections, network_of

MOST_HEAD_BYTES = 64 * 1024  # of a request's line and headers, where the server says nothing
MOST_LINES = 128  # of headers, or after a body: each costs as much as a short request
PIECE_BYTES = 2**14  # read at once, or a packet could bring a head of any length
FREE_CHUNKS = 256  # of a body; of more than these each must bring, on average,
CHUNK_BYTES = 64  # as many, as it costs as much to read a small one as a large one


def at_a_pace(
    receive: Receive, *, seconds: float, size: int, answered: Callable[[], bool]
) -> Receive:
    """Receive a body of which each `size` bytes, and its end, come within these seconds.

    Only waiting for the client counts. Where they do not come, HTTPException with 408. Once the
    answer has begun, what still comes of the body is dropped, at any pace: whoever reads then only
    wants to know when the client hangs up, and no limit of size may end an answer in the middle.
    """
    waited, got, ended = 0.0, 0, False

    async def received() -> Message:
        nonlocal waited, got, ended
        while True:
            begun = time.monotonic()
            try:
                async with asyncio.timeout(None if ended or answered() else seconds - waited):
                    message = await receive()
            except TimeoutError as error:
                found = await _arrived(receive)
                if found is None and answered():
                    continue
                if found is None:
                    raise _too_slow(got, size=size, seconds=seconds) from error
                message = found
            if message["type"] != "http.request":
                return message
            if answered():
                return {**message, "body": b""}
            waited += time.monotonic() - begun
            got += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if got >= size:
                waited, got = 0.0, 0
            return message

    return received


async def _arrived(receive: Receive) -> Message | None:
    """What had come when the time was over, if anything had.

    After a standstill (of a laptop asleep) the loop reads the socket and finds the time to be over
    in one turn, and says the latter.
    """
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(0):
            return await receive()  # without a pause, if there is anything
    except TimeoutError:
        return None


def _too_slow(got: int, *, size: int, seconds: float) -> HTTPException:
    detail = (
        f"Expected {size} bytes of the body, or its end, in {seconds:g} s, got {got}; "
        "nothing of it was kept."
    )
    return HTTPException(408, detail, {"Connection": "close"})


class Reader(h11.Connection):
    """What reads requests, and ends one of very many small chunks or lines, or of odd lines.

    h11 takes a line feed alone for the end of a line, and a line that begins with a space for more
    of the one before. Others, a proxy for one, take neither, and see other headers.
    """

    def __init__(self, most_bytes: int | None) -> None:
        super().__init__(h11.SERVER, most_bytes or MOST_HEAD_BYTES)
        self.fault: str | None = None  # why the last request was ended, if by this
        self._more_lines = False  # than were looked at
        self._looked = 0  # at so many bytes of a head, up to the end of its last line
        self._chunks = self._bytes = 0

    def receive_data(self, data: bytes) -> None:
        """Take what has come, to be read by `next_event`."""
        self._more_lines = self._more_lines or b"\n" in data
        super().receive_data(data)

    def next_event(self) -> Any:
        """What has come next. Raises RemoteProtocolError."""
        if self.their_state is h11.IDLE:
            self._look()
        event = super().next_event()
        if event is h11.NEED_DATA:  # each line that has come was looked at, or is none of a head
            self._more_lines = False
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_end
            self._bytes += len(event.data)
            if self._chunks > FREE_CHUNKS + self._bytes / CHUNK_BYTES:
                self._end(f"Expected chunks of at least {CHUNK_BYTES} bytes, got many of fewer.")
        elif isinstance(event, h11.EndOfMessage):
            self._looked = 0
        elif isinstance(event, h11.Request):
            self._looked = self._chunks = self._bytes = 0
            if isinstance(self._reader, ChunkedReader):
                self._reader = _Chunks(self._look)
        return event

    def _look(self) -> None:
        """End a request whose head, or what follows its body, is none for everybody so far.

        Only at the lines that have come since the last look: a client may send byte by byte, and to
        look at all of them again for each takes as long as their number squared.
        """
        data = self.trailing_data[0] if self._more_lines else b""
        if data.startswith(b"\r\n"):  # nothing follows the body, and what comes next is not its
            return
        head, end, _ = data[self._looked :].partition(b"\r\n\r\n")
        lines = head + end
        feeds = data.count(b"\n", 0, self._looked + len(lines))
        if feeds > MOST_LINES + 2:  # with the line of the request, and the empty one at the end
            self._end(f"Expected at most {MOST_LINES} headers, got more.")
        if lines.count(b"\n") > lines.count(b"\r\n") or b"\n " in lines or b"\n\t" in lines:
            self._end("Expected each line of a head to end in CR LF, and none to be continued.")
        self._looked += max(lines.rfind(b"\r\n"), 0)

    def _end(self, fault: str) -> NoReturn:
        self.fault = fault
        raise h11.RemoteProtocolError(fault)


class _Chunks(ChunkedReader):
    """What reads a body in chunks; it looks at the lines after them before they are read."""

    def __init__(self, look: Callable[[], None]) -> None:
        super().__init__()
        self._look = look

    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        if self._reading_trailer:  # also where this calls itself, as the last chunk has come
            self._look()
        return super().__call__(buf)


def patient_protocol(
    seconds: float, *, overload: Overload, connections: Connections
) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol, for its option `http`; it waits so long for the head of a request.

    A connection that has brought none since it was made, or since the last answer, is closed after
    these seconds, or after twice as many at most. What it sends in between does not matter. One
    that reads nothing of its answer is closed after these seconds, too, once the buffers are full.

    Of one address only so many stay that have shown no key, and of one tenant so many that have.

    Where too many wait, a whole request on a connection that is idle is refused without anybody
    reading its head.
    """

    class Patient(H11Protocol):  # not httptools, which takes heads of any length
        """One connection."""

        conn: Reader

        def __init__(self, *about: Any, **more: Any) -> None:
            super().__init__(*about, **more)
            self.conn = Reader(self.config.h11_max_incomplete_event_size)

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            joined = Joined(cast(asyncio.Transport, transport))
            super().connection_made(cast(asyncio.Transport, joined))
            address = network_of(self.client[0] if self.client else "")
            connections.add(self, address, self.transport.abort)
            self._refused = False  # a request since the last look
            self._unread: asyncio.TimerHandle | None = None
            self._look(before=_BUSY)

        def data_received(self, data: bytes) -> None:
            idle = self.conn.states == _IDLE and self.conn.trailing_data == _NOTHING
            path = path_of(data) if idle and not self.flow.write_paused else None
            if path is not None and overload.refuses(path):
                self._refused = True
                self.transport.write(overload.refusal())
                self.on_response_complete()
                return
            before = self.cycle
            for start in range(0, len(data), PIECE_BYTES):
                if not self.transport.is_closing():
                    super().data_received(data[start : start + PIECE_BYTES])
            if path is not None and self.cycle is not before:
                overload.let_through(path)
                cast(dict[str, Any], self.cycle.scope)[LET_THROUGH] = True

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                # its task has not begun: a request of the same packet may have waited for another
                scope = cast(dict[str, Any], self.cycle.scope)
                scope[PROVEN] = self._proven
                scope[END] = self.transport.abort

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                super().send_400_response(self.conn.fault or msg)
                if self.cycle is not None:  # it may be at work still, and would answer once more
                    self.cycle.disconnected = True
                    self.cycle.message_event.set()
            else:  # it was answered already, or is being
                self.transport.abort()

        def _proven(self, tenant: str) -> None:
            if not self.transport.is_closing():
                connections.prove(self, tenant, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._next_look.cancel()
            connections.forget(self)
            if self._unread is not None:
                self._unread.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(seconds, self._reset)

        def resume_writing(self) -> None:
            if self._unread is not None:
                self._unread.cancel()
            super().resume_writing()

        def _reset(self) -> None:
            """End the connection, and megabytes that the system still kept to be read."""
            taken = self.transport.get_extra_info("socket")
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

        def _look(self, *, before: Any) -> None:
            idle = self.cycle is None or self.cycle.response_complete
            if self.transport.is_closing():
                self._reset()  # what it was to read before, it has not read
            elif idle and self.cycle is before and not self._refused:
                self.transport.close()
            self._refused = False
            last = self.cycle if idle else _BUSY
            self._next_look = self.loop.call_later(seconds, lambda: self._look(before=last))

    return Patient


_IDLE = {h11.CLIENT: h11.IDLE, h11.SERVER: h11.IDLE}
_NOTHING = (b"", False)
_BUSY = object()  # neither None nor any cycle of a request and its answer
