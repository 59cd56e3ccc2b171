"""Frames over sockets: whole and in order, long beside short; msgpack is the judge."""

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from adap.worker.scoring.link import (
    BUFFER_BYTES,
    SHORT_BYTES,
    FrameStream,
    ScoringGoneError,
    ScoringLink,
    read_frame,
    write_frame,
)

LONG = bytes(range(256)) * 4 * (SHORT_BYTES // 256)


async def pair() -> tuple[FrameStream, FrameStream]:
    """Two ends of a stream."""
    ends = [
        FrameStream(*await asyncio.open_connection(sock=end, limit=BUFFER_BYTES))
        for end in socket.socketpair()
    ]
    return ends[0], ends[1]


@pytest.mark.parametrize(
    "frame",
    [
        {"number": 1, "text": "Katze", "none": None, "scores": [0.5, -1.0]},
        {"data": [b"short", LONG, b"", LONG[1:]], "deep": {"pixels": LONG}},
        {"data": [memoryview(LONG)]},
    ],
)
def test_a_frame_arrives_as_it_was_sent(frame: dict[str, Any]) -> None:
    async def sent() -> dict[str, Any]:
        ours, theirs = await pair()
        sending = asyncio.create_task(ours.send(frame))
        arrived = await theirs.read(max_bytes=10 * len(LONG))
        await sending
        ours.close()
        theirs.close()
        return arrived

    async def over_a_file() -> dict[str, Any] | None:
        ours, theirs = socket.socketpair()
        with ours, theirs, ours.makefile("wb") as out, theirs.makefile("rb") as file:
            writing = asyncio.create_task(asyncio.to_thread(write_frame, out, frame))
            arrived = await asyncio.to_thread(read_frame, file)
            await writing
            return arrived

    for arrived in (asyncio.run(sent()), asyncio.run(over_a_file())):
        assert msgpack.packb(arrived) == msgpack.packb(frame)


def test_a_frame_of_more_than_its_reader_takes_is_refused_before_it_comes() -> None:
    async def read() -> None:
        ours, theirs = await pair()
        sending = asyncio.create_task(ours.send({"data": [LONG, LONG]}))
        try:
            with pytest.raises(ValueError, match="expected at most"):
                await theirs.read(max_bytes=len(LONG) + 100)
        finally:
            theirs.close()
            ours.close()
            await asyncio.wait([sending])

    asyncio.run(read())


def test_half_a_frame_is_an_end_and_no_frame() -> None:
    async def read() -> None:
        ours, theirs = await pair()
        sending = asyncio.create_task(ours.send({"data": [b"x" * 2**24]}))
        reading = asyncio.create_task(theirs.read(max_bytes=2**25))
        await asyncio.wait([sending], timeout=0)
        sending.cancel()
        await asyncio.wait([sending])
        ours.close()
        with pytest.raises(EOFError):
            await reading
        theirs.close()

    asyncio.run(read())


def test_an_answer_that_cannot_be_read_is_logged_and_the_next_question_gets_a_new_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [b"\xc1", msgpack.packb([1]), msgpack.packb({"no": "number"})]  # 0xc1 is nothing

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = FrameStream(reader, writer)
        question = await stream.read(max_bytes=2**20)
        if answers:
            content = answers.pop()
            writer.write(len(content).to_bytes(4) + content)
        else:
            await stream.send({"of": "next", "number": question["number"]})
        await writer.drain()
        await reader.read()
        stream.close()

    async def run() -> None:
        server = await asyncio.start_unix_server(serve, tmp_path / "s")
        link = ScoringLink(f"unix://{tmp_path / 's'}")
        while answers:
            with pytest.raises(ScoringGoneError):
                await link.ask({"ask": "unreadable"})
        assert await link.ask({"ask": "next"}) == {"of": "next"}
        await link.close()
        server.close()

    asyncio.run(run())
    gc.collect()  # exceptions that nobody looked at are told then
    assert [record.message for record in caplog.records] == ["scoring.bad_answer"] * 3


Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def asked(folder: Path, ask: Callable[[ScoringLink], Awaitable[None]], answer: Answer) -> None:
    """Let `ask` have a link to a server that answers each question, and reads none beside."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = FrameStream(reader, writer)
        try:
            while True:
                question = await stream.read(max_bytes=2**30)
                await stream.send({**await answer(question), "number": question.get("number")})
        except (EOFError, OSError):
            stream.close()

    async def run() -> None:
        server = await asyncio.start_unix_server(serve, folder / "s", limit=BUFFER_BYTES)
        link = ScoringLink(f"unix://{folder / 's'}")
        await ask(link)
        await link.close()
        server.close()

    asyncio.run(run())


def test_a_tenants_question_waits_for_no_other_tenants(tmp_path: Path) -> None:
    read = asyncio.Event()

    async def answer(question: dict[str, Any]) -> dict[str, Any]:
        if question["tenant"] == "slow":
            await read.wait()  # and what the tenant sends next stays in its line
        return {"of": question["tenant"]}

    async def ask(link: ScoringLink) -> None:
        data = [b"x" * 2**24]
        slow = [asyncio.create_task(link.ask({"tenant": "slow", "data": data})) for _ in range(2)]
        assert await link.ask({"tenant": "quick"}) == {"of": "quick"}
        assert not any(task.done() for task in slow)
        read.set()
        assert await asyncio.gather(*slow) == [{"of": "slow"}] * 2

    asked(tmp_path, ask, answer)


def test_a_question_that_is_left_while_it_is_sent_leaves_the_line_whole(tmp_path: Path) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    kinds: list[str] = []

    async def answer(question: dict[str, Any]) -> dict[str, Any]:
        kinds.append(question["ask"])
        begun.set()
        await go_on.wait()
        return {"of": question["ask"]}

    async def ask(link: ScoringLink) -> None:
        first = asyncio.create_task(link.ask({"ask": "first"}))
        await begun.wait()  # nobody reads: what is sent now stays under way
        left = asyncio.create_task(link.ask({"ask": "left", "data": [b"x" * 2**24]}))
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.wait([left])
        go_on.set()
        assert await first == {"of": "first"}
        assert await link.ask({"ask": "next"}) == {"of": "next"}

    asked(tmp_path, ask, answer)
    assert kinds == ["first", "left", "cancel", "next"]
