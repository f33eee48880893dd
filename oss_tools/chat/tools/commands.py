"""Tools that a YAML file declares as commands. They run with the user's rights: declare only what a model may do.

    tools:
      - name: weather
        description: Looks up the weather of a city
        parameters: {type: object, properties: {city: {type: string}}, required: [city]}
        command: [python3, weather.py, "--city={city}"]    # relative to the file's folder
        timeout: 20                                        # seconds, 10 if it is not said

`{name}` in a part of the command becomes that argument (JSON if it is no string; empty if it is not given). Without any
placeholder the arguments come as a JSON object on stdin. There is no shell. The output is the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oss_tools.chat.tools.base import Tool, ToolError, run_program
from oss_tools.checkpoints.files import read_text
from oss_tools.errors import BadRequest

MAX_FILE = 1 << 20
TIMEOUT, LONGEST = 10.0, 3600.0  # seconds
NAME = re.compile(r"(browser\.)?[A-Za-z_][A-Za-z0-9_-]{0,63}")
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*)\}")
FIELDS = {"name", "description", "parameters", "command", "timeout"}


class CommandTool(Tool):
    """A command with a schema."""

    def __init__(self, schema: Mapping[str, Any], command: list[str], timeout: float, folder: Path) -> None:
        self.schema, self._command, self._timeout, self._folder = schema, command, timeout, folder

    def run(self, arguments: Mapping[str, Any]) -> str:
        placeholders = any(PLACEHOLDER.search(part) for part in self._command)
        command = [self._filled(part, arguments) for part in self._command]
        given = "" if placeholders else json.dumps(arguments, ensure_ascii=False)
        try:
            ended = run_program(command, given, timeout=self._timeout, folder=self._folder)
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


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def load_commands(path: Path) -> list[Tool]:
    """The tools of a YAML file. Raises BadRequest, naming the entry that is wrong; OSError."""
    import yaml

    try:
        content = yaml.safe_load(read_text(path, MAX_FILE))
    except (yaml.YAMLError, RecursionError) as error:
        raise BadRequest(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
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
        raise BadRequest(f"{where}: `name` must be letters, digits and underscores, not {name!r}")
    where = f"{where} ({name})"
    if not isinstance(description, str):
        raise BadRequest(f"{where}: `description` must be a text")
    if not isinstance(command, list) or not command or not all(isinstance(part, str) and part for part in command):
        raise BadRequest(f"{where}: `command` must be a list of texts, the program first")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= LONGEST:
        raise BadRequest(f"{where}: `timeout` must be seconds, at most {LONGEST:g}")
    properties = parameters.get("properties", {}) if isinstance(parameters, Mapping) else None
    if not isinstance(properties, Mapping) or parameters.get("type") != "object":
        raise BadRequest(f"{where}: `parameters` must be a JSON schema of type object")
    unknown = [found for part in command for found in PLACEHOLDER.findall(part) if found not in properties]
    if unknown or PLACEHOLDER.search(command[0]):
        raise BadRequest(f"{where}: `command` has a placeholder {{{(unknown or [command[0]])[0]}}} that is no parameter's")
    schema = {"name": name, "description": description, "parameters": parameters}
    try:
        json.dumps(schema)
    except (TypeError, ValueError, RecursionError):
        raise BadRequest(f"{where}: `parameters` must be JSON") from None
    return CommandTool(schema, command, float(timeout), folder)
