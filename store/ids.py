"""Identifiers: a prefix that says what it is, then 26 characters that sort by creation time."""

import secrets
import time
from threading import Lock

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]

_lock = Lock()
_last = 0


def new_id(prefix: str) -> str:
    """For example `job_01k9…`: 48 bits of milliseconds, then 80 random bits.

    Those of one process sort in the order in which they were made, within a millisecond too.
    """
    global _last
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    with _lock:
        if number <= _last:
            number = _last + 1 + secrets.randbits(64)
        _last = number
    digits = [_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)]
    return f"{prefix}_{''.join(digits)}"
