"""A process that asks the kernel for little: a filter lets a short list of system calls through.

What stays is what Python, numpy, torch, onnxruntime, pyarrow and Pillow need to read files, to
compute in threads and to answer on a pipe that is open already. Everything else is refused, for
root as for anybody: sockets, new processes and programs, namespaces and mounts, other processes'
memory, keys, the clock, the kernel's newer and less tried interfaces. A signal goes to the process
itself alone, its limits are its own alone. The filter holds for good, and for threads that run
already.

The numbers are the kernel's for x86_64 and aarch64; on other machines there is no filter, and
`filters()` says so. Source: Linux, Documentation/userspace-api/seccomp_filter.rst, the man page
seccomp(2), arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from dataclasses import dataclass

# from <linux/seccomp.h>, <linux/prctl.h>, <linux/bpf_common.h> and <linux/sched.h>
_SET_MODE_FILTER, _FLAG_TSYNC, _PR_SET_NO_NEW_PRIVS = 1, 1, 38
_KILL_PROCESS, _ERRNO, _ALLOW = 0x8000_0000, 0x0005_0000, 0x7FFF_0000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_CLONE_THREAD = 0x0001_0000
_X32 = 0x4000_0000  # numbers from here on are the x32 spelling of the same calls
_PR_SET_NAME, _PR_GET_NAME = 15, 16
_FIRST_UNKNOWN = 462  # calls of kernels newer than this list: libc asks, and does without


@dataclass(frozen=True)
class _Machine:
    architecture: int  # AUDIT_ARCH_*
    seccomp: int
    clone: int  # threads only
    clone3: int
    prctl: int  # the name of a thread only
    own_process: tuple[int, ...]  # prlimit64, tgkill: on the process itself only
    allowed: tuple[int, ...]


_MACHINES = {
    "x86_64": _Machine(
        architecture=0xC000_003E,
        seccomp=317,
        clone=56,
        clone3=435,
        prctl=157,
        own_process=(302, 234),
        allowed=(
            *(0, 1, 2, 3, 4, 5, 6, 7, 8),  # read write open close stat fstat lstat poll lseek
            *(9, 10, 11, 12, 13, 14, 15),  # mmap mprotect munmap brk rt_sig(action procmask return)
            *(16, 17, 18, 19, 20, 21, 22, 23),  # ioctl p(read write)64 (read write)v access pipe
            *(24, 25, 26, 27, 28, 32, 33),  # sched_yield mremap msync mincore madvise dup dup2
            *(34, 35, 36, 37, 38, 39),  # pause nanosleep (get)itimer alarm setitimer getpid
            *(44, 45, 46, 47, 48),  # send recv to from, msg; shutdown: of what is open
            *(51, 52, 55),  # getsockname getpeername getsockopt
            *(60, 63, 72, 73, 74, 75, 76, 77),  # exit uname fcntl flock f(data)sync (f)truncate
            *(78, 79, 80, 81, 82, 83, 84, 87),  # getdents getcwd (f)chdir rename mkdir rmdir unlink
            *(89, 95, 96, 97, 98, 99, 100),  # readlink umask gettimeofday getr(limit usage) sysinfo
            *(102, 104, 107, 108, 110, 111),  # get(u g eu eg p)id getpgrp
            *(121, 124, 127, 128, 131),  # getpgid getsid rt_sigpending rt_sigtimedwait sigaltstack
            *(137, 138, 158, 160, 186),  # (f)statfs arch_prctl setrlimit gettid
            *(201, 202, 204, 213, 217, 218),  # time futex sched_getaffinity epoll_create getdents64
            *(219, 221, 228, 229, 230, 231),  # restart fadvise clock_(gettime getres nanosleep)
            *(
                232,
                233,
                239,
                257,
                258,
                262,
            ),  # epoll_(wait ctl) get_mempolicy (open mkdir)at fstatat
            *(263, 264, 267, 269, 270, 271),  # (unlink rename readlink faccess)at pselect6 ppoll
            *(273, 274, 281, 285, 290, 291),  # robust_list epoll_pwait fallocate eventfd2 epoll
            *(292, 293, 295, 296, 309, 316),  # dup3 pipe2 p(read write)v getcpu renameat2
            *(318, 319, 324, 326, 327, 328),  # getrandom memfd membarrier copy_file_range p(r w)v2
            *(332, 334, 436, 439, 441, 449),  # statx rseq close_range faccessat2 epoll futex_waitv
        ),
    ),
    "aarch64": _Machine(
        architecture=0xC000_00B7,
        seccomp=277,
        clone=220,
        clone3=435,
        prctl=167,
        own_process=(261, 131),
        allowed=(
            *(17, 19, 20, 21, 22, 23, 24, 25),  # getcwd eventfd2 epoll_* dup dup3 fcntl
            *(
                29,
                32,
                34,
                35,
                38,
                43,
                44,
                45,
            ),  # ioctl flock (mkdir unlink rename)at statfs truncate
            *(46, 47, 48, 49, 50, 56, 57, 59),  # ftruncate fallocate faccessat chdir openat close
            *(61, 62, 63, 64, 65, 66, 67, 68),  # getdents64 lseek read write readv writev pread
            *(
                69,
                70,
                72,
                73,
                78,
                79,
                80,
                82,
            ),  # preadv pwritev pselect ppoll readlinkat fstat fsync
            *(83, 93, 94, 96, 98, 99, 100),  # fdatasync exit exit_group tid futex robust_list
            *(101, 102, 103, 113, 114, 115),  # nanosleep itimers clock_(gettime getres nanosleep)
            *(123, 124, 128, 132, 134, 135),  # sched_(getaffinity yield) sigaltstack sigaction
            *(136, 137, 139, 153, 155, 156),  # sigpending sigtimedwait sigreturn times getpgid
            *(160, 163, 164, 165, 166, 168),  # uname (get set)rlimit getrusage umask getcpu
            *(169, 172, 173, 174, 175, 176),  # gettimeofday get(p pp u eu g)id
            *(177, 178, 179, 204, 205, 206),  # getegid gettid sysinfo getsockname peer sendto
            *(207, 209, 210, 211, 212, 214),  # recvfrom getsockopt shutdown (send recv)msg brk
            *(215, 216, 222, 223, 226, 227),  # munmap mremap mmap fadvise mprotect msync
            *(232, 233, 236, 276, 278, 279),  # mincore madvise mempolicy renameat2 getrandom memfd
            *(283, 285, 286, 287, 291, 293),  # membarrier copy_file_range preadv2 statx rseq
            *(436, 439, 441, 449),  # close_range faccessat2 epoll_pwait2 futex_waitv
        ),
    ),
}


def filters() -> bool:
    """Whether there is a filter for this machine."""
    return sys.platform == "linux" and platform.machine() in _MACHINES


def ask_for_little() -> None:
    """Refuse this process, for good, every system call that opening files does not need: EPERM.

    Does nothing where `filters` says so. OSError where the kernel does not take the filter.
    """
    if not filters():
        return
    machine = _MACHINES[platform.machine()]
    code = _program(machine, own=os.getpid())
    instructions = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel does not take PR_SET_NO_NEW_PRIVS")
    number = ctypes.c_long(machine.seccomp)
    if libc.syscall(number, _SET_MODE_FILTER, _FLAG_TSYNC, header) != 0:
        failed = ctypes.get_errno()
        raise OSError(failed, f"the kernel takes no seccomp filter: {os.strerror(failed)}")


def _program(machine: _Machine, *, own: int) -> bytes:
    refused = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allowed = (_RETURN, 0, 0, _ALLOW)
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, machine.architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL_PROCESS),
    ]
    for number in machine.allowed:
        steps += [(_EQUAL, 0, 1, number), allowed]
    # clone3's flags lie in memory, which no filter sees; told that there is none, libc uses clone
    unknown = (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    steps += [(_EQUAL, 0, 1, machine.clone3), unknown, (_AT_LEAST, 0, 1, _FIRST_UNKNOWN), unknown]
    first = (_LOAD, 0, 0, _FIRST_ARGUMENT)
    steps += [(_EQUAL, 0, 4, machine.clone), first, (_ANY_BIT, 0, 1, _CLONE_THREAD), allowed]
    steps.append(refused)
    steps += [(_EQUAL, 0, 5, machine.prctl), first]
    steps += [(_EQUAL, 1, 0, _PR_SET_NAME), (_EQUAL, 0, 1, _PR_GET_NAME), allowed, refused]
    for number in machine.own_process:  # 0, which prlimit64 takes for the caller, or its number
        steps += [(_EQUAL, 0, 5, number), first]
        steps += [(_EQUAL, 1, 0, 0), (_EQUAL, 0, 1, own), allowed, refused]
    steps.append(refused)
    return b"".join(struct.pack("HBBI", *step) for step in steps)
