"""The tool `python`: code in a process of its own, which shuts itself in (see `confined`), in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import platform
import selectors
import signal
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from oss_tools.chat.tools import confined, folder
from oss_tools.chat.tools.base import MAX_OUTPUT, READ_BYTES, Ended, Tool, ToolError, shortened
from oss_tools.chat.tools.system_calls import MACHINES, seccomp_filter
from oss_tools.errors import Unsupported

SECONDS = 10  # of CPU time
CLOCK = 30.0  # seconds on the clock
MEMORY = 1 << 30  # bytes of address space
LOOK = 0.01  # seconds between two looks at what the code holds, at most
MOST_OUTPUT = 4 * MAX_OUTPUT + READ_BYTES  # bytes after which it is stopped
USED_UP = "its time or its output was used up"
FRESH = "note: each call begins anew; names and files of earlier calls are gone"  # some models are told of a notebook

# Where shared libraries lie and how they are found; time zones. /nix/store and /gnu/store are the libraries of NixOS and Guix
SYSTEM = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/gnu/store", "/etc/ld.so.cache"),
    *("/usr/share/zoneinfo", "/etc/localtime"),
)


class PythonTool(Tool):
    """Runs code anew for each call: nothing is kept between calls but what the model writes down."""

    schema: Mapping[str, Any] = {
        "name": "python",
        "description": "Runs Python code and returns what it prints, and the value of its last line",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    }

    def __init__(self, seconds: int = SECONDS, clock: float = CLOCK, memory: int = MEMORY) -> None:
        """Limits of one call: seconds of CPU time, seconds on the clock, bytes of address space.

        Raises Unsupported if the system cannot keep code from the network, from files and from other processes.
        """
        self._seconds, self._clock, self._memory = seconds, clock, memory
        system, machine = platform.system(), platform.machine()
        if system != "Linux" or machine not in MACHINES:
            raise _unsupported(f"{system} on {machine}")
        if not os.path.isdir(f"/proc/{os.getpid()}/fd"):
            raise _unsupported("/proc is not there")
        self._filter, self._readable = seccomp_filter(machine).hex(), readable()
        try:
            tried, stopped = self._run("1")
        except ToolError as error:
            raise _unsupported(str(error)) from None
        if stopped or tried.status or tried.output != "1":
            raise _unsupported(stopped or tried.output or f"signal {-tried.status}")

    def run(self, arguments: Mapping[str, Any]) -> str:
        ended, stopped = self._run(arguments["code"])
        if stopped:
            return f"error: stopped, {stopped}"
        if ended.timed_out or ended.status in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"{ended.output}\nerror: stopped, {USED_UP}".strip()
        if ended.output.rstrip().rpartition("\n")[2].startswith("NameError:"):
            return f"{ended.output}\n{FRESH}"
        if ended.status < 0:
            return f"{ended.output}\nerror: ended by signal {-ended.status}".strip()
        return ended.output

    def _run(self, code: str) -> tuple[Ended, str]:
        """How the code ended, and the limit that what it held has passed; "" if none. Raises ToolError."""
        numbers = map(str, (os.getpid(), self._seconds, self._memory, folder.FILE_SIZE))
        command = [sys.executable, "-I", "-B", confined.__file__, *numbers, self._filter, *self._readable]
        try:
            place = os.path.realpath(tempfile.mkdtemp(prefix="oss-tools-python-"))
            try:
                done = _watched(command, code, place, self._clock)
            finally:
                left = folder.remove(place)
        except OSError as error:
            raise ToolError(f"the code cannot be run: {error}") from None
        if left:
            raise ToolError(f"the call's folder {place} cannot be removed: {left}")
        return done


def _unsupported(reason: str) -> Unsupported:
    return Unsupported(
        f"the python tool needs Linux 5.13 or later with Landlock and seccomp to shut code in ({reason}); "
        "leave it out of --tools"
    )


def readable() -> list[str]:
    """Python's own files, and those that its libraries need: folders and files that code may read beside its own folder.

    Where a `.pth` file or an editable install points elsewhere, that is not among them.
    """
    paths = sysconfig.get_paths()
    own = [paths["stdlib"], paths["purelib"], paths["platlib"], *site.getsitepackages()]
    libraries = [os.path.join(sys.base_prefix, name) for name in ("lib", sys.platlibdir)]
    return list(dict.fromkeys([*own, *libraries, *SYSTEM]))


def _watched(command: list[str], code: str, place: str, clock: float) -> tuple[Ended, str]:
    """Runs the process and looks at what it holds meanwhile. Its end is the end of all it did: it can start no other."""
    environment = {"HOME": place, "TMPDIR": place, "PATH": "", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    deadline = time.monotonic() + clock
    with tempfile.TemporaryFile() as stdin:
        stdin.write(code.encode("utf-8", "replace"))
        stdin.seek(0)
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=place,
            env=environment,
            start_new_session=True,
        )
    with process:
        try:
            output, timed_out, stopped = _read(process, place, deadline)
        finally:
            process.kill()
    text = shortened(output.decode("utf-8", "replace").strip())
    return Ended(process.returncode, text, timed_out), stopped or folder.over(place)


def _read(process: subprocess.Popen[bytes], place: str, deadline: float) -> tuple[bytes, bool, str]:
    """The output, whether the deadline passed before the process ended, and the limit that it passed; "" if none.

    The process may have closed its output long before it ends.
    """
    assert process.stdout
    output, watch = bytearray(), folder.Watch(place, process.pid)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(output) < MOST_OUTPUT and (selector.get_map() or process.poll() is None):
            if time.monotonic() >= deadline:
                return bytes(output), True, ""
            stopped = watch.excess()
            if stopped:
                return bytes(output), False, stopped
            if not selector.get_map():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK)
            elif selector.select(LOOK):
                part = os.read(process.stdout.fileno(), READ_BYTES)
                output += part
                if not part:
                    selector.unregister(process.stdout)
    return bytes(output), False, ""
