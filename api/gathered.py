"""Questions of the same moment, answered by one look at the database."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic

from fastapi.concurrency import run_in_threadpool

from adap.api.recent import Key, Value

AT_ONCE = 64  # different keys, in one look
SLOW_S = 0.1  # a look that takes longer keeps no other one waiting
MOST_LOOKS = 4  # at the same time


class Gathered(Generic[Key, Value]):
    """Who asks while a look is on its way is answered by the next one: it has seen all that was.

    So many who ask at once take one thread, one connection and one transaction, and those who ask
    the same are given the same. For one event loop.
    """

    def __init__(self) -> None:
        self.waiting = 0  # who asked before this turn of the loop, and have no answer yet
        self._new = 0  # who asked in this turn: they are still counted as arriving
        self._asked: dict[Key, asyncio.Future[Value]] = {}
        self._looks: set[asyncio.Task[None] | None] = set()
        self._looked_at = 0.0

    async def ask(
        self, key: Key, read: Callable[[Sequence[Key]], Mapping[Key, Value | Exception]]
    ) -> Value:
        """What `read`, in a thread, gives for this key; an exception that it gives is raised.

        `read` is the same for all who ask; what it raises meets everybody whom it read for.
        """
        answer = self._asked.get(key)
        if answer is None:
            answer = self._asked[key] = asyncio.get_running_loop().create_future()
        slow = time.monotonic() - self._looked_at > SLOW_S
        if not self._looks or (slow and len(self._looks) < MOST_LOOKS):
            self._looked_at = time.monotonic()
            self._looks.add(asyncio.create_task(self._look(read)))
        if not self._new:
            asyncio.get_running_loop().call_soon(self._count)
        self._new += 1
        try:
            return await asyncio.shield(answer)  # others may wait for it when this one has left
        finally:
            self.waiting -= 1

    def _count(self) -> None:
        self.waiting, self._new = self.waiting + self._new, 0

    async def _look(self, read: Callable[[Sequence[Key]], Mapping[Key, Value | Exception]]) -> None:
        """Until nobody asks any more."""
        try:
            while self._asked:
                self._looked_at = time.monotonic()
                keys = list(self._asked)[:AT_ONCE]
                answers = [self._asked.pop(key) for key in keys]
                values: list[Value | Exception]
                try:
                    found = await run_in_threadpool(read, keys)
                    values = [found[key] for key in keys]
                except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
                    values = [error for _ in keys]
                for answer, value in zip(answers, values, strict=True):
                    if isinstance(value, Exception):
                        answer.set_exception(value)
                        answer.exception()  # whoever asked may have left
                    else:
                        answer.set_result(value)
        finally:
            self._looks.discard(asyncio.current_task())  # at once: who asks next starts another
