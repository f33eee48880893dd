"""The tools that gpt-oss was trained with: `python`, which takes code as it is, and `browser`.

They are declared in sections of the system message, and called by their own names: `to=python`, `to=browser.search`.
The texts are those of openai-harmony (`ToolNamespaceConfig.python()`, `.browser()`).
"""

from __future__ import annotations

from collections.abc import Sequence

from oss_tools.chat.typescript import Schema, namespace

PYTHON, BROWSER = "python", "browser"
CODE = "code"  # the argument of `python` that its text is
ABOUT_PYTHON = (
    "Use this tool to execute Python code in your chain of thought. The code will not be shown to the user. This tool should be "
    "used for internal reasoning, but not for code that is intended to be visible to the user (e.g. when creating plots, tables, "
    "or files).\n\n"
    "When you send a message containing Python code to python, it will be executed in a stateful Jupyter notebook environment. "
    "python will respond with the output of the execution or time out after 120.0 seconds. The drive at '/mnt/data' can be used "
    "to save and persist user files. Internet access for this session is UNKNOWN. Depends on the cluster."
)
ABOUT_BROWSER = """\
Tool for browsing.
The `cursor` appears in brackets before each browsing display: `[{cursor}]`.
Cite information from the tool using the following format:
`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.
Do not quote more than 10 words directly from the tool output.
sources=web (default: web)"""


def has_own_section(tool: Schema) -> bool:
    """Whether a tool is declared in a section of its own: the browser's, and a `python` that takes code and nothing else."""
    if tool["name"] == PYTHON:
        parameters = tool.get("parameters") or {}
        return set(parameters.get("properties") or {}) == {CODE}
    return str(tool["name"]).startswith(f"{BROWSER}.")


def is_own_name(name: str) -> bool:
    """Whether a call may name a tool like this, without the namespace `functions.`."""
    return name == PYTHON or name.startswith(f"{BROWSER}.")


def sections(tools: Sequence[Schema]) -> list[str]:
    """The sections of these tools, which all have one of their own."""
    browser = [{**tool, "name": str(tool["name"]).removeprefix(f"{BROWSER}.")} for tool in tools if tool["name"] != PYTHON]
    found = [namespace(BROWSER, browser, ABOUT_BROWSER)] if browser else []
    return found + ([f"## {PYTHON}\n\n{ABOUT_PYTHON}"] if len(browser) < len(tools) else [])
