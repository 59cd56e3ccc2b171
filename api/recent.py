"""A short-lived cache of what every request asks of the database again."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

KEPT_S = 1.0
MOST = 4096

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values by key, each at most a second old.

    What another process changes is seen after that second. What this process changes is to be
    forgotten by whoever changes it, after the commit, so that it is seen at once.
    """

    def __init__(self) -> None:
        self._values: dict[Key, tuple[float, Value]] = {}
        self._forgotten_at = 0.0

    def get(self, key: Key) -> Value | None:
        """The value, None where there is none that is recent."""
        found = self._values.get(key)
        if found is None or time.monotonic() - found[0] > KEPT_S:
            return None
        return found[1]

    def keep(self, key: Key, value: Value, *, asked_at: float) -> None:
        """Keep a value; `asked_at` is the `time.monotonic()` before it was read."""
        if len(self._values) >= MOST:
            self._values.clear()
        if asked_at > self._forgotten_at:
            self._values[key] = (asked_at, value)

    def forget(self) -> None:
        """Forget everything: something has changed."""
        self._forgotten_at = time.monotonic()
        self._values.clear()


class Together(Generic[Key, Value]):
    """Questions on their way, for one event loop: who asks the same meanwhile is answered by it.

    So a thousand requests of one moment that need to know the same take one thread.
    """

    def __init__(self) -> None:
        self._asked: dict[Key, asyncio.Task[Value]] = {}

    async def ask(self, key: Key, read: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """What `read` gives to whoever asked this first."""
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.create_task(read())
            task.add_done_callback(lambda _: self._asked.pop(key, None))
        return await asyncio.shield(task)  # who asked first may leave
