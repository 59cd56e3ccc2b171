"""What is written in one turn of the event loop goes out together, in order, and within bounds."""

import asyncio
from typing import Any, cast

from adap.api.joined import MOST_BYTES, Joined


class Wire(asyncio.Transport):
    """Notes what is sent through it, and when it is closed."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.7", 5)})
        self.sent: list[bytes] = []

    def write(self, data: Any) -> None:
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.sent.append(b"(closed)")


def sent_by(*turns: tuple[bytes, ...], close: bool = False) -> list[bytes]:
    async def scenario() -> list[bytes]:
        wire = Wire()
        joined = Joined(wire)
        for turn in turns:
            for data in turn:
                joined.write(data)
            if not close:
                await asyncio.sleep(0)
        if close:
            joined.close()
            await asyncio.sleep(0)
        return wire.sent

    return asyncio.run(scenario())


def test_writes_of_one_turn_are_sent_as_one_and_those_of_the_next_apart() -> None:
    assert sent_by((b"head", b"", b"body"), (b"", b""), (b"next",)) == [b"headbody", b"next"]


def test_much_is_sent_at_once_and_in_its_order() -> None:
    large = bytes(MOST_BYTES)
    assert sent_by((b"head", large, b"a", b"b")) == [b"head" + large, b"ab"]


def test_what_was_written_is_sent_before_the_end() -> None:
    assert sent_by((b"head", b"body"), close=True) == [b"headbody", b"(closed)"]


def test_all_else_is_asked_of_the_connection_itself() -> None:
    async def scenario() -> Any:
        return cast(asyncio.Transport, Joined(Wire())).get_extra_info("peername")

    assert asyncio.run(scenario()) == ("192.0.2.7", 5)
