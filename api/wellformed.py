"""Requests that two readers could read in two ways, refused before anybody reads them."""

import re

from starlette.types import Scope

SINGLE = frozenset(
    {
        *(b"authorization", b"content-length", b"content-type", b"cookie", b"host"),
        b"idempotency-key",
        *(b"transfer-encoding", b"last-event-id", b"origin", b"prefer", b"range"),
        *(b"sec-fetch-dest", b"sec-fetch-mode", b"sec-fetch-site", b"x-csrf-token"),
    }
)
"""Headers that may come once: of two, one reader takes the first, and another the last."""

MAX_HEADER_BYTES = 8192

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~-]*)(:\d{1,5})?")
_CHARSET = re.compile(rb"charset\s*=\s*\"?([^\s;\"]*)", re.IGNORECASE)
_UTF8 = frozenset({b"utf-8", b"utf8", b"us-ascii"})


def fault_of(scope: Scope) -> str | None:
    """What is wrong with the head of a request, as a sentence; None where nothing is."""
    seen = set()
    for name, value in scope["headers"]:
        if len(name) + len(value) > MAX_HEADER_BYTES:
            return (
                f"Expected headers of at most {MAX_HEADER_BYTES} bytes, got {name.decode():.40} "
                f"of {len(value)}."
            )
        if name in seen:
            return f"Expected one header {name.decode()}, got several."
        if name in SINGLE:
            seen.add(name)
        if name == b"host" and not _HOST.fullmatch(value):
            return "Expected a Host of letters, digits, hyphens and dots, and a port if any."
        if name == b"content-type":  # whoever parses a form takes any codec, however slow
            for charset in _CHARSET.findall(value):
                if charset.lower() not in _UTF8:
                    return "Expected text in UTF-8, got another charset in Content-Type."
    if scope["http_version"] not in ("1.0", "1.1"):
        return f"Expected a request of HTTP/1.1, got one of HTTP/{scope['http_version']}."
    if b"transfer-encoding" in seen and scope["http_version"] == "1.0":
        return "Expected Content-Length in a request of HTTP/1.0, got chunks (RFC 9112, 6.1)."
    if {b"content-length", b"transfer-encoding"} <= seen:
        return "Expected Content-Length or Transfer-Encoding, got both (RFC 9112, 6.1)."
    return None
