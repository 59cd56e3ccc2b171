"""Images of several requests in one forward pass.

While a batch is computed the images that come wait; the next batch takes some of what is there, so
that batches grow with the load by themselves. It leaves requests for the batch after it, or all
clients would be answered at once, and the core had nothing to do until they sent again. Only a
batch that would start alone waits a moment for company. Models take turns, whoever sends more.

There is a batch for each core, and none of them waits for another: one batch on several cores waits
at the end of every layer for the core that somebody else uses, too, and on a server somebody does.
There is one thread more than cores, and no model has all of them: one whose batches do not end does
not stop those of the next.
"""

import asyncio
import functools
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SMALL = 16  # images of a batch that costs little more an image than a larger one


class Compute(Protocol):
    """(N,) numbers from arrays of N items together, by so many cores; runs in a thread."""

    def __call__(self, parts: Sequence[NDArray[Any]], /, *, cores: int) -> NDArray[np.float64]: ...


@dataclass
class Request:
    """The images of one request, and how many of their results are there."""

    items: NDArray[Any]  # (N, …)
    compute: Compute
    most: int  # of its items in one batch
    done: "asyncio.Future[NDArray[np.float64]]"
    results: NDArray[np.float64] = field(init=False)
    taken: int = 0
    finished: int = 0
    born: float = 0.0

    def __post_init__(self) -> None:
        self.results = np.empty(len(self.items))


class Batches:
    """A queue for each key, and a thread for each core, and one more, that work on them in turn.

    Requests of one key have items of one shape and dtype, and the same `compute`.
    """

    def __init__(
        self, *, max_batch: int, max_wait_s: float, on_batch: Callable[[Hashable, int], None]
    ) -> None:
        self.max_batch = max_batch
        self.max_wait_s = max_wait_s
        self._on_batch = on_batch  # told the key and the size of each
        self._queues: OrderedDict[Hashable, deque[Request]] = OrderedDict()
        self._more = asyncio.Event()
        self._cores = 1
        self._busy: Counter[Hashable] = Counter()  # threads, by the key that they work on
        self._computed = 0  # requests that are, just now, in part or whole

    async def run_through(
        self, key: Hashable, items: NDArray[Any], compute: Compute, *, most: int | None = None
    ) -> NDArray[np.float64]:
        """(N,) results of (N, …) items; raises what `compute` does. Cancelling takes them back.

        most: the largest batch of this key, where that is less than of others.
        """
        loop = asyncio.get_running_loop()
        request = Request(
            items,
            compute,
            min(most or self.max_batch, self.max_batch),
            loop.create_future(),
            born=loop.time(),
        )
        self._queues.setdefault(key, deque()).append(request)
        self._more.set()
        return await request.done

    async def run(self, *, cores: int) -> None:
        """Work until cancelled."""
        self._cores = cores
        pool = ThreadPoolExecutor(cores + 1, "batches")
        async with asyncio.TaskGroup() as threads:
            for _ in range(cores + 1):
                threads.create_task(self._work(pool))

    async def _work(self, pool: ThreadPoolExecutor) -> None:
        """What one thread does."""
        loop = asyncio.get_running_loop()
        while True:
            key = await self._next()
            parts = self._take(key)
            alone = not self._busy.total() and not any(self._queues.values())
            self._busy[key] += 1
            self._on_batch(key, sum(stop - start for _, start, stop in parts))
            arrays = [request.items[start:stop] for request, start, stop in parts]
            compute = functools.partial(parts[0][0].compute, cores=self._cores if alone else 1)
            self._computed += len(parts)
            try:
                results = await loop.run_in_executor(pool, compute, arrays)
            except Exception as error:  # noqa: BLE001 - handed to everybody who waits for it
                for request, *_ in parts:
                    if not request.done.done():
                        request.done.set_exception(error)
                continue
            finally:
                self._computed -= len(parts)
                self._busy -= Counter([key])
                self._more.set()
            position = 0
            for request, start, stop in parts:
                request.results[start:stop] = results[position : position + stop - start]
                position += stop - start
                request.finished += stop - start
                if request.finished == len(request.items) and not request.done.done():
                    request.done.set_result(request.results)

    async def _next(self) -> Hashable:
        """The key whose turn it is, once it has a full batch or has waited long enough."""
        loop = asyncio.get_running_loop()
        while True:
            self._more.clear()
            for key in [key for key, queue in self._queues.items() if not _prune(queue)]:
                del self._queues[key]
            free = [key for key in self._queues if self._busy[key] < self._cores]
            if not free:
                await self._more.wait()
                continue
            key = free[0]
            queue = self._queues[key]
            left_s = queue[0].born + self.max_wait_s - loop.time()
            if _waiting(queue) >= queue[0].most or left_s <= 0 or len(self._queues) > 1:
                self._queues.move_to_end(key)
                return key
            try:
                async with asyncio.timeout(left_s):
                    await self._more.wait()
            except TimeoutError:
                pass

    def _take(self, key: Hashable) -> list[tuple[Request, int, int]]:
        """Up to a batch from the front of a queue: requests, each with a range of its items.

        Idle threads that no other key needs share what waits. Half of all requests wait while the
        others are computed, where batches need not be too small for that.
        """
        queue = self._queues[key]
        idle = self._cores - self._busy.total()
        threads = max(idle - len(self._queues) + 1, 1)
        room = min(ceil(_waiting(queue) / threads), queue[0].most)
        inside = self._computed + sum(map(len, self._queues.values()))
        most, enough = ceil(inside / (2 * self._cores)), room - SMALL
        parts: list[tuple[Request, int, int]] = []
        while queue and room and (len(parts) < most or room > enough):
            request = queue[0]
            start, stop = request.taken, min(len(request.items), request.taken + room)
            parts.append((request, start, stop))
            request.taken = stop
            room -= stop - start
            if stop == len(request.items):
                queue.popleft()
        return parts


def _waiting(queue: deque[Request]) -> int:
    """Items that are in no batch yet."""
    return sum(len(request.items) - request.taken for request in queue)


def _prune(queue: deque[Request]) -> bool:
    """Drop requests that nobody waits for any more; whether some are left."""
    for request in [request for request in queue if request.done.done()]:
        queue.remove(request)
    return bool(queue)
