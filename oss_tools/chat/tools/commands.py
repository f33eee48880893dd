"""Tools that a YAML file declares as commands. They run with the user's rights: declare only what a model may do.

    tools:
      - name: weather
        description: Looks up the weather of a city
        parameters: {type: object, properties: {city: {type: string}}, required: [city]}
        command: [python3, weather.py, "--city={city}"]    # relative to the file's folder
        timeout: 20                                        # seconds, 10 if it is not said
        environment: [WEATHER_KEY]                         # variables that it is given beside the usual ones

`{name}` in a part of the command becomes that argument (JSON if it is no string; empty if it is not given). Without any
placeholder the arguments come as a JSON object on stdin. There is no shell, and a placeholder in the program text of one
(`sh -c`, `python3 -c`, `awk`, `ssh`) is refused. The output is the answer. What the command started ends with it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oss_tools.chat.tools.base import Tool, ToolError
from oss_tools.chat.tools.program_text import program_on_stdin, program_text
from oss_tools.chat.tools.supervised import run_supervised
from oss_tools.checkpoints.yaml_files import read_yaml
from oss_tools.errors import BadRequest

TIMEOUT, LONGEST = 10.0, 3600.0  # seconds
MAX_PARTS = 256  # of a command
NAME = re.compile(r"(browser\.)?[A-Za-z_][A-Za-z0-9_-]{0,63}")
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*)\}")
FIELDS = {"name", "description", "parameters", "command", "timeout", "environment"}
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
USUAL = "PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR TEMP TMP TERM LD_LIBRARY_PATH"  # variables, beside LC_*


class CommandTool(Tool):
    """A command with a schema."""

    def __init__(
        self, schema: Mapping[str, Any], command: list[str], timeout: float, folder: Path, environment: Sequence[str] = ()
    ) -> None:
        """`environment`: names of variables that the command is given beside the usual ones."""
        self.schema, self._command, self._timeout, self._folder = schema, command, timeout, folder
        self._named = frozenset(environment)

    def run(self, arguments: Mapping[str, Any]) -> str:
        placeholders = any(PLACEHOLDER.search(part) for part in self._command)
        command = [self._filled(part, arguments) for part in self._command]
        given = "" if placeholders else json.dumps(arguments, ensure_ascii=False)
        try:
            ended = run_supervised(
                command, given, timeout=self._timeout, folder=self._folder, environment=environment(self._named)
            )
        except (OSError, ValueError) as error:  # no such program; a NUL character in an argument
            raise ToolError(f"the command cannot be started: {error}") from None
        if ended.timed_out:
            raise ToolError(f"no answer within {self._timeout:g} seconds")
        if ended.status:
            raise ToolError(f"exit status {ended.status}\n{ended.output}".strip())
        return ended.output

    def _filled(self, part: str, arguments: Mapping[str, Any]) -> str:
        filled = PLACEHOLDER.sub(lambda found: _written(arguments.get(found[1], "")), part)
        if part.startswith("{") and filled.startswith("-"):
            raise ToolError(f"{filled[:40]!r} would be read as an option")
        return filled


def environment(named: frozenset[str] = frozenset()) -> dict[str, str]:
    """The variables that a command is given: the usual ones and those named, as far as they are set. No tokens of the user's."""
    return {
        name: value for name, value in os.environ.items() if name in named.union(USUAL.split()) or name.startswith("LC_")
    }


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def load_commands(path: Path) -> list[Tool]:
    """The tools of a YAML file. Raises BadRequest, naming the entry that is wrong; OSError."""
    content = read_yaml(path, BadRequest)
    entries = content.get("tools") if isinstance(content, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise BadRequest(f"{path}: has no list `tools`")
    return [_tool(entry, f"{path}: tool {number}", path.parent) for number, entry in enumerate(entries, 1)]


def _tool(entry: Any, where: str, folder: Path) -> Tool:
    if not isinstance(entry, Mapping) or set(entry) - FIELDS:
        raise BadRequest(f"{where}: must be an object with {', '.join(sorted(FIELDS))}")
    name, command, timeout = entry.get("name"), entry.get("command"), entry.get("timeout", TIMEOUT)
    description, parameters = entry.get("description", ""), entry.get("parameters", {"type": "object", "properties": {}})
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise BadRequest(f"{where}: `name` must be letters, digits and underscores, not {ascii(name)[:60]}")
    where = f"{where} ({name})"
    if not isinstance(description, str):
        raise BadRequest(f"{where}: `description` must be a text")
    if not isinstance(command, list) or not command or not all(isinstance(part, str) and part for part in command):
        raise BadRequest(f"{where}: `command` must be a list of texts, the program first")
    if len(command) > MAX_PARTS:
        raise BadRequest(f"{where}: `command` has {len(command)} parts, more than {MAX_PARTS}")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= LONGEST:
        raise BadRequest(f"{where}: `timeout` must be seconds, at most {LONGEST:g}")
    properties = parameters.get("properties", {}) if isinstance(parameters, Mapping) else None
    if not isinstance(properties, Mapping) or parameters.get("type") != "object":
        raise BadRequest(f"{where}: `parameters` must be a JSON schema of type object")
    unknown = [found for part in command for found in PLACEHOLDER.findall(part) if found not in properties]
    if unknown or PLACEHOLDER.search(command[0]):
        raise BadRequest(f"{where}: `command` has a placeholder {{{(unknown or [command[0]])[0]}}} that is no parameter's")
    if found := program_text(command, lambda part: PLACEHOLDER.search(part) is not None):
        program, text = found
        raise BadRequest(
            f"{where}: a value would become program text of {program} in {text[:60]!r}; pass it as an argument, as in "
            """[sh, -c, 'echo "$1"', sh, "{name}"], or leave out all placeholders and read JSON from stdin"""
        )
    if not any(map(PLACEHOLDER.search, command)) and (reader := program_on_stdin(command)):
        raise BadRequest(
            f"{where}: {reader} would take the arguments on its stdin for a program; name a script that reads them"
        )
    variables = entry.get("environment", [])
    if not isinstance(variables, list) or not all(isinstance(v, str) and VARIABLE.fullmatch(v) for v in variables):
        raise BadRequest(f"{where}: `environment` must be a list of names of variables, without values")
    schema = {"name": name, "description": description, "parameters": parameters}
    try:
        json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise BadRequest(f"{where}: `parameters` must be JSON") from None
    return CommandTool(schema, command, float(timeout), folder, variables)
