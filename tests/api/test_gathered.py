"""Questions of one moment, answered by one look; looks that stand still, fail or just ended."""

import asyncio
from collections.abc import Mapping, Sequence
from threading import Event

from adap.api.gathered import MOST_LOOKS, SLOW_S, Gathered


class Reads:
    """Gives each key twice; notes what it was asked, and can be held."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.may_go = Event()
        self.may_go.set()

    def __call__(self, keys: Sequence[str]) -> Mapping[str, str | Exception]:
        self.asked.append(list(keys))
        assert self.may_go.wait(60)
        if "broken" in keys:
            raise ConnectionError("the database is away")
        return {key: LookupError(key) if key == "none" else 2 * key for key in keys}


async def until(gathered: Gathered[str, str], *, waiting: int) -> None:
    while gathered.waiting < waiting:
        await asyncio.sleep(0)


def test_who_asks_during_a_look_is_answered_by_the_next_one() -> None:
    async def scenario() -> tuple[list[str], list[list[str]]]:
        gathered: Gathered[str, str] = Gathered()
        read = Reads()
        read.may_go.clear()
        first = asyncio.create_task(gathered.ask("a", read))
        while not read.asked:
            await asyncio.sleep(0)
        others = [asyncio.create_task(gathered.ask(key, read)) for key in ("a", "b", "b", "a")]
        await until(gathered, waiting=5)
        assert not first.done()
        read.may_go.set()
        answers = await asyncio.gather(first, *others)
        assert gathered.waiting == 0
        return answers, read.asked

    answers, asked = asyncio.run(scenario())
    assert answers == ["aa", "aa", "bb", "bb", "aa"]
    assert asked == [["a"], ["a", "b"]]


def test_who_asks_while_a_look_ends_is_answered_however_late_it_comes() -> None:
    async def scenario(turns: int) -> list[str]:
        gathered: Gathered[str, str] = Gathered()
        read = Reads()

        async def later() -> str:
            while gathered.waiting or not read.asked:
                await asyncio.sleep(0)
            return await gathered.ask("c", read)

        async def in_between() -> str:
            while not read.asked:
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            return await gathered.ask("b", read)

        async with asyncio.timeout(60):
            return await asyncio.gather(gathered.ask("a", read), in_between(), later())

    for turns in range(40):
        assert asyncio.run(scenario(turns)) == ["aa", "bb", "cc"]


def test_what_is_wrong_with_one_key_is_no_answer_to_the_others() -> None:
    async def scenario() -> list[str | BaseException]:
        gathered: Gathered[str, str] = Gathered()
        read = Reads()
        asked = (gathered.ask(key, read) for key in ("a", "none", "b"))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, none, last = asyncio.run(scenario())
    assert (first, last) == ("aa", "bb")
    assert isinstance(none, LookupError)


def test_a_look_that_fails_meets_whom_it_was_for_and_nobody_after_them() -> None:
    async def scenario() -> tuple[list[str | BaseException], str]:
        gathered: Gathered[str, str] = Gathered()
        read = Reads()
        asked = (gathered.ask(key, read) for key in ("a", "broken"))
        met = await asyncio.gather(*asked, return_exceptions=True)
        return met, await gathered.ask("a", read)

    met, after = asyncio.run(scenario())
    assert [type(error) for error in met] == [ConnectionError, ConnectionError]
    assert after == "aa"


def test_a_caller_who_leaves_takes_the_answer_from_nobody() -> None:
    async def scenario() -> str:
        gathered: Gathered[str, str] = Gathered()
        read = Reads()
        read.may_go.clear()
        leaves, stays = (asyncio.create_task(gathered.ask("a", read)) for _ in range(2))
        await until(gathered, waiting=2)
        leaves.cancel()
        await asyncio.wait([leaves])
        assert gathered.waiting == 1
        read.may_go.set()
        return await stays

    assert asyncio.run(scenario()) == "aa"


def test_looks_that_stand_still_keep_others_from_a_few_threads_only() -> None:
    async def scenario() -> tuple[int, list[str]]:
        gathered: Gathered[str, str] = Gathered()
        still = Reads()
        still.may_go.clear()
        asked = []
        for number in range(MOST_LOOKS + 2):
            asked.append(asyncio.create_task(gathered.ask(str(number), still)))
            await until(gathered, waiting=number + 1)
            while len(still.asked) < min(number + 1, MOST_LOOKS):
                await asyncio.sleep(0)
            await asyncio.sleep(1.5 * SLOW_S)  # longer is as well: the looks before stand still
        begun = len(still.asked)
        still.may_go.set()
        return begun, await asyncio.gather(*asked)

    begun, answers = asyncio.run(scenario())
    assert begun == MOST_LOOKS
    assert answers == [2 * str(number) for number in range(MOST_LOOKS + 2)]
