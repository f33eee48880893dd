"""Calls in a text, as models without harmony write them.

    {"name": "f", "parameters": {…}}; {"name": "g", "arguments": {…}}     Llama 3.1 to 3.3
    [{"name": "f", "arguments": {…}}, …]                                  Mistral, behind [TOOL_CALLS]
    f[ARGS]{…}                                                            Mistral of 2025, behind [TOOL_CALLS]
    [f(x=1), g(y="z")]                                                    Llama 3.2, Llama 4
    f.call(query="z")                                                     Llama 3.1's own tools, behind <|python_tag|>

What is read is what vLLM's parsers (llama3_json, mistral, pythonic) and bfcl-eval's handlers read; what stands around calls
is told.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Container, Mapping
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Any

from oss_tools.chat.completion import read_arguments, refuse_constant
from oss_tools.checkpoints.json_files import MAX_DEPTH, is_deeper

BETWEEN = re.compile(r"[\s;,]*")
FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
NAMED = re.compile(r"\s*([\w.-]{1,128})\s*(?:\[CALL_ID\]\s*\w{0,64}\s*)?(?:\[ARGS\])?\s*(?=\{)")
LINE = re.compile(r"^(?=\{)", re.MULTILINE)
_PARSING = Lock()
LONGEST = 100_000  # characters of calls in Python's syntax
MOST_LINES = 100  # at whose beginnings calls are looked for
DECODER = json.JSONDecoder(parse_constant=refuse_constant)


@dataclass(frozen=True)
class Written:
    """Calls, and the text before and after them."""

    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    before: str = ""
    after: str = ""


def calls_in(text: str, known: Container[str] | None) -> Written:
    """The calls of an answer: it begins with them, or ends with them from the beginning of a line (of `known` tools only; None:
    of any, as where a mark says that it is a call)."""
    fenced = FENCED.fullmatch(text.strip())
    text = fenced[1] if fenced else text
    found = _calls_at(text, 0)
    if found.calls:
        return found
    if python := _python_calls(text.strip()):
        return Written(python) if known is None or all(name in known for name, _ in python) else Written(after=text)
    for line in islice(LINE.finditer(text), MOST_LINES):
        found = _calls_at(text, line.start())
        if found.calls and not found.after and (known is None or all(name in known for name, _ in found.calls)):
            return Written(found.calls, text[: line.start()].strip())
    return Written(after=text)


def named_calls_in(text: str) -> Written:
    """The calls behind Mistral's [TOOL_CALLS]."""
    if NAMED.match(text) is None:
        return _calls_at(text, 0)
    found: list[tuple[str, Mapping[str, Any]]] = []
    at = 0
    while named := NAMED.match(text, at):
        try:
            arguments, end = DECODER.raw_decode(text, named.end())
            json.dumps(arguments, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
        except (ValueError, RecursionError):
            break
        if is_deeper(arguments, MAX_DEPTH):
            break
        found.append((named[1], arguments))
        at = BETWEEN.match(text, end).end()  # type: ignore[union-attr]  # it matches anywhere
    return Written(tuple(found), after=text[at:].strip())


def name_and_arguments(call: Any) -> tuple[str, Mapping[str, Any]] | None:
    """Of an object that is a call; None if it is none."""
    if not isinstance(call, Mapping) or is_deeper(call, MAX_DEPTH):
        return None
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        arguments = read_arguments(arguments)
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def _calls_at(text: str, at: int) -> Written:
    """Calls from here on, with separators between."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    while True:
        start = BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches anywhere
        if text[start : start + 1] not in ("{", "["):
            break
        try:
            value, end = DECODER.raw_decode(text, start)
            json.dumps(value, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
        except (ValueError, RecursionError):
            break
        calls = [name_and_arguments(call) for call in (value if isinstance(value, list) else [value])]
        if not calls or None in calls:
            break
        found += [call for call in calls if call is not None]
        at = end
    return Written(tuple(found), after=text[at:].strip(" \t\r\n;,"))


def _python_calls(text: str) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Calls in Python's syntax with literal arguments by name; () if the text is anything else."""
    if len(text) > LONGEST or not text.endswith((")", ")]")):
        return ()
    try:
        body = syntax_of(text)
        nodes = body.elts if isinstance(body, ast.List) else [body]
        return tuple(_python_call(node) for node in nodes)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return ()


def syntax_of(text: str) -> ast.expr:
    """An expression in Python's syntax. What Python warns of in it (odd escapes, `1if`) is nobody's business. Raises what
    `ast.parse` raises.

    One thread at a time: before CPython 3.13 `ast.parse` counts its depth for all threads together, and a garbage collection
    within it lets others in ("AST constructor recursion depth mismatch"); filters of warnings are the process's too.
    """
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text, mode="eval").body


def _python_call(node: ast.expr) -> tuple[str, Mapping[str, Any]]:
    """Raises ValueError if it is no such call."""
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("no call with named arguments")
    arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    json.dumps(arguments, allow_nan=False, ensure_ascii=False).encode()
    if is_deeper(arguments, MAX_DEPTH):
        raise ValueError("nested too deeply")
    return ast.unparse(node.func).removesuffix(".call"), arguments
