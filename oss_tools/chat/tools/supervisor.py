"""Runs one command and ends all that it started. Started as a script, not imported: `supervisor.py CONTROL COMMAND…`.

CONTROL is the number of a socket to the caller. `started`, `failed ERRNO` and `ended STATUS` are written to it (STATUS as
`waitstatus_to_exitcode` has it). When it is closed at the other end, the command ends at once: so also if the caller dies.

On Linux this process is the subreaper of what it starts (PR_SET_CHILD_SUBREAPER, prctl(2)): a process whose parent has
ended becomes its child, also one in a session of its own. Without a child left it has no descendant left either.
Elsewhere the command's process group is ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

PR_SET_CHILD_SUBREAPER = 36
LONGEST_END = 5.0  # seconds; what runs with another user's rights (sudo) cannot be killed
CAN_PEEK = hasattr(os, "waitid")  # macOS has it from Python 3.13 on


def main(control: socket.socket, command: list[str]) -> None:
    """The life of a command."""
    control.set_inheritable(False)
    wake = wakes_on_children()
    subreaper = becomes_subreaper()
    try:
        child = start(command)
    except OSError as error:
        control.sendall(f"failed {error.errno or errno.ENOENT}\n".encode())
        return
    control.sendall(b"started\n")
    events, status = select.poll(), None
    for number in (control.fileno(), wake):
        events.register(number, select.POLLIN)
    while status is None and not has_ended(child):
        if control.fileno() in {number for number, _ in events.poll()}:
            break
        os.read(wake, 4096)
        for number in children() if subreaper else ():
            if number != child:
                os.waitpid(number, os.WNOHANG)
        if not CAN_PEEK:
            ended, code = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if ended else None
    status = end_all(child, subreaper, status)
    with contextlib.suppress(OSError):  # the caller is gone
        control.sendall(f"ended {status}\n".encode())


def wakes_on_children() -> int:
    """A pipe that can be read from when a child has ended."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read


def becomes_subreaper() -> bool:
    """Whether orphans below this process become its children from now on."""
    if sys.platform != "linux":
        return False
    import ctypes

    return ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def start(command: list[str]) -> int:
    """Starts the command in a session of its own; its process number. Raises OSError."""
    read, write = os.pipe()  # closed by a successful exec
    child = os.fork()
    if not child:
        try:
            os.setsid()
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # as Python has it
                signal.signal(ignored, signal.SIG_DFL)
            os.execvp(command[0], command)  # noqa: S606 (its purpose; without a shell)
        except OSError as error:
            os.write(write, str(error.errno).encode())
        finally:
            os._exit(127)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        failed = stream.read()
    if failed:
        os.waitpid(child, 0)
        raise OSError(int(failed), os.strerror(int(failed)))
    return child


def has_ended(child: int) -> bool:
    """Whether it is seen to have ended. It is not reaped, so that its number stays its own."""
    return CAN_PEEK and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def children() -> list[int]:
    """Numbers of this process's children, also of those that have ended and are not reaped."""
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children") as file:
            return [int(number) for number in file.read().split()]
    except OSError:  # a kernel without CONFIG_PROC_CHILDREN
        return [number for number in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent_of(number) == me]


def parent_of(number: int) -> int:
    try:
        with open(f"/proc/{number}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:  # it has ended
        return 0


def end_all(child: int, subreaper: bool, status: int | None) -> int:
    """Kills until no child is left; the command's status, which is `status` where that is known.

    Only children are named, whose numbers nobody else gets before they are reaped, and their process groups. These have no
    members but descendants: a group lies in one session, and a session is passed on by birth alone.
    """
    kill(os.killpg, child)
    if status is None:
        kill(os.kill, child)
    deadline, pause = time.monotonic() + LONGEST_END, 0.0
    with contextlib.suppress(ChildProcessError):  # no child is left
        while time.monotonic() < deadline:
            for number in children() if subreaper else ():
                end_with_group(number)
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    status = os.waitstatus_to_exitcode(ended[1])
            time.sleep(pause)
            pause = min(pause + 1e-5, 0.01)
    return -signal.SIGKILL if status is None else status


def end_with_group(number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if (group := os.getpgid(number)) not in (0, os.getpgrp()):
            kill(os.killpg, group)
    kill(os.kill, number)


def kill(how: Callable[[int, int], None], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        how(number, signal.SIGKILL)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
