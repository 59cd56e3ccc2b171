"""Refuse at once what would wait too long, so that what was accepted is answered in time."""

import logging
import time

from anyio.to_thread import current_default_thread_limiter
from starlette.types import Scope, Send

from api import errors
from api.metrics import Metrics
from store.ids import new_id

log = logging.getLogger(__name__)

ALWAYS = frozenset({"/livez", "/readyz", "/metrics"})  # what watches the service sees it busy, too
STREAM = "/events"  # who cannot follow a job asks for it again and again
RETRY_S = 1
LOGGED_EVERY_S = 1.0
STATUS = errors.CODES["overloaded"][0]
_END = b"\r\n\r\n"


class Overload:
    """Whether too many requests wait for this process, and their answer where they do.

    They wait for one of the threads that may talk to the database. Streams, uploads on their way
    and whoever waits for a job hold none and are not counted.
    """

    def __init__(self, most_waiting: int, metrics: Metrics) -> None:
        self._most_waiting = most_waiting
        self._metrics = metrics
        self._logged_at = float("-inf")

    def refuses(self, path: str) -> bool:
        """Whether to refuse a request of this path; to be asked in the event loop."""
        threads = current_default_thread_limiter()
        return (
            threads.available_tokens <= 0  # or nobody waits, which is cheaper to know
            and threads.statistics().tasks_waiting >= self._most_waiting
            and path not in ALWAYS
            and not path.endswith(STREAM)
        )

    async def refuse(self, scope: Scope, send: Send) -> None:
        """Answer a request by 503."""
        headers, body = self._answer(scope["method"])
        await send({"type": "http.response.start", "status": STATUS, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def refusal_of(self, data: bytes) -> bytes | None:
        """What to answer to what came on a connection that was idle; None where it is to be read.

        Most of an overload is refused, so that what a refusal costs is taken from those that are
        not. That of one whole request without a body costs a tenth when nobody parses its head.
        """
        if not data.startswith(b"GET ") or data.find(_END) != len(data) - len(_END):
            return None
        path = data[4 : data.find(b" ", 4)].partition(b"?")[0].decode("latin-1")
        if not self.refuses(path):
            return None
        headers, body = self._answer("GET")
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        return b"HTTP/1.1 %d Service Unavailable\r\n%s\r\n%s" % (STATUS, lines, body)

    def _answer(self, method: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        if time.monotonic() - self._logged_at > LOGGED_EVERY_S:
            self._logged_at = time.monotonic()
            log.warning("requests.refused", extra={"most_waiting": self._most_waiting})
        self._metrics.count({"type": "http", "method": method}, status=STATUS, seconds=0.0)
        request_id = new_id("req")
        body = errors.overloaded(request_id)
        headers = {
            "content-type": errors.MEDIA_TYPE,
            "content-length": str(len(body)),
            "retry-after": str(RETRY_S),
            "x-request-id": request_id,
        }
        return [(name.encode(), value.encode()) for name, value in headers.items()], body
