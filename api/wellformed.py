"""Requests that two readers could read in two ways, refused before anybody reads them."""

from starlette.types import Scope

SINGLE = frozenset(
    {
        *(b"authorization", b"content-length", b"content-type", b"host", b"idempotency-key"),
        *(b"transfer-encoding", b"last-event-id", b"origin", b"prefer", b"range"),
    }
)
"""Headers that may come once: of two, one reader takes the first, and another the last."""

MAX_HEADER_BYTES = 8192


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
    if {b"content-length", b"transfer-encoding"} <= seen:
        return "Expected Content-Length or Transfer-Encoding, got both (RFC 9112, 6.1)."
    return None
