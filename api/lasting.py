"""Downloads, which may take hours: they end soon after the key of whoever asked for them."""

import time
from typing import Any

from fastapi import Request
from fastapi.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from adap.api.deps import END, House, still_admitted

LOOK_S = 2.0  # between two looks at the key


class Download(FileResponse):
    """A file, sent as long as its caller may have it; then the connection is closed."""

    def __init__(self, request: Request, house: House, *about: Any, **more: Any) -> None:
        super().__init__(*about, **more)
        self._request, self._house = request, house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        looked_at = time.monotonic()

        async def send_while_admitted(message: Message) -> None:
            nonlocal looked_at
            if time.monotonic() - looked_at > LOOK_S:
                if not await still_admitted(self._request, self._house):
                    raise _KeyEndedError
                looked_at = time.monotonic()
            await send(message)

        try:
            await super().__call__(scope, receive, send_while_admitted)
        except _KeyEndedError:
            scope[END]()
            while (await receive())["type"] != "http.disconnect":
                pass


class _KeyEndedError(Exception):
    """The key ended while its download was on its way."""
