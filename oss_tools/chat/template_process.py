"""Renders chat templates in a process of their own: started with the first one, kept for the next, ended after a failure."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from oss_tools.chat import template_worker
from oss_tools.chat.template_worker import FAULT, MAX_CHARACTERS, MEMORY, NO_MEMORY, READY, TEXT, UTF8, seconds_for
from oss_tools.errors import BadCheckpoint, BadRequest, Unsupported

CLOCK = 20  # seconds of the clock for one of processor time: other programs may keep the machine busy
START = 60  # seconds of the clock in which the process must be there
NEEDED = ("jinja2", "markupsafe")  # what it imports
WATCHED = sys.platform == "darwin"  # whose limits of memory are not kept: it is looked at instead
LOOK = 0.1  # seconds from one look to the next
KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "TZ")  # of the environment: no secrets
LONGEST = 4 * MAX_CHARACTERS  # bytes of an answer


class TemplateProcess:
    """The process, and one rendering at a time in it. Threads may share it; a fork of this process starts its own."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def render(self, source: str, moment: dict[str, Any], given: dict[str, Any]) -> str:
        """The text of a template, see `template_worker`. Raises BadCheckpoint if it fails or goes beyond its limits, BadRequest
        for a conversation that is no JSON, and Unsupported if no process can be started."""
        try:
            plain = json.dumps(given, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRequest(f"the conversation cannot be given to a chat template: {error}") from None
        request = json.dumps({"source": source, "moment": moment, "given": plain}, ensure_ascii=False).encode(*UTF8)
        with self._lock:
            try:
                process = self._started()
                kind, said = _asked(process, request, CLOCK * seconds_for(plain))
            except BaseException:
                self.close()
                raise
            if kind != TEXT:
                self.close()
        if kind != TEXT:
            raise _fault(said)
        return said

    def _started(self) -> subprocess.Popen[bytes]:
        """The process. It may have died since it was last used."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            self._process = _start()
        return self._process

    def close(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            _close_pipes(process)
            process.wait()

    def forget(self) -> None:
        """In a fork: the process is the other's."""
        process, self._process, self._lock = self._process, None, Lock()
        if process is not None:
            _close_pipes(process)
            process.returncode = 0  # it is no child of this one, and not waited for


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe
        with suppress(OSError):  # bytes that nobody reads any more
            pipe.close()


def _start() -> subprocess.Popen[bytes]:
    """The process, ready to answer. Raises Unsupported."""
    specs = [importlib.util.find_spec(name) for name in NEEDED]
    folders = [str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin]
    command = [sys.executable, "-I", "-S", template_worker.__file__, *dict.fromkeys(folders)]
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    try:
        process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise Unsupported(
            f"chat templates are rendered in a process of their own, which cannot be started: {error}"
        ) from None
    try:
        kind, _ = _answer(process, START)
    except BadCheckpoint:
        kind = FAULT
    if kind != READY:
        process.kill()
        _close_pipes(process)
        process.wait()
        raise Unsupported(
            f"chat templates are rendered in a process of their own, which does not start: {' '.join(command[:4])}; is jinja2 "
            "installed, and is there memory?"
        )
    return process


def _asked(process: subprocess.Popen[bytes], request: bytes, seconds: float) -> tuple[bytes, str]:
    """What the process answers. Raises BadCheckpoint if it ends, or takes too long."""
    assert process.stdin
    rest = memoryview(len(request).to_bytes(8, "little") + request)
    with suppress(BrokenPipeError):  # it has ended, as reading will show
        while rest:
            rest = rest[os.write(process.stdin.fileno(), rest) :]
    return _answer(process, seconds)


def _answer(process: subprocess.Popen[bytes], seconds: float) -> tuple[bytes, str]:
    end = time.monotonic() + seconds
    head = _read(process, 9, end)
    length = int.from_bytes(head[1:], "little")
    if head[:1] not in (TEXT, FAULT, READY) or length > LONGEST:
        raise _fault("it takes over the process that renders it")
    try:
        return head[:1], _read(process, length, end).decode(*UTF8)
    except UnicodeDecodeError:
        raise _fault("it takes over the process that renders it") from None


def _read(process: subprocess.Popen[bytes], count: int, end: float) -> bytes:
    """So many bytes of what the process writes. Raises BadCheckpoint, saying why there are no more."""
    assert process.stdout
    ready = select.poll()
    ready.register(process.stdout, select.POLLIN)
    found = bytearray()
    while len(found) < count:
        left = end - time.monotonic()
        if left <= 0:
            raise _fault("it takes too long")
        if not ready.poll(min(left, LOOK) * 1000):
            if WATCHED and _resident(process) > MEMORY:
                raise _fault(NO_MEMORY)
            continue
        if not (piece := os.read(process.stdout.fileno(), count - len(found))):
            raise _fault(_why(process))
        found += piece
    return bytes(found)


def _resident(process: subprocess.Popen[bytes]) -> int:
    """Bytes of memory that the process has; 0 if that cannot be told."""
    try:
        told = subprocess.run(
            ["/bin/ps", "-o", "rss=", "-p", str(process.pid)], capture_output=True, timeout=START, check=True
        )
        return int(told.stdout) << 10
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def _why(process: subprocess.Popen[bytes]) -> str:
    """Why the process has ended."""
    status = process.wait()
    if status == -signal.SIGPROF:
        return "it takes too much processor time"
    return f"it ends the process that renders it (status {status}): it is nested too deeply, or needs too much memory"


def _fault(said: str) -> BadCheckpoint:
    return BadCheckpoint(f"the checkpoint's chat template cannot be rendered: {said}")


SHARED = TemplateProcess()
os.register_at_fork(after_in_child=SHARED.forget)
atexit.register(SHARED.close)
