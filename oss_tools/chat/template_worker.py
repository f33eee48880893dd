"""The process in which chat templates are rendered. They are strangers' programs: its time and memory are limited.

It runs alone, as `python -I -S template_worker.py FOLDER…`, where the folders hold jinja2 and markupsafe. It imports nothing of
this package, takes one rendering after another from its standard input, and ends when that does, or after a rendering that
failed. `template_process` is the other side. A message is its length (8 bytes, little-endian) and so many bytes; an answer has
one byte before it that tells a text from a fault. Texts are UTF-8 in which halves of surrogate pairs may stand.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import cache, lru_cache
from typing import Any

MAX_CHARACTERS = 10_000_000  # of a rendered conversation
MEMORY = 1 << 30  # bytes of address space
NO_MEMORY = f"it needs more than {MEMORY >> 20} MiB of memory"
PROCESSOR_SECONDS = 2  # of a rendering, and a second more for each so many characters that it is given:
CHARACTERS_A_SECOND = 1_000_000
MAX_FAULT = 400  # characters of what is said of a fault
COMPILED = 16  # templates that are kept
TEXT, FAULT, READY = b"=", b"!", b"+"
UTF8 = ("utf-8", "surrogatepass")


def seconds_for(given: str) -> int:
    """Seconds of processor time that a rendering of a conversation, as JSON, may take."""
    return PROCESSOR_SECONDS + len(given) // CHARACTERS_A_SECOND


def main(folders: Sequence[str]) -> None:
    """Answers until standard input ends or a rendering fails."""
    sys.path += folders
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _environment()
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_AS, MEMORY)):
        _lower(limit, value)
    _send(READY, "")
    while (length := _read(8)) and (request := _read(int.from_bytes(length, "little"))):
        kind, said = _answer(request)
        _send(kind, said)
        if kind == FAULT:
            break


def _lower(limit: int, value: int) -> None:
    """A limit of this process's own, no higher than the one that it was started with. macOS takes none of memory."""
    hard = resource.getrlimit(limit)[1]
    with suppress(ValueError, OSError):
        resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _read(count: int) -> bytes:
    """So many bytes of standard input; b"" at its end."""
    found = bytearray()
    while len(found) < count:
        if not (piece := os.read(0, count - len(found))):
            return b""
        found += piece
    return bytes(found)


def _send(kind: bytes, said: str) -> None:
    data = said.encode(*UTF8)
    rest = memoryview(kind + len(data).to_bytes(8, "little") + data)
    while rest:
        rest = rest[os.write(1, rest) :]


def _answer(request: bytes) -> tuple[bytes, str]:
    try:
        return TEXT, _render(**json.loads(request.decode(*UTF8)))
    except MemoryError:
        fault = NO_MEMORY
    except RecursionError:
        fault = "it is nested too deeply, or calls itself without end"
    except Exception as error:  # whatever a stranger's program ends with
        fault = str(error) or type(error).__name__
    return FAULT, " ".join(fault.split())[:MAX_FAULT]


def _render(source: str, moment: Mapping[str, Any], given: str) -> str:
    """The text of a template, given the names that it may use, as JSON."""
    signal.setitimer(signal.ITIMER_PROF, seconds_for(given))  # of processor time, after which SIGPROF ends the process
    _environment().globals["strftime_now"] = _moment(**moment).strftime
    pieces, size = [], 0
    for piece in _compiled(source).generate(json.loads(given)):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_CHARACTERS:
            raise ValueError("it makes an endless text")
    return "".join(pieces)


def _moment(iso: str, zone: str | None, offset: float | None) -> datetime:
    found = datetime.fromisoformat(iso)
    return found if offset is None else found.replace(tzinfo=timezone(timedelta(seconds=offset), zone or ""))


@lru_cache(maxsize=COMPILED)
def _compiled(source: str) -> Any:
    return _environment().from_string(source)


@cache
def _environment() -> Any:
    """What transformers gives templates (`transformers.utils.chat_template_utils`)."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %} … {% endgeneration %}` marks what training learns from. It is a scope; its text is as it is."""

        tags = {"generation"}  # noqa: RUF012 (as the base class has it)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

        def _written(self, caller: Callable[[], str]) -> str:
            return caller()

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes HTML."""
    pair = None if separators is None else (separators[0], separators[1])
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise ValueError(message)


if __name__ == "__main__":
    main(sys.argv[1:])
