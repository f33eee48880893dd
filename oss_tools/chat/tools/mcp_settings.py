"""MCP servers from a JSON file in the form that Claude, Cursor and others read.

    {"mcpServers": {
        "files": {"command": "uvx", "args": ["mcp-server-git"], "env": {"TOKEN": "${GIT_TOKEN}"}},
        "search": {"url": "http://127.0.0.1:9000/mcp", "headers": {"Authorization": "Bearer ${KEY}"}}
    }}

`${NAME}` is a variable of the environment, `${NAME:-text}` has a text for one that is not set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from oss_tools.checkpoints.json_files import read_json
from oss_tools.errors import BadCheckpoint, BadRequest

MOST_BYTES = 1 << 20
MOST_SERVERS = 32
MOST_PARTS = 256  # of a command
COMMAND, ADDRESS = {"command", "args", "env", "cwd"}, {"url", "headers"}
REMARKS = {"disabled", "description", "autoApprove", "alwaysAllow", "timeout", "type", "transport"}  # of other programs, too
KINDS = {"stdio", "http", "streamable-http", "streamableHttp", "streamable_http"}
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
LINE = re.compile(r"[^\x00-\x1f\x7f]*")


@dataclass(frozen=True)
class McpServer:
    """A server that is started as a command, or reached at an address."""

    name: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def read_servers(path: Path) -> list[McpServer]:
    """The servers of a file, but for those that are switched off. Raises BadRequest, naming the entry that is wrong."""
    try:
        content = read_json(path, MOST_BYTES)
    except BadCheckpoint as error:
        raise BadRequest(str(error)) from None
    entries = content.get("mcpServers")
    if not isinstance(entries, Mapping) or not entries or len(entries) > MOST_SERVERS:
        raise BadRequest(f"{path}: has no object `mcpServers` of 1 to {MOST_SERVERS} servers")
    where = {name: f"{path}: server {ascii(name)[1:61]}" for name in entries}
    found = [_server(name, entry, where[name], path.parent) for name, entry in entries.items()]
    return [server for server in found if server is not None]


def _server(name: str, entry: Any, where: str, folder: Path) -> McpServer | None:
    if not isinstance(entry, Mapping) or (unknown := sorted(set(entry) - COMMAND - ADDRESS - REMARKS)):
        what = f"{ascii(unknown[0])[:60]} is no field of a server" if isinstance(entry, Mapping) else "must be an object"
        raise BadRequest(f"{where}: {what}")
    if entry.get("disabled") is True:
        return None
    kind = entry.get("type", entry.get("transport", "http" if "url" in entry else "stdio"))
    if kind not in KINDS:
        raise BadRequest(f"{where}: a server of type {ascii(kind)[:40]} is not supported; use stdio or http")
    if ("command" in entry) == ("url" in entry) or (kind == "stdio") != ("command" in entry):
        raise BadRequest(f"{where}: must have a `command` (stdio) or a `url` (http)")
    if "url" in entry:
        url = _text(entry["url"], f"{where}: url")
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise BadRequest(f"{where}: url must begin with http:// or https://")
        return McpServer(name, url=url, headers=_texts(entry.get("headers", {}), f"{where}: headers"))
    arguments = entry.get("args", [])
    if not isinstance(arguments, list) or len(arguments) >= MOST_PARTS:
        raise BadRequest(f"{where}: args must be a list of at most {MOST_PARTS} texts")
    command = (_text(entry["command"], f"{where}: command"), *(_text(part, f"{where}: args") for part in arguments))
    place = folder / Path(_text(entry["cwd"], f"{where}: cwd")).expanduser() if "cwd" in entry else None
    return McpServer(name, command, _texts(entry.get("env", {}), f"{where}: env"), place)


def _texts(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or len(value) > MOST_PARTS:
        raise BadRequest(f"{where} must be an object of texts")
    return {name: _text(text, f"{where}: {ascii(name)[1:61]}") for name, text in value.items()}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not LINE.fullmatch(value):
        raise BadRequest(f"{where} must be a text of one line")

    def filled(found: re.Match[str]) -> str:
        known = os.environ.get(found[1], found[2])
        if known is None:
            raise BadRequest(f"{where}: the variable {found[1]} is not set")
        return known

    return VARIABLE.sub(filled, value)
