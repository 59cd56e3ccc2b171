"""Images of several requests in one forward pass.

While a batch is computed the images that come wait; the next batch takes what is there, so that
batches grow with the load by themselves. Only a batch that would start alone waits a moment for
company. Models take turns, whoever sends more.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Compute(Protocol):
    """(N,) numbers from arrays of N items together; runs in a thread."""

    def __call__(self, parts: Sequence[NDArray[Any]], /) -> NDArray[np.float64]: ...


@dataclass
class Request:
    """The images of one request, and how many of their results are there."""

    items: NDArray[Any]  # (N, …)
    compute: Compute
    done: "asyncio.Future[NDArray[np.float64]]"
    results: NDArray[np.float64] = field(init=False)
    taken: int = 0
    finished: int = 0
    born: float = 0.0

    def __post_init__(self) -> None:
        self.results = np.empty(len(self.items))


class Batches:
    """A queue for each key, and one thread that works on them in turn.

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
        self._thread = ThreadPoolExecutor(1, "batches")

    async def run_through(
        self, key: Hashable, items: NDArray[Any], compute: Compute
    ) -> NDArray[np.float64]:
        """(N,) results of (N, …) items; raises what `compute` does. Cancelling takes them back."""
        loop = asyncio.get_running_loop()
        request = Request(items, compute, loop.create_future(), born=loop.time())
        self._queues.setdefault(key, deque()).append(request)
        self._more.set()
        return await request.done

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            key = await self._next()
            parts = self._take(key)
            if not parts:
                continue
            self._on_batch(key, sum(stop - start for _, start, stop in parts))
            arrays = [request.items[start:stop] for request, start, stop in parts]
            try:
                results = await loop.run_in_executor(self._thread, parts[0][0].compute, arrays)
            except Exception as error:  # noqa: BLE001 - handed to everybody who waits for it
                for request, *_ in parts:
                    if not request.done.done():
                        request.done.set_exception(error)
                continue
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
            if not self._queues:
                await self._more.wait()
                continue
            key, queue = next(iter(self._queues.items()))
            waiting = sum(len(request.items) - request.taken for request in queue)
            left_s = queue[0].born + self.max_wait_s - loop.time()
            if waiting >= self.max_batch or left_s <= 0 or len(self._queues) > 1:
                self._queues.move_to_end(key)
                return key
            try:
                async with asyncio.timeout(left_s):
                    await self._more.wait()
            except TimeoutError:
                pass

    def _take(self, key: Hashable) -> list[tuple[Request, int, int]]:
        """Up to a batch from the front of a queue: requests, each with a range of its items."""
        queue, room = self._queues[key], self.max_batch
        parts = []
        while queue and room:
            request = queue[0]
            start, stop = request.taken, min(len(request.items), request.taken + room)
            parts.append((request, start, stop))
            request.taken = stop
            room -= stop - start
            if stop == len(request.items):
                queue.popleft()
        return parts


def _prune(queue: deque[Request]) -> bool:
    """Drop requests that nobody waits for any more; whether some are left."""
    for request in [request for request in queue if request.done.done()]:
        queue.remove(request)
    return bool(queue)
