"""Which tools `--tools calculator,python,FILE.yaml` means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from oss_tools.chat.tools.base import Tool
from oss_tools.errors import BadRequest


def _calculator() -> Tool:
    from oss_tools.chat.tools.calculator import Calculator

    return Calculator()


def _python() -> Tool:
    from oss_tools.chat.tools.python import PythonTool

    return PythonTool()


BUILT_IN: dict[str, Callable[[], Tool]] = {"calculator": _calculator, "python": _python}


def open_tools(choice: str) -> dict[str, Tool]:
    """The tools by name, from names of built-in ones and YAML files, separated by commas. Raises BadRequest, Unsupported."""
    tools: dict[str, Tool] = {}
    for part in filter(None, (part.strip() for part in choice.split(","))):
        if part in BUILT_IN:
            found = [BUILT_IN[part]()]
        elif part.endswith((".yaml", ".yml")):
            from oss_tools.chat.tools.commands import load_commands

            found = load_commands(Path(part))
        else:
            raise BadRequest(f"no tool named {part!r}; known are {', '.join(BUILT_IN)} and YAML files that declare commands")
        for tool in found:
            if tool.name in tools:
                raise BadRequest(f"--tools: two tools are named {tool.name!r}")
            tools[tool.name] = tool
    return tools
