"""Which tools `--tools calculator,python,FILE.yaml,mcp.json` means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def _of_file(path: Path) -> list[Tool]:
    """The tools of a YAML file: commands, a browser, or both."""
    from oss_tools.chat.tools.browser_settings import browser_of
    from oss_tools.chat.tools.commands import load_commands
    from oss_tools.checkpoints.yaml_files import read_yaml

    content = read_yaml(path, BadRequest)
    if not isinstance(content, Mapping) or "browser" not in content:
        return load_commands(path)
    if unknown := [key for key in content if key not in ("tools", "browser")]:
        raise BadRequest(f"{path}: {ascii(unknown[0])[:60]} is neither `browser` nor `tools`")
    browser = browser_of(content["browser"], f"{path}: browser", path.parent)
    return browser + (load_commands(path) if "tools" in content else [])


def open_tools(choice: str) -> dict[str, Tool]:
    """The tools by name, from names of built-in ones, places to browse, YAML files and MCP servers' JSON files, separated by
    commas. Raises BadRequest, Unsupported, MissingPackage."""
    tools: dict[str, Tool] = {}
    for part in filter(None, (part.strip() for part in choice.split(","))):
        if part in BUILT_IN:
            found = [BUILT_IN[part]()]
        elif part == "browser" or part.startswith("browser:"):
            from oss_tools.chat.tools.browser_settings import browser_of_word

            found = browser_of_word(part.removeprefix("browser").removeprefix(":"))
        elif part.endswith((".yaml", ".yml")):
            found = _of_file(Path(part))
        elif part.endswith(".json"):
            from oss_tools.chat.tools.mcp import connect

            found = connect(Path(part))
        else:
            raise BadRequest(
                f"no tool named {part!r}; known are {', '.join(BUILT_IN)}, browser:FOLDER, browser:ADDRESS, "
                "YAML files that declare commands or a browser, and MCP servers' JSON files"
            )
        for tool in found:
            if tool.name in tools:
                raise BadRequest(f"--tools: two tools are named {tool.name!r}")
            tools[tool.name] = tool
    return tools


def fresh(tools: Mapping[str, Tool]) -> dict[str, Tool]:
    """The same tools for another conversation, which sees nothing of what these have kept."""
    made: dict[int, object] = {}
    return {name: tool.fresh(made) for name, tool in tools.items()}
