"""Memory that was freed and is still held: given back to the system."""

import ctypes
import sys


def give_back() -> None:
    """Return the free pages within the C library's heap, where it can: glibc's.

    Large arrays that come and go leave holes there, into which small ones that stay are put; so the
    next large one finds no room in it, and a process that works off many pieces grows with them.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
