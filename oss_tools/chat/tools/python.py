"""The tool `python`: code in a process of its own, without a network, within limits of time and memory (see `confined`)."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oss_tools.chat.tools import confined
from oss_tools.chat.tools.base import Ended, Tool, run_program
from oss_tools.errors import Unsupported

SECONDS = 10  # of CPU time
CLOCK = 30.0  # seconds on the clock
MEMORY = 1 << 30  # bytes of address space
FILE_SIZE = 16 << 20  # bytes
FRESH = "note: each call begins anew; names and files of earlier calls are gone"  # some models are told of a notebook


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
        tried = self._run("1")
        if tried.status or tried.output != "1":
            raise Unsupported(
                f"the python tool needs Linux 5.13 or later with Landlock and seccomp to shut code in ({tried.output}); "
                "leave it out of --tools"
            )

    def run(self, arguments: Mapping[str, Any]) -> str:
        ended = self._run(arguments["code"])
        if ended.timed_out or ended.status in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"{ended.output}\nerror: stopped, its time or its output was used up".strip()
        if ended.output.rstrip().rpartition("\n")[2].startswith("NameError:"):
            return f"{ended.output}\n{FRESH}"
        if ended.status < 0:
            return f"{ended.output}\nerror: ended by signal {-ended.status}".strip()
        return ended.output

    def _run(self, code: str) -> Ended:
        command = [sys.executable, "-I", "-B", confined.__file__, *map(str, (self._seconds, self._memory, FILE_SIZE))]
        with tempfile.TemporaryDirectory(prefix="oss-tools-python-") as folder:
            environment = {"HOME": folder, "TMPDIR": folder, "PATH": "", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            return run_program(command, code, timeout=self._clock, folder=Path(folder), environment=environment)
