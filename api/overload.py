"""Refuse at once what would wait too long, so that what was accepted is answered in time."""

import asyncio
import logging
import time
from typing import Any

from anyio import CapacityLimiter
from starlette.types import Scope, Send

from adap.api import errors
from adap.api.gathered import Gathered
from adap.api.metrics import Metrics
from adap.store.ids import new_id

log = logging.getLogger(__name__)

ALWAYS = frozenset({"/livez", "/readyz", "/metrics"})  # what watches the service sees it busy, too
STREAM = "/events"  # who cannot follow a job asks for it again and again
RETRY_S = 1
LOGGED_EVERY_S = 1.0
STATUS = errors.CODES["overloaded"][0]
LET_THROUGH = "adap.let_through"  # in the scope of a request: it need not be asked about again
_END = b"\r\n\r\n"

# what every refusal says, with an id in it that is replaced by the request's own
_ID = new_id("req").encode()
_BODY = errors.overloaded(_ID.decode())
_HEADERS = [
    (b"content-type", errors.MEDIA_TYPE.encode()),
    (b"content-length", b"%d" % len(_BODY)),
    (b"retry-after", b"%d" % RETRY_S),
    (b"x-request-id", _ID),
]
_LINES = b"".join(b"%s: %s\r\n" % header for header in _HEADERS)
_WHOLE = b"HTTP/1.1 %d Service Unavailable\r\n%s\r\n%s" % (STATUS, _LINES, _BODY)


class Overload:
    """Whether too many requests wait for this process, and their answer where they do.

    They wait for one of the threads that may talk to the database, or for one that looks for many.
    Streams, uploads on their way and whoever waits for a job hold none and are not counted.
    """

    def __init__(self, most_waiting: int, metrics: Metrics) -> None:
        self._most_waiting = most_waiting
        self._metrics = metrics
        self._threads: CapacityLimiter | None = None
        self._gathered: Gathered[Any, Any] = Gathered()
        self._arriving = 0  # requests that were let through, and have not asked for a thread yet
        self._logged_at = float("-inf")

    def watch(self, threads: CapacityLimiter, gathered: Gathered[Any, Any]) -> None:
        """Refuse what would wait too long for these; until then nothing is refused."""
        self._threads = threads
        self._gathered = gathered

    def refuses(self, path: str) -> bool:
        """Whether to refuse a request of this path; to be asked in the event loop."""
        return self._full() and _waits(path)

    def _full(self) -> bool:
        if self._threads is None:
            return False
        free = self._threads.available_tokens
        others = self._arriving + self._gathered.waiting
        if free > others:  # nobody waits, which is cheaper to know than how many do
            return False
        waiting = self._threads.statistics().tasks_waiting + others - free
        return bool(waiting >= self._most_waiting)

    async def refuse(self, scope: Scope, send: Send) -> None:
        """Answer a request by 503."""
        ours = self._count(scope["method"])
        headers = [(name, value.replace(_ID, ours)) for name, value in _HEADERS]
        await send({"type": "http.response.start", "status": STATUS, "headers": headers})
        await send({"type": "http.response.body", "body": _BODY.replace(_ID, ours)})

    def refusal(self) -> bytes:
        """The answer to a GET whose head nobody has parsed, which costs a tenth.

        Most of an overload is refused, so that what a refusal costs is taken from the others.
        """
        return _WHOLE.replace(_ID, self._count("GET"))

    def let_through(self, path: str) -> None:
        """Count a request until the loop has come to it, as others may arrive in the same turn."""
        if not _waits(path):
            return
        if not self._arriving:
            asyncio.get_running_loop().call_soon(self._have_arrived)
        self._arriving += 1

    def _have_arrived(self) -> None:
        self._arriving = 0

    def _count(self, method: str) -> bytes:
        """Count and log a refusal; returns the id of the request."""
        if time.monotonic() - self._logged_at > LOGGED_EVERY_S:
            self._logged_at = time.monotonic()
            log.warning("requests.refused", extra={"most_waiting": self._most_waiting})
        self._metrics.count({"type": "http", "method": method}, status=STATUS, seconds=0.0)
        return new_id("req").encode()


def _waits(path: str) -> bool:
    """Whether a request of this path may have to wait."""
    return path not in ALWAYS and not path.endswith(STREAM)


def path_of(data: bytes) -> str | None:
    """The path of exactly one request by GET, without a body; None of anything else."""
    if not data.startswith(b"GET ") or data.find(_END) != len(data) - len(_END):
        return None
    return data[4 : data.find(b" ", 4)].partition(b"?")[0].decode("latin-1")
