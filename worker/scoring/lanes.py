"""A lane for each tenant: a decoder, a queue and threads, so that nobody waits for others' work.

What one tenant sends, however much, is decoded and computed by its own process and threads; between
those of several tenants the kernel shares the cores, as it does between any programs. A decoder
that a file has taken over sees the images of one tenant alone. More tenants at once than there are
lanes share the emptiest; whoever has been idle longest gives a lane up. One is kept ready for
whoever comes next.
"""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

from adap.worker.scoring.batches import Batches
from adap.worker.scoring.decoder import Decoder

log = logging.getLogger(__name__)

MAX_LANES = 4  # besides the one that is ready
ASKED_S = 10.0  # for which a tenant counts as one who asks


@dataclass
class Lane:
    """What the questions of one tenant go through."""

    decoder: Decoder
    batches: Batches
    waiting: int = 0  # images of unanswered questions
    questions: int = 0
    asked_at: float = float("-inf")
    loading: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "loading"))
    searching: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "searching"))
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Lanes:
    """The lanes by tenant. For use within one event loop."""

    def __init__(self, make: Callable[[], Lane], cores: "asyncio.Future[int]") -> None:
        self.restarts = 0  # of decoders of lanes that are gone
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._make = make
        self._cores = cores
        self._of: OrderedDict[str, Lane] = OrderedDict()  # whoever asked last, last
        self._ready = self._start()

    @property
    def all(self) -> list[Lane]:
        """Those that run, the one that is ready included."""
        return [*self._of.values(), self._ready]

    @property
    def contended(self) -> bool:
        """Whether several tenants ask, or did a moment ago."""
        since = time.monotonic() - ASKED_S
        asking = [lane for lane in self.all if lane.questions or lane.asked_at > since]
        return len(asking) > 1

    @contextlib.contextmanager
    def of(self, tenant: str) -> Iterator[Lane]:
        """The lane of a tenant, for one question."""
        lane = self._find(tenant)
        lane.questions += 1
        try:
            yield lane
        finally:
            lane.questions -= 1
            lane.asked_at = time.monotonic()

    async def close(self) -> None:
        """End every lane, with its processes."""
        tasks = [task for lane in self.all for task in lane.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _find(self, tenant: str) -> Lane:
        if tenant not in self._of:
            if len(self._of) >= MAX_LANES:
                idle = next((name for name, lane in self._of.items() if not lane.questions), None)
                if idle is None:
                    return min(self._of.values(), key=lambda lane: lane.waiting)
                self._end(self._of.pop(idle))
            self._of[tenant], self._ready = self._ready, self._start()
        self._of.move_to_end(tenant)
        return self._of[tenant]

    def _start(self) -> Lane:
        lane = self._make()
        for part in (lane.decoder.run(), self._run_batches(lane.batches)):
            task = asyncio.create_task(part)
            task.add_done_callback(self._note)
            lane.tasks.append(task)
        return lane

    def _end(self, lane: Lane) -> None:
        self.restarts += max(lane.decoder.restarts, 0)
        for task in lane.tasks:
            task.cancel()

    async def _run_batches(self, batches: Batches) -> None:
        await batches.run(cores=await asyncio.shield(self._cores))

    def _note(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) and not self.broken.done():
            self.broken.set_exception(error)
