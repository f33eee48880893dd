"""Runs a command under a supervisor (`supervisor.py`), which ends all that the command started when the command ends."""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from oss_tools.chat.tools import supervisor
from oss_tools.chat.tools.base import MAX_OUTPUT, READ_BYTES, Ended, shortened

MARK = "OSS_TOOLS_COMMAND"  # in the environment of a command and of all that it starts
GRACE = 2 * supervisor.LONGEST_END  # seconds that the supervisor has to end everything


def run_supervised(
    command: Sequence[str],
    given: str = "",
    *,
    timeout: float,
    environment: Mapping[str, str],
    folder: Path | None = None,
    limit: int = MAX_OUTPUT,
) -> Ended:
    """Runs a program, without a shell. When it returns, nothing runs that the program started.

    On Linux that holds for processes in sessions of their own too, and if the program kills its supervisor; elsewhere for
    its process group. Processes with another user's rights (sudo) are not reached.

    Args:
        given: its stdin.
        timeout: seconds after which it is killed.
        environment: all of its environment, but for a mark.
        limit: characters of stdout and stderr that are kept; a program that writes much more is killed.

    Raises OSError if it cannot be started, ValueError for a NUL character in the command.
    """
    mark = secrets.token_hex(16)
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as stdin:
        stdin.write(given.encode("utf-8", "replace"))
        stdin.seek(0)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", supervisor.__file__, str(theirs.fileno()), *command],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**environment, MARK: mark},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        with process:
            words = _Words(ours)
            try:
                output, timed_out = _read(process, words, time.monotonic() + timeout, 4 * limit + READ_BYTES)
            finally:
                _end(process, words, mark)
    if words.failed is not None:
        raise OSError(words.failed, os.strerror(words.failed), command[0])
    status = -signal.SIGKILL if words.status is None else words.status
    return Ended(status, shortened(output.decode("utf-8", "replace").strip(), limit), timed_out)


class _Words:
    """What a supervisor says."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.failed: int | None = None  # errno
        self.status: int | None = None
        self.over = False  # the supervisor says no more
        self._line = b""

    def hear(self) -> None:
        """Takes in what has been said; waits for it."""
        try:
            part = self.control.recv(4096)
        except ConnectionError:
            part = b""
        *lines, self._line = (self._line + part).split(b"\n")
        for word, _, number in (line.decode().partition(" ") for line in lines):
            self.failed = int(number) if word == "failed" else self.failed
            self.status = int(number) if word == "ended" else self.status
        self.over = not part or self.failed is not None or self.status is not None


def _read(process: subprocess.Popen[bytes], words: _Words, deadline: float, limit: int) -> tuple[bytes, bool]:
    """The output up to `limit` bytes, and whether the deadline passed before the program ended."""
    assert process.stdout
    output, stream = bytearray(), process.stdout.fileno()
    os.set_blocking(stream, False)
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        selector.register(words.control, selectors.EVENT_READ)
        while not words.over and len(output) < limit:
            ready = {key.fd for key, _ in selector.select(max(deadline - time.monotonic(), 0))}
            if not ready and time.monotonic() >= deadline:
                return bytes(output), True
            if words.control.fileno() in ready:
                words.hear()
            if stream in ready and not _take(stream, output):
                selector.unregister(stream)
    while len(output) < limit and _take(stream, output):
        pass
    return bytes(output), False


def _take(stream: int, output: bytearray) -> bool:
    """Adds what is there to be read; whether anything was."""
    try:
        part = os.read(stream, READ_BYTES)
    except BlockingIOError:
        return False
    output += part
    return bool(part)


def _end(process: subprocess.Popen[bytes], words: _Words, mark: str) -> None:
    """Has the supervisor end everything, and waits for that; ends what is left if something has ended the supervisor."""
    with contextlib.suppress(OSError):
        words.control.shutdown(socket.SHUT_WR)
    words.control.settimeout(GRACE)
    with contextlib.suppress(TimeoutError):
        while not words.over:
            words.hear()
    process.kill()
    process.wait()
    if words.status is None and words.failed is None:
        _end_marked(mark)


def _end_marked(mark: str) -> None:
    """Kills the processes whose environment has the mark, as long as there are any: those of a supervisor that was killed."""
    entry, deadline = f"{MARK}={mark}".encode(), time.monotonic() + supervisor.LONGEST_END
    while time.monotonic() < deadline:
        numbers = filter(str.isdigit, os.listdir("/proc") if sys.platform == "linux" else ())
        left = [number for number in numbers if entry in _environment(number)]
        if not left:
            return
        for number in left:
            with contextlib.suppress(OSError):
                os.kill(int(number), signal.SIGKILL)


def _environment(number: str) -> list[bytes]:
    try:
        return Path("/proc", number, "environ").read_bytes().split(b"\0")
    except OSError:  # ended, or another user's
        return []
