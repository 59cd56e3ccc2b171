"""A process that starts nothing: a filter in the kernel refuses it new processes and programs.

It holds for good, for root as for anybody, and for threads that run already and that come later;
threads themselves stay allowed. Whatever runs in this process can then neither fork until the
machine gives out, nor leave something behind that outlives it.

Source: Linux, Documentation/userspace-api/seccomp_filter.rst and the man page seccomp(2).
"""

import ctypes
import errno
import os
import platform
import struct
import sys

# from <linux/seccomp.h>, <linux/prctl.h>, <linux/bpf_common.h> and <linux/sched.h>
_SET_MODE_FILTER, _FLAG_TSYNC, _PR_SET_NO_NEW_PRIVS = 1, 1, 38
_KILL_PROCESS, _ERRNO, _ALLOW = 0x8000_0000, 0x0005_0000, 0x7FFF_0000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_CLONE_THREAD = 0x0001_0000
_X32 = 0x4000_0000  # numbers from here on are the x32 spelling of the same calls

# architecture: AUDIT_ARCH_*, then the numbers of seccomp, clone, clone3 and what is always refused
_CALLS = {
    "x86_64": (0xC000_003E, 317, 56, 435, (57, 58, 59, 322)),  # fork, vfork, execve, execveat
    "aarch64": (0xC000_00B7, 277, 220, 435, (221, 281)),  # execve, execveat
}


def start_nothing_more() -> None:
    """Refuse this process, for good, to make processes and to run programs: EPERM.

    Does nothing on machines whose calls it does not know (other than Linux on x86_64 and aarch64).
    OSError where the kernel does not take the filter.
    """
    calls = _CALLS.get(platform.machine()) if sys.platform == "linux" else None
    if calls is None:
        return
    code = _program(calls)
    instructions = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel does not take PR_SET_NO_NEW_PRIVS")
    number = ctypes.c_long(calls[1])
    if libc.syscall(number, _SET_MODE_FILTER, _FLAG_TSYNC, header) != 0:
        failed = ctypes.get_errno()
        raise OSError(failed, f"the kernel takes no seccomp filter: {os.strerror(failed)}")


def _program(calls: tuple[int, int, int, int, tuple[int, ...]]) -> bytes:
    architecture, _, clone, clone3, refused = calls
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL_PROCESS),
        # its flags lie in memory, which no filter sees; told that there is none, libc uses clone
        (_EQUAL, 0, 1, clone3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for number in refused:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    steps += [
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
