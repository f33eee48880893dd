"""The system calls that shut-in Python code may make, as a seccomp filter. What is not listed here is refused.

The list has what Python 3.11 to 3.14 and packages such as NumPy, SymPy and pandas need to compute, to run threads and event
loops, and to use files in one folder. Names and numbers are the kernel's: `arch/x86/entry/syscalls/syscall_64.tbl` and
`include/uapi/asm-generic/unistd.h`; constants are from `include/uapi/`. The filter: seccomp(2),
https://docs.kernel.org/userspace-api/seccomp_filter.html.

A filter sees numbers, and nothing behind a pointer. Which files may be opened is Landlock's part (`confined`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the table, AUDIT_ARCH_*

# System call -> its number on x86-64 and on 64-bit Arm (None: there is none)
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # files
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "openat": (257, 56),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "sendfile": (40, 71),
    "copy_file_range": (326, 285),
    "ftruncate": (77, 46),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    # descriptors, pipes, waiting for them
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "close_range": (436, 436),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "socketpair": (53, 199),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    # memory
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "msync": (26, 227),
    "brk": (12, 214),
    # threads
    "clone": (56, 220),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "sched_yield": (24, 124),
    "membarrier": (324, 283),
    "sched_getaffinity": (204, 123),
    # signals
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "pause": (34, None),
    "restart_syscall": (219, 128),
    # time and chance
    "alarm": (37, None),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrandom": (318, 278),
    # facts about the process and the machine
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "prlimit64": (302, 261),
    "prctl": (157, 167),
}
MISSING: dict[str, int] = {"clone3": 435, "openat2": 437}  # ENOSYS: libc then uses clone and openat, whose flags can be seen
NEWER = 449  # so are numbers from here on, which programs expect to be missing on older kernels
X32 = 0x40000000  # x86-64's second table of numbers begins here

EPERM, ENOSYS = 1, 38
SELF = int.from_bytes(b"self", "little")  # stands for the number of the process until the process itself puts it in


@dataclass(frozen=True)
class Is:
    """`argument & mask` is one of `values`, and the argument's upper 32 bits are zero."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF


O_WRONLY, O_RDWR, O_TRUNC, O_ASYNC, O_PATH = 0o1, 0o2, 0o1000, 0o20000, 0o10000000
# Landlock below ABI 3 lets O_RDONLY | O_TRUNC empty a file that may be read, and access mode 3 asks no ABI for any right
OPEN_MODES = (0, O_WRONLY, O_RDWR, O_WRONLY | O_TRUNC, O_RDWR | O_TRUNC)
OPEN_FLAGS = 0o3 | O_TRUNC | O_ASYNC | O_PATH
CLONE_THREAD = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000  # CLONE_VM, _FS, _FILES, _SIGHAND, _THREAD
CLONE_FREE = (
    0x40000 | 0x80000 | 0x100000 | 0x200000 | 0x400000
)  # _SYSVSEM, _SETTLS, _PARENT_SETTID, _CHILD_CLEARTID, _DETACHED
FCNTL = (0, 1, 2, 3, 5, 6, 7, 1030, 1032)  # F_DUPFD to F_GETFL, locks, F_DUPFD_CLOEXEC, F_GETPIPE_SZ
F_SETFL = 4
IOCTL = (
    0x5401,
    0x802C542A,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # TCGETS, TCGETS2, TIOCGWINSZ, FIO: NREAD, NBIO, NCLEX, CLEX
MADVISE = (0, 1, 2, 3, 4, 8, 14, 15, 16, 17, 102, 103)  # NORMAL to DONTNEED, FREE, (NO)HUGEPAGE, (DO|DONT)DUMP, guards
AF_UNIX, SOCK_STREAM, SOCK_FLAGS = 1, 1, 0o4000 | 0o2000000  # SOCK_NONBLOCK, SOCK_CLOEXEC
PR_NAME = (15, 16)  # PR_SET_NAME, PR_GET_NAME

# Allowed only so: one of the alternatives, in which every condition holds
CONDITIONS: dict[str, tuple[tuple[Is, ...], ...]] = {
    "open": ((Is(1, OPEN_MODES, OPEN_FLAGS),),),
    "openat": ((Is(2, OPEN_MODES, OPEN_FLAGS),),),
    "mkdir": ((Is(1, (0o700,), 0o700),),),  # with umask refused, every folder can be entered by who measures and removes it
    "mkdirat": ((Is(2, (0o700,), 0o700),),),
    "renameat2": ((Is(4, (0, 1)),),),  # RENAME_NOREPLACE
    "fcntl": ((Is(1, FCNTL),), (Is(1, (F_SETFL,)), Is(2, (0,), O_ASYNC))),  # no owners, signals, leases, notes
    "ioctl": ((Is(1, IOCTL),),),
    "close_range": ((Is(2, (0, 4)),),),  # not CLOSE_RANGE_UNSHARE: the watcher must see every descriptor
    # asyncio's: two ends that have no address, to which no descriptors can be sent, without out-of-band data
    "socketpair": ((Is(0, (AF_UNIX,)), Is(1, (SOCK_STREAM,), 0xFFFFFFFF & ~SOCK_FLAGS), Is(2, (0,))),),
    "sendto": ((Is(3, (0,)), Is(4, (0,)), Is(5, (0,))),),
    "recvfrom": ((Is(3, (0,)),),),
    "madvise": ((Is(2, MADVISE),),),
    "clone": ((Is(0, (CLONE_THREAD,), 0xFFFFFFFF & ~CLONE_FREE),),),
    "sched_getaffinity": ((Is(0, (0,)),),),
    "membarrier": ((Is(0, (0, 8, 16)),),),  # MEMBARRIER_CMD_(REGISTER_)PRIVATE_EXPEDITED, musl's when libraries are loaded
    "kill": ((Is(0, (SELF,)),),),
    "tgkill": ((Is(0, (SELF,)),),),
    "getpgid": ((Is(0, (0,)),),),
    "getsid": ((Is(0, (0,)),),),
    "prlimit64": ((Is(0, (0,)), Is(2, (0,))),),  # reads its own limits
    "prctl": ((Is(0, PR_NAME),),),
}
ENOSYS_OTHERWISE = ("sched_getaffinity",)  # glibc's pthread_getattr_np takes no other error

# Instructions of classic BPF (`include/uapi/linux/bpf_common.h`) and what a filter returns (`seccomp.h`)
LOAD, AND, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
KILL, FAIL, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000


def seccomp_filter(machine: str) -> bytes:
    """The program over struct seccomp_data, 8 bytes an instruction. `SELF` in it must become the process's number."""
    column, architecture = MACHINES[machine]
    program = [
        _step(LOAD, 4),  # the architecture
        _step(EQUAL, architecture, 1, 0),
        _step(RETURN, KILL),
        _step(LOAD, 0),  # the number
        _step(AT_LEAST, X32, 0, 1),
        _step(RETURN, KILL),
        _step(AT_LEAST, NEWER, 0, 1),
        _step(RETURN, FAIL | ENOSYS),
    ]
    for name, numbers in ALLOWED.items():
        number = numbers[column]
        if number is not None:
            body = _body(CONDITIONS.get(name, ((),)), ENOSYS if name in ENOSYS_OTHERWISE else EPERM)
            program += [_step(EQUAL, number, 0, len(body)), *body]
    for number in MISSING.values():
        program += [_step(EQUAL, number, 0, 1), _step(RETURN, FAIL | ENOSYS)]
    return b"".join([*program, _step(RETURN, FAIL | EPERM)])


def _body(alternatives: Sequence[Sequence[Is]], error: int) -> list[bytes]:
    steps = []
    for conditions in alternatives:
        alternative = [_step(RETURN, ALLOW)]
        for condition in reversed(conditions):
            alternative = [*_condition(condition, len(alternative)), *alternative]
        steps += alternative
    return [*steps, _step(RETURN, FAIL | error)] if all(alternatives) else steps


def _condition(condition: Is, rest: int) -> list[bytes]:
    """Goes on behind itself if the condition holds, else behind the `rest` of the alternative."""
    place = 16 + 8 * condition.argument
    compared = len(condition.values)
    masked = [_step(AND, condition.mask)] if condition.mask != 0xFFFFFFFF else []
    steps = [_step(LOAD, place + 4), _step(EQUAL, 0, 0, 1 + len(masked) + compared + rest), _step(LOAD, place), *masked]
    for left, value in zip(range(compared - 1, -1, -1), condition.values, strict=True):
        steps.append(_step(EQUAL, value, left, 0 if left else rest))
    return steps


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)
