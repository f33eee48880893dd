"""A contender of a benchmark in a process of its own, so that memory and threads of several do not mix.

The parent writes a request a line (JSON) to the child's stdin and reads a reply a line from its stdout.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from oss_tools.errors import OssToolsError
from oss_tools.machine.memory import library_bytes
from oss_tools.measure.counters import between, counters
from oss_tools.measure.memory_group import MemoryGroup, join

CONTENDERS = {
    "oss-tools": "oss_tools.measure.engine_contender:EngineContender",
    "llama.cpp": "oss_tools.measure.peer:LlamaCpp",
    "llama.cpp, mapped": "oss_tools.measure.peer:MappedLlamaCpp",
    "ik_llama.cpp": "oss_tools.measure.peer:IkLlamaCpp",
    "oss-tools eval": "oss_tools.measure.evaluators:OssTools",
    "lm-eval hf": "oss_tools.measure.evaluators:Hf",
    "oss-tools, lookup": "oss_tools.measure.lookup_programs:OssTools",
    "llama.cpp, lookup": "oss_tools.measure.lookup_programs:LlamaCpp",
}


def tokens_of_step(tokens: list[int], step: int, batch: int) -> list[int]:
    """What each of several sequences takes in a step of generation: another token than its neighbours, since experts are chosen
    by tokens."""
    return [tokens[(step + sequence) % len(tokens)] for sequence in range(batch)]


class Contender(ABC):
    """A program that runs a model. Made with the model loaded; the time that takes is measured around it."""

    @abstractmethod
    def __init__(self, model: str, threads: int, context: int, batch: int, **options: Any) -> None: ...

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the record should say of the program and of what it loaded."""

    @abstractmethod
    def prompt(self, tokens: list[int], depth: int) -> float:
        """Seconds to process `tokens` but for the first `depth`, which come before (not timed), and have the logits after the
        last."""

    @abstractmethod
    def generate(self, tokens: list[int], depth: int, batch: int) -> list[float]:
        """Seconds of each step that takes one of `tokens`, behind the first `depth` of them (not timed), in each of `batch`
        sequences."""

    def counters(self) -> dict[str, float]:
        """What the process has waited for so far, see `measure.counters`."""
        return counters()

    def close(self) -> None:
        """The program is no longer needed."""
        return

    def mark(self) -> None:
        """What is timed begins here."""
        self._marked = self.counters()

    def added(self) -> dict[str, float]:
        """What was counted in what was timed last."""
        return between(self._marked, self.counters())


class ContenderFailed(OssToolsError):
    """A contender's process ended, or answered with an error."""


def how_it_ended(status: int) -> str:
    """A sentence about a process that should not have ended, by its exit status, as subprocess gives it."""
    if status >= 0:
        return f"the process ended with status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    if name == "SIGILL":
        return f"the process was ended by {name}: its library has an instruction that this processor refused; build it anew here"
    return f"the process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


class Child:
    """The parent's end of a contender."""

    def __init__(self, kind: str, *, group: MemoryGroup | None = None, **arguments: Any) -> None:
        """Starts the process, in a control group if there is one, where it loads the model. Raises ContenderFailed."""
        self.kind = kind
        command = [sys.executable, "-P", "-m", "oss_tools.measure.worker", kind, json.dumps(arguments)]
        command += [str(group.members)] if group else []
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="backslashreplace")
        self._complaints = threading.Thread(target=self._pass_on, daemon=True)
        self._complaints.start()
        self.peak_bytes = self.library_bytes = 0
        self.ready: dict[str, Any] = self._reply()

    def ask(self, what: str, **arguments: Any) -> Any:
        """A method of the contender, called there."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise ContenderFailed(f"{self.kind}: {how_it_ended(self._ended())}")
        answer = json.loads(line)
        if "error" in answer:
            self._ended()
            raise ContenderFailed(f"{self.kind}: {answer['error']}")
        return answer["result"]

    def _pass_on(self) -> None:
        """What the contender's library complains of, to our own stderr: there it takes the way of all that is printed."""
        assert self._process.stderr
        for line in self._process.stderr:
            sys.stderr.write(line)

    def _ended(self) -> int:
        """Waits for the end; the process's exit status."""
        status = self._process.wait()
        self._complaints.join(timeout=5.0)  # a program that it started may hold its stderr open
        return status

    def close(self) -> None:
        """Ends the process; `peak_bytes` is then the largest resident size it had, `library_bytes` what of it were libraries."""
        if self._process.poll() is None:
            self.peak_bytes, self.library_bytes = self.ask("memory")
            assert self._process.stdin
            self._process.stdin.close()
            self._ended()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._process.kill()
            self._ended()


def peak_bytes() -> int:
    """The largest resident size this process has had. Linux's own counter, as getrusage's begins with the parent's size."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except OSError:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used * (1 if sys.platform == "darwin" else 1024)


def serve(kind: str, arguments: dict[str, Any]) -> None:
    """The child's end. Whatever libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(**answer: Any) -> None:
        replies.write(json.dumps(answer) + "\n")
        replies.flush()

    try:
        module, _, name = CONTENDERS[kind].partition(":")
        began = time.perf_counter()
        contender = getattr(importlib.import_module(module), name)(**arguments)
        reply(result={"load_seconds": time.perf_counter() - began, "facts": contender.facts()})
        for line in sys.stdin:
            request = json.loads(line)
            what = request.pop("do")
            reply(result=(peak_bytes(), library_bytes()) if what == "memory" else getattr(contender, what)(**request))
        contender.close()
    except (OssToolsError, MemoryError, OSError) as error:
        reply(error=str(error) or type(error).__name__)


if __name__ == "__main__":
    for members in sys.argv[3:]:
        join(members)
    serve(sys.argv[1], json.loads(sys.argv[2]))
