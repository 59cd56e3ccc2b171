"""Forms in turns: of one tenant the event loop reads a small piece, then does all else that waits.

To take a form of many parts apart costs the loop far more than its bytes. A tenant who sends many
at once would have them all read between two steps of everybody else's requests; here a tenant's
forms are read one piece at a time, and take no more of the loop than they leave.
"""

import asyncio
import time
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from starlette.types import Message, Receive

PIECE_BYTES = 16 * 1024  # read at once: a millisecond's work, if it is of many small parts
OWED_S = 0.002  # of the loop's time, before a pause as long gives it back
MOST_OWED_S = 0.05
MOST_PIECE_S = 0.005  # for a piece, or a form would be charged with what others do while it waits


@dataclass(eq=False)
class _Tenant:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    owed_s: float = 0.0

    async def wait(self, used_s: float) -> None:
        """Until the next piece may be read, after the last one took so long."""
        async with self.lock:
            self.owed_s += used_s
            pause = min(self.owed_s, MOST_OWED_S) if self.owed_s >= OWED_S else 0.0
            await asyncio.sleep(pause)
            if pause:
                self.owed_s = 0.0


class Turns:
    """Whose forms are being read, tenant by tenant; for one event loop."""

    def __init__(self) -> None:
        self._tenants: WeakValueDictionary[str, _Tenant] = WeakValueDictionary()

    def receive(self, receive: Receive, tenant: str) -> Receive:
        """Receive a form of this tenant's, piece by piece."""
        found = self._tenants.get(tenant) or _Tenant()
        self._tenants[tenant] = found
        rest: Message = {"type": "http.request", "body": b"", "more_body": True}
        began: float | None = None

        async def received() -> Message:
            nonlocal rest, began
            used_s = 0.0 if began is None else min(time.thread_time() - began, MOST_PIECE_S)
            if not rest.get("body"):
                rest = await receive()
                if rest["type"] != "http.request":
                    return rest
            await found.wait(used_s)
            body = rest.get("body", b"")
            piece, rest = body[:PIECE_BYTES], {**rest, "body": body[PIECE_BYTES:]}
            more = bool(rest["body"]) or rest.get("more_body", False)
            began = time.thread_time()
            return {"type": "http.request", "body": piece, "more_body": more}

        return received
