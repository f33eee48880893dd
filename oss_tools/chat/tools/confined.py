"""Runs Python code, given on stdin, in a process that has shut itself in first. Started as a script, not imported.

Without root and in this order: limits of CPU time, memory, file size and open files; no capabilities and no new ones;
Landlock: files can be written in the working folder only; seccomp: no sockets, no other programs or processes, no
signals or debugging of other processes, no changes to permissions and owners. What it may still do: read every file
that the user may read, compute, start threads, write into its folder up to the file size limit.

Landlock: https://docs.kernel.org/userspace-api/landlock.html; seccomp: seccomp(2); numbers of system calls from Linux's
`arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`.
"""

from __future__ import annotations

import ast
import ctypes
import os
import platform
import resource
import struct
import sys
import traceback

UNSUPPORTED = 96  # exit status: the system cannot shut the process in; stderr says why

# System call -> its number on x86-64 and on 64-bit Arm (None: there is none)
SYSTEM_CALLS: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "unshare": (272, 97),
    "setns": (308, 268),
    "clone": (56, 220),
    "clone3": (435, 435),
}
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
ONLY_ITSELF = ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")  # allowed with the process's own number
CLONE_THREAD = 0x10000
EPERM, ENOSYS = 1, 38

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same on both machines
WRITE_FILE, TRUNCATE, IOCTL_DEV = 1 << 1, 1 << 14, 1 << 15
MAKE_AND_REMOVE = sum(1 << bit for bit in range(4, 14))  # remove and make of every kind of file, linking between folders
SCOPES = 0b11  # abstract sockets, signals

libc = ctypes.CDLL(None, use_errno=True)


class Unsupported(Exception):
    """The system cannot shut the process in."""


def limit(seconds: int, memory: int, file_size: int) -> None:
    """`seconds` of CPU time, bytes of address space, bytes of a file."""
    for kind, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_size),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def drop_privileges() -> None:
    """No capabilities (root has all), none through other programs; and the end of the parent is the end of this one."""
    header, none = struct.pack("=II", 0x20080522, 0), bytes(24)
    if libc.capset(header, none):
        raise Unsupported("capset: " + os.strerror(ctypes.get_errno()))
    _prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS


def forbid_writing(folder: str) -> None:
    """Landlock: no file is written, made or removed outside of `folder`."""
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        raise Unsupported("Landlock: " + os.strerror(ctypes.get_errno()))
    handled = WRITE_FILE | MAKE_AND_REMOVE
    handled &= ~(1 << 13) if version < 2 else -1
    handled |= (TRUNCATE if version >= 3 else 0) | (IOCTL_DEV if version >= 5 else 0)
    network = 0b11 if version >= 4 else 0  # bind and connect TCP
    rules = struct.pack("=QQQ", handled, network, SCOPES if version >= 6 else 0)[
        : 8 if version < 4 else 16 if version < 6 else 24
    ]
    ruleset = libc.syscall(LANDLOCK_CREATE, rules, len(rules), 0)
    opened = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    beneath = struct.pack("=Qi", handled & ~IOCTL_DEV, opened)
    if ruleset < 0 or libc.syscall(LANDLOCK_ADD, ruleset, 1, beneath, 0) or libc.syscall(LANDLOCK_RESTRICT, ruleset, 0):
        raise Unsupported("Landlock: " + os.strerror(ctypes.get_errno()))
    os.close(ruleset)
    os.close(opened)


def forbid_system_calls() -> None:
    """seccomp: the calls of the table fail with EPERM; any other machine's calls end the process."""
    column, machine = MACHINES[platform.machine()]
    numbers = {name: number for name, row in SYSTEM_CALLS.items() if (number := row[column]) is not None}
    program = b"".join(_filter(machine, numbers))
    loaded = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(loaded))
    _prctl(22, 2, ctypes.c_char_p(header))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _filter(machine: int, numbers: dict[str, int]) -> list[bytes]:
    """A classic BPF program over struct seccomp_data: number at 0, machine at 4, arguments from 16 on, 8 bytes each."""
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, fail = 0x7FFF0000, 0x80000000, 0x00050000

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    program = [
        step(load, 4),
        step(equal, machine, 1, 0),
        step(end, kill),
        step(load, 0),
        step(at_least, 0x40000000, 0, 1),  # x86-64's second table of numbers
        step(end, kill),
    ]
    for name, number in numbers.items():
        if name == "clone":  # threads only
            body = [step(load, 16), step(any_bit, CLONE_THREAD, 1, 0), step(end, fail | EPERM), step(end, allow)]
        elif name in ONLY_ITSELF:
            body = [step(load, 16), step(equal, os.getpid(), 1, 0), step(end, fail | EPERM), step(end, allow)]
        elif name == "prlimit64":  # of this process, which may be written as 0
            body = [step(load, 16), step(equal, 0, 1, 0), step(end, fail | EPERM), step(end, allow)]
        else:
            body = [step(end, fail | (ENOSYS if name == "clone3" else EPERM))]  # without clone3, libc uses clone
        program += [step(equal, number, 0, len(body)), *body]
    return [*program, step(end, allow)]


def _prctl(option: int, value: int, pointer: ctypes.c_char_p | int = 0) -> None:
    if libc.prctl(option, ctypes.c_ulong(value), pointer, 0, 0):
        raise Unsupported(f"prctl {option}: " + os.strerror(ctypes.get_errno()))


def run(source: str) -> int:
    """Runs the code; the value of a last line that is an expression is printed. Returns the exit status."""
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        tree = ast.parse(source, "<code>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<code>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<code>", "eval"), names)
            if value is not None:
                print(repr(value))
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    except BaseException as error:
        own = error.__traceback__  # this file's line
        shown = own.tb_next if own and not isinstance(error, SyntaxError) else None
        traceback.print_exception(type(error), error, shown, limit=-8)
        return 1
    return 0


def main() -> int:
    seconds, memory, file_size = map(int, sys.argv[1:4])
    source = sys.stdin.buffer.read().decode("utf-8", "replace")
    try:
        if platform.system() != "Linux" or platform.machine() not in MACHINES:
            raise Unsupported(f"{platform.system()} on {platform.machine()}")
        limit(seconds, memory, file_size)
        drop_privileges()
        forbid_writing(os.getcwd())
        forbid_system_calls()
    except (Unsupported, OSError, ValueError) as error:
        print(error)
        return UNSUPPORTED
    return run(source)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
