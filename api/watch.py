"""Jobs that somebody follows: one look at the database for all of their followers."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sqlalchemy import bindparam, select
from sqlalchemy.exc import SQLAlchemyError

from adap.store.database import Database
from adap.store.tables import JobRow

log = logging.getLogger(__name__)

LOOK_S = 0.3

_STATES = select(JobRow.id, JobRow.status, JobRow.last_event, JobRow.progress).where(
    JobRow.id.in_(bindparam("ids", expanding=True))
)


Look = TypeVar("Look")


@dataclass
class Watched:
    """A job with followers. Take `news` before you look at the job, and await it afterwards."""

    threads: CapacityLimiter
    followers: int = 0
    state: Any = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    looks: dict[int, tuple[float, "asyncio.Task[Any]"]] = field(default_factory=dict)

    def tell(self, state: Any) -> None:
        """Wake the followers: this is how the job is now."""
        self.state = state
        self.looks.clear()
        self.news.set()
        self.news = asyncio.Event()

    async def look(self, seen: int, read: Callable[[int], Look]) -> Look:
        """What `read(seen)` gives, in a thread, once for all who ask for it at this time."""
        began, task = self.looks.get(seen, (-LOOK_S, None))
        if task is None or time.monotonic() - began > LOOK_S:
            task = asyncio.create_task(run_sync(read, seen, limiter=self.threads))
            self.looks[seen] = (time.monotonic(), task)
        found: Look = await asyncio.shield(task)  # who asked first may leave
        return found


class Health:
    """What is asked of the service itself: by many, of anybody, and looked at once for all of them.

    It has threads of its own, so that neither keeps the other waiting: no flood of requests the
    watching of the service, and no flood of questions how it is the requests.
    """

    def __init__(self) -> None:
        self.threads = CapacityLimiter(2)
        self._looks: dict[str, tuple[float, asyncio.Task[Any]]] = {}

    async def look(self, name: str, read: Callable[[], Coroutine[Any, Any, Look]]) -> Look:
        """What `read` gives, or gave to whoever asked a moment ago."""
        began, task = self._looks.get(name, (-LOOK_S, None))
        if task is None or (time.monotonic() - began > LOOK_S and task.done()):
            task = asyncio.create_task(read())
            self._looks[name] = (time.monotonic(), task)
        found: Look = await asyncio.shield(task)
        return found


class Watch:
    """For use within one event loop; looks while there is anybody to tell.

    Whoever follows a job or waits for its end has these threads and no others, so that a tenant
    who opens all streams at once keeps nobody else's requests waiting.
    """

    def __init__(self, database: Database) -> None:
        self.threads = CapacityLimiter(4)
        self._database = database
        self._jobs: dict[str, Watched] = {}
        self._looking: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def follow(self, job_id: str) -> AsyncIterator[Watched]:
        """Follow a job as long as the block."""
        watched = self._jobs.setdefault(job_id, Watched(self.threads))
        watched.followers += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield watched
        finally:
            watched.followers -= 1
            if not watched.followers:
                del self._jobs[job_id]

    async def _look(self) -> None:
        while self._jobs:
            try:
                found = await run_sync(self._read, list(self._jobs), limiter=self.threads)
            except SQLAlchemyError as error:
                log.warning("watch.failed", extra={"reason": str(error)})
                found = {}
            for job_id, state in found.items():
                watched = self._jobs.get(job_id)
                if watched is not None and watched.state != state:
                    watched.tell(state)
            await asyncio.sleep(LOOK_S)
        self._looking = None

    def _read(self, ids: list[str]) -> dict[str, Any]:
        with self._database.reading() as session:
            return {row.id: tuple(row) for row in session.execute(_STATES, {"ids": ids})}
