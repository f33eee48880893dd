"""Runs Python code, given on stdin, in a process that has shut itself in first. Started as a script, not imported.

    python -I -B confined.py PARENT SECONDS MEMORY FILE_SIZE FILTER READABLE...

PARENT is the number of the process that waits for this one, FILTER a seccomp program in hexadecimal digits
(`system_calls`), READABLE are Python's own files and folders (`python`).
Without root and in this order: limits of CPU time, memory, file size and open files; no capabilities and no new ones;
Landlock: files are written in the working folder only, and read there and in READABLE; seccomp: no system call but those
that the filter allows. Memory may be made executable, since extension modules, ctypes and Numba need it: what native code can
do is bounded by the same rules. `folder` measures from outside meanwhile.

The promises are the same from Landlock's first version on, Linux 5.13. What its older versions cannot guard, seccomp closes:

    ABI 1        (5.13)  files cannot be moved or linked between folders at all, not even within the working folder
    ABI 1, 2     (6.1)   emptying files: no truncate; no open that truncates without asking to write
    ABI 1 to 4   (6.9)   ioctl of devices: few commands, and no devices but /dev/null and /dev/urandom
    ABI 1 to 5   (6.11)  signals and abstract sockets: no signal to others in any way (kill, descriptors' owners); no such sockets

Where the kernel has no Landlock or no seccomp, the process says so and ends with UNSUPPORTED; the code does not run.

Landlock: https://docs.kernel.org/userspace-api/landlock.html; seccomp: seccomp(2).
"""

from __future__ import annotations

import ast
import ctypes
import os
import resource
import stat
import struct
import sys
import traceback

UNSUPPORTED = 96  # exit status: the system cannot shut the process in; the output says why

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same on both machines
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REFER, TRUNCATE, IOCTL_DEV = (1 << bit for bit in (0, 1, 2, 3, 13, 14, 15))
REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))  # every kind of file
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_SYM = (1 << bit for bit in (4, 5, 7, 8, 12))
OWN_FOLDER = WRITE_FILE | READ_FILE | READ_DIR | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE
DEVICES = ((os.devnull, os.makedev(1, 3), READ_FILE | WRITE_FILE), ("/dev/urandom", os.makedev(1, 9), READ_FILE))
SCOPES = 0b11  # abstract sockets, signals
SELF = b"self"  # in the filter: this process's number

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


def drop_privileges(parent: int) -> None:
    """No capabilities (root has all), none through other programs; and the end of the parent is the end of this one."""
    header, none = struct.pack("=II", 0x20080522, 0), bytes(24)
    if libc.capset(header, none):
        raise Unsupported("capset: " + os.strerror(ctypes.get_errno()))
    _prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    if os.getppid() != parent:
        raise Unsupported("the parent has ended")
    _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS


def forbid_files(folder: str, readable: list[str]) -> None:
    """Landlock: files are written, made and removed in `folder` only, and read there and in `readable` only."""
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        raise Unsupported("Landlock: " + os.strerror(ctypes.get_errno()))
    handled = EXECUTE | WRITE_FILE | READ_FILE | READ_DIR | REMOVE_AND_MAKE
    handled |= (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0) | (IOCTL_DEV if version >= 5 else 0)
    network = 0b11 if version >= 4 else 0  # bind and connect TCP
    rules = struct.pack("=QQQ", handled, network, SCOPES if version >= 6 else 0)[
        : 8 if version < 4 else 16 if version < 6 else 24
    ]
    ruleset = libc.syscall(LANDLOCK_CREATE, rules, len(rules), 0)
    if ruleset < 0:
        raise Unsupported("Landlock: " + os.strerror(ctypes.get_errno()))
    _grant(ruleset, folder, OWN_FOLDER & handled)
    for name in readable:
        if os.path.isdir(name):
            _grant(ruleset, name, READ_FILE | READ_DIR)
        elif os.path.isfile(name):
            _grant(ruleset, name, READ_FILE)
    for name, device, rights in DEVICES:
        found = os.stat(name) if os.path.exists(name) else None
        if found and stat.S_ISCHR(found.st_mode) and found.st_rdev == device:
            _grant(ruleset, name, rights)
    quiet = 1 if version >= 7 else 0  # LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF: refusals do not fill the system's log
    if libc.syscall(LANDLOCK_RESTRICT, ruleset, quiet):
        raise Unsupported("Landlock: " + os.strerror(ctypes.get_errno()))
    os.close(ruleset)


def _grant(ruleset: int, name: str, rights: int) -> None:
    opened = os.open(name, os.O_PATH | os.O_CLOEXEC)
    if libc.syscall(LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights, opened), 0):
        raise Unsupported(f"Landlock: {name}: {os.strerror(ctypes.get_errno())}")
    os.close(opened)


def forbid_system_calls(program: bytes) -> None:
    """seccomp: only what the filter allows."""
    program = program.replace(SELF, struct.pack("=I", os.getpid()))
    loaded = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(loaded))
    _prctl(22, 2, ctypes.c_char_p(header))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


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
    parent, seconds, memory, file_size = map(int, sys.argv[1:5])
    program, readable = bytes.fromhex(sys.argv[5]), sys.argv[6:]
    source = sys.stdin.buffer.read().decode("utf-8", "replace")
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)  # what came in is a file outside of the folder
        os.close(nothing)
        limit(seconds, memory, file_size)
        drop_privileges(parent)
        forbid_files(os.getcwd(), readable)
        forbid_system_calls(program)
    except (Unsupported, OSError, ValueError) as error:
        print(error)
        return UNSUPPORTED
    return run(source)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
