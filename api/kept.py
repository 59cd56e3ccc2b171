"""What was costly to read, kept in memory for whoever asks again: bounded by its bytes.

Each tenant has what it asked for itself. Where there is too much, what goes is the oldest of the
tenant that has most of it, so that nobody who looks at many large things makes the pages of others
slow. A tenant makes one thing at a time, and only so many of its requests wait for that.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar, cast

from adap.api.errors import ApiError

MOST_BYTES = 160 * 1024**2
MOST_WAITING = 8  # requests of one tenant: half of the threads that there are

Value = TypeVar("Value")


class Kept:
    """Values by tenant and key, for the threads of one process; none ever changes."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = Lock()
        self._values: dict[str, OrderedDict[Hashable, tuple[Any, int]]] = {}
        self._bytes: Counter[str] = Counter()
        self._turns: dict[str, Lock] = {}
        self._waiting: Counter[str] = Counter()

    def get(
        self,
        tenant: str,
        key: Hashable,
        make: Callable[[], Value],
        *,
        weigh: Callable[[Value], int],
    ) -> Value:
        """The value of this key, made if it is not there; `weigh` gives its bytes.

        Raises ApiError where too many requests of the tenant wait for one that is made already.
        """
        found = self._find(tenant, key)
        if found is None:
            with self._turn(tenant):
                found = self._find(tenant, key)  # made meanwhile, by whoever came first
                if found is None:
                    value = make()
                    found = (value, weigh(value))
                    self._keep(tenant, key, found)
        return cast(Value, found[0])

    def _find(self, tenant: str, key: Hashable) -> tuple[Any, int] | None:
        with self._lock:
            values = self._values.get(tenant)
            if values is None or key not in values:
                return None
            values.move_to_end(key)
            return values[key]

    @contextmanager
    def _turn(self, tenant: str) -> Iterator[None]:
        """The tenant's turn to make something."""
        with self._lock:
            if self._waiting[tenant] >= MOST_WAITING:
                raise ApiError(
                    "rate_limited",
                    f"Expected at most {MOST_WAITING} requests at a time that read large files "
                    "for the first time, got one more; ask again in a moment.",
                    headers={"Retry-After": "1"},
                )
            self._waiting[tenant] += 1
            turn = self._turns.setdefault(tenant, Lock())
        try:
            with turn:
                yield
        finally:
            with self._lock:
                self._waiting[tenant] -= 1
                if not self._waiting[tenant]:
                    del self._waiting[tenant], self._turns[tenant]

    def _keep(self, tenant: str, key: Hashable, found: tuple[Any, int]) -> None:
        if found[1] > self._most_bytes:
            return
        with self._lock:
            self._values.setdefault(tenant, OrderedDict())[key] = found
            self._bytes[tenant] += found[1]
            while self._bytes.total() > self._most_bytes:
                (most, _), *_ = self._bytes.most_common(1)
                _, (_, weight) = self._values[most].popitem(last=False)
                self._bytes[most] -= weight
                if not self._values[most]:
                    del self._values[most], self._bytes[most]
