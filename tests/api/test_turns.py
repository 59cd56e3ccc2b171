"""Forms are read piece by piece, and a tenant's forms leave the event loop as much as they take."""

import asyncio
import time
from collections.abc import Awaitable

from starlette.types import Message, Receive

from adap.api.turns import MOST_PIECE_S, OWED_S, PIECE_BYTES, Turns

BODY = bytes(range(256)) * 400  # some pieces, the last one short


def arriving(body: bytes, *, size: int) -> Receive:
    """The messages of a body that comes in parts of this size."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    messages = [
        {"type": "http.request", "body": part, "more_body": place < len(parts)}
        for place, part in enumerate(parts, start=1)
    ]
    left = iter([*messages, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(left)

    return receive


async def pieces(receive: Receive) -> list[bytes]:
    found = []
    while True:
        message = await receive()
        found.append(message["body"])
        if not message["more_body"]:
            assert (await receive())["type"] == "http.disconnect"
            return found


def test_a_form_comes_whole_in_small_pieces() -> None:
    async def scenario(size: int) -> list[bytes]:
        return await pieces(Turns().receive(arriving(BODY, size=size), "a"))

    for size in (1000, 2 * PIECE_BYTES + 1, len(BODY)):
        found = asyncio.run(scenario(size))
        assert b"".join(found) == BODY
        assert max(map(len, found)) <= PIECE_BYTES


def test_between_two_pieces_of_one_tenant_everybody_else_gets_on() -> None:
    order: list[str] = []

    async def form(receive: Receive) -> None:
        while (await receive())["more_body"]:
            order.append("piece")

    async def other() -> None:
        while True:
            order.append("other")
            await asyncio.sleep(0)

    async def scenario() -> None:
        turns = Turns()
        forms: list[Awaitable[None]] = [
            form(turns.receive(arriving(BODY, size=len(BODY)), "a")) for _ in range(8)
        ]
        going = asyncio.create_task(other())
        await asyncio.gather(*forms)
        going.cancel()

    asyncio.run(scenario())
    assert order.count("piece") == 8 * (len(BODY) // PIECE_BYTES)
    assert "piece piece" not in " ".join(order)


def test_the_forms_of_a_tenant_leave_the_loop_as_much_as_they_take() -> None:
    used = 0.0

    async def form(receive: Receive) -> None:
        nonlocal used
        while (await receive())["more_body"]:
            began = time.thread_time()
            while time.thread_time() - began < 2 * OWED_S:
                pass
            used += time.thread_time() - began

    async def scenario() -> float:
        turns = Turns()
        began = time.monotonic()
        await asyncio.gather(
            *(form(turns.receive(arriving(BODY, size=len(BODY)), "a")) for _ in range(3))
        )
        return time.monotonic() - began

    lasted = asyncio.run(scenario())
    assert used > 0.05
    assert lasted > 1.8 * used


def test_a_form_is_not_charged_with_what_others_do_while_its_reader_waits() -> None:
    burnt = 0

    async def other() -> None:
        nonlocal burnt
        while True:
            began = time.thread_time()
            while time.thread_time() - began < 1.2 * MOST_PIECE_S:
                pass
            burnt += 1
            await asyncio.sleep(0)

    async def scenario() -> int:
        going = asyncio.create_task(other())
        receive = Turns().receive(arriving(BODY, size=len(BODY)), "a")
        await receive()
        for _ in range(10):  # as one who writes to a file waits for its thread
            await asyncio.sleep(0)
        before = burnt
        await receive()
        going.cancel()
        return burnt - before

    # each turn of the other lasts longer than the pause, so a few end it on any machine
    assert asyncio.run(scenario()) <= 4
