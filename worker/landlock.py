"""A process that sees a few folders only, where no namespaces can be had: Landlock, by its calls.

Linux lets any process give up the rest of the file system for good, with all that it starts. That
is the file wall of the sandbox in containers whose runtime forbids user namespaces, as Docker's
default does. Run as a file, it builds the wall and becomes the command that follows:

    python -I -S landlock.py '{"names": [], "read": ["/lib"], "write": ["/1"]}' -- command arguments

It does NOT keep anybody from sockets (`adap.worker.seccomp` does), nor from what was open before.
Imports nothing of ours: it runs before our packages can be found.

Source: Linux, Documentation/userspace-api/landlock.rst and the man page landlock(7).
"""

import ctypes
import json
import os
import sys
from collections.abc import Iterable
from functools import cache

# the numbers are the same on every architecture; the constants are from <linux/landlock.h>
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH, _PR_SET_NO_NEW_PRIVS = 1, 1, 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE = 1 << 14
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_MAKE_SPECIAL = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11  # devices, sockets and pipes with names
# what each version of the interface knows: the accesses to files, to the network, and the scopes
_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_NETWORK = {4: 0b11}  # TCP: bind, connect
_SCOPES = {6: 0b11}  # abstract Unix sockets, signals to processes outside


class _Ruleset(ctypes.Structure):
    _fields_ = [
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scope", ctypes.c_uint64),
    ]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("access", ctypes.c_uint64), ("parent", ctypes.c_int32)]


@cache
def landlock_version() -> int:
    """The kernel's version of the interface; 0 where it has none, or is told not to offer it."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)))


def give_up_files(*, names: Iterable[str], read: Iterable[str], write: Iterable[str]) -> None:
    """Leave this process, for good, these files and folders and what is below them.

    names: folders of which it may know what is in them, and not read it. Paths that do not
    exist are left out. OSError where the kernel does not take the rules.
    """
    version = landlock_version()
    handled = _Ruleset(_known(_FILES, version), _known(_NETWORK, version), _known(_SCOPES, version))
    size = ctypes.sizeof(_Ruleset) if version >= 6 else 16 if version >= 4 else 8
    rules = _called(_CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(size), 0)
    try:
        writable = handled.files & ~_MAKE_SPECIAL
        for paths, access in ((names, _READ_DIR), (read, _READ), (write, writable)):
            for path in paths:
                _allow(rules, path, access & handled.files)
        if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "the kernel does not take PR_SET_NO_NEW_PRIVS")
        _called(_RESTRICT_SELF, ctypes.c_int(rules), 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            access &= _OF_FILES
        rule = _Beneath(access, descriptor)
        _called(_ADD_RULE, ctypes.c_int(rules), _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)


def _known(masks: dict[int, int], version: int) -> int:
    return max((mask for since, mask in masks.items() if since <= version), default=0)


def _called(number: int, *arguments: object) -> int:
    result = int(_libc().syscall(number, *arguments))
    if result < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, f"the kernel takes no Landlock rules: {os.strerror(failed)}")
    return result


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _main() -> None:
    folders = json.loads(sys.argv[1])
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # out of reach from behind the wall
    give_up_files(names=folders["names"], read=folders["read"], write=folders["write"])
    command = sys.argv[3:]
    os.execv(command[0], command)  # noqa: S606 - it is what the caller starts


if __name__ == "__main__":
    _main()
