"""What `chat` and `serve` share: the tools that a model may call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from oss_tools.cli._groups import options

if TYPE_CHECKING:
    from oss_tools.chat.tools.base import Tool


@options
class ToolOptions:
    """Tools, and how often an answer may call them."""

    tools: Annotated[
        str,
        typer.Option(
            "--tools",
            metavar="LIST",
            help="Tools for the model, separated by commas: calculator, python, browser:FOLDER, a YAML file, mcp.json.",
        ),
    ] = ""
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="The most tool calls for one answer.")] = 8

    def opened(self) -> dict[str, Tool]:
        """The tools by name. Raises what `open_tools` raises."""
        from oss_tools.chat.tools.choice import open_tools

        return open_tools(self.tools)
