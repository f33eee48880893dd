"""Tools that the server carries out itself, where a client asks for them by their type.

A client names a tool in its list of tools: `{"type": "python"}`, `{"type": "browser"}`, or any tool by its name;
`code_interpreter` and `web_search` are what other servers call the first two. Each request has tools of its own: what one has
opened no other sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from oss_tools.chat.completion import ToolCall
from oss_tools.chat.harmony import NAMESPACE
from oss_tools.chat.messages import Message
from oss_tools.chat.sections import BROWSER, PYTHON
from oss_tools.chat.tools.base import Tool
from oss_tools.chat.tools.choice import fresh
from oss_tools.errors import BadRequest

SEARCHES = ("browser_search", "web_search", "web_search_preview")
CALLED = {"code_interpreter": PYTHON, **dict.fromkeys(SEARCHES, BROWSER)}


def named(kinds: Iterable[str], tools: Mapping[str, Tool]) -> dict[str, Tool]:
    """The tools that these types mean, of those that the server has, new for one request. Raises BadRequest."""
    chosen: dict[str, Tool] = {}
    for kind in kinds:
        wanted = CALLED.get(kind, kind)
        found = {name: tool for name, tool in tools.items() if name == wanted or name.startswith(f"{wanted}.")}
        if not found:
            known = ", ".join(dict.fromkeys(name.partition(".")[0] for name in tools)) or "none; see --tools"
            raise BadRequest(f"tools: {ascii(kind)[:60]} is none that this server carries out: {known}")
        chosen |= found
    return fresh(chosen)


async def result(tool: Tool, call: ToolCall) -> Message:
    """Carries a call out, beside whatever else the server does."""
    text = await asyncio.to_thread(tool.call, call.arguments)
    name = call.recipient or NAMESPACE + tool.name
    return Message("tool", text, call.channel or "commentary", "assistant", name=name)
