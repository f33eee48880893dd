"""The parent's end of a domain that runs in the user's own tau2."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from oss_tools.errors import BadSource, MissingPackage

WORKER = Path(__file__).with_name("worker.py")
SECONDS = 120.0  # for one reply; the first loads tau2 and the databases
LONGEST = 16 << 20  # bytes of a reply
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")  # of the environment; keys of APIs are not handed on
WORDS = 300  # characters of an error


class Child:
    """A process with one domain. Thread-safe: one request at a time."""

    def __init__(self, python: str, domain: str, checkout: Path, seconds: float = SECONDS) -> None:
        """
        Args:
            python: a program, the Python that has tau2 installed.
            checkout: of tau2's repository; its data are used.

        Raises MissingPackage if there is no such program.
        """
        self.domain, self._seconds = domain, seconds
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment |= {"TAU2_DATA_DIR": str((checkout / "data").absolute()), "PYTHONIOENCODING": "utf-8"}
        self._lock = threading.Lock()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (it is read after the end)
        try:
            self._process = subprocess.Popen(
                [python, "-P", str(WORKER), domain],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                cwd=tempfile.gettempdir(),
            )
        except OSError as error:
            self._log.close()
            raise MissingPackage(f"{python}: {error.strerror or error}; --tau2-python names the Python with tau2") from None
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def ask(self, do: str, **arguments: Any) -> Any:
        """What the domain replies. Raises BadSource if it fails, MissingPackage if tau2 is not installed there."""
        with self._lock:
            request = json.dumps({"do": do, **arguments}) + "\n"
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(request.encode())
                self._process.stdin.flush()
                line = self._line()
            except BrokenPipeError:
                line = b""
            try:
                reply = json.loads(line)
                if "ok" in reply:
                    return reply["ok"]
                said = str(reply["error"])
            except (ValueError, RecursionError, KeyError, TypeError):
                words = self._last_words()
                self.close()
                raise BadSource(f"tau2's domain {self.domain}: its process gives no reply: {words}") from None
        if said.startswith("ModuleNotFoundError: No module named 'tau2"):
            raise MissingPackage(
                f"{said}; in a checkout of sierra-research/tau2-bench: pip install -e . ; --tau2-python names the Python with it"
            )
        raise BadSource(f"tau2's domain {self.domain}: {do}: {' '.join(said.split())[:WORDS]}")

    def _line(self) -> bytes:
        """A reply; what came of it until the process ended or the time was over."""
        stream, until, found = self._process.stdout, time.monotonic() + self._seconds, b""
        assert stream is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while not found.endswith(b"\n") and len(found) <= LONGEST:
                if not selector.select(max(until - time.monotonic(), 0)):
                    break
                piece = stream.read(1 << 16)
                if not piece:
                    break
                found += piece
        return found

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            self._log.seek(0)
            lines = self._log.read(1 << 20).decode(errors="replace").strip().splitlines()
            return lines[-1][:WORDS] if lines else f"it had {self._seconds:g} s"
        return "it has ended"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()
