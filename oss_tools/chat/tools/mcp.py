"""Tools of MCP servers (https://modelcontextprotocol.io), over their stdin and stdout or HTTP, by the package `mcp`.

The servers are started when the tools are opened, in a thread with an event loop of its own, and end with the program. What a
server says of its tools is shown to the model; what it asks of the client (sampling, elicitation, roots) is not answered.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from oss_tools.chat.tools.base import Tool, ToolError, shortened
from oss_tools.chat.tools.mcp_settings import McpServer, read_servers
from oss_tools.checkpoints.json_files import MAX_DEPTH, is_deeper
from oss_tools.errors import BadRequest, MissingPackage, Unreachable, how_to_install

STARTS = 60.0  # seconds until a server has told its tools: it may be fetched first
SECONDS = 120.0  # of a call
ENDS = 5.0  # seconds that all servers have to end in
MOST_TOOLS, MOST_LISTS = 256, 64  # of a server
MOST_TEXT = 4000  # characters of a description
MOST_SCHEMA = 64 << 10  # characters of parameters
ODD = re.compile(r"[^A-Za-z0-9_-]")

T = TypeVar("T")


class McpTool(Tool):
    """A tool of a server's."""

    def __init__(self, schema: Mapping[str, Any], name: str, connection: _Connection, servers: _Servers) -> None:
        """`name`: the server's own for it."""
        self.schema, self._own, self._connection, self._servers = schema, name, connection, servers

    def call(self, arguments: Mapping[str, Any]) -> str:
        """The server checks the arguments itself."""
        try:
            return self.run(arguments)
        except ToolError as error:
            return f"error: {error}"

    def run(self, arguments: Mapping[str, Any]) -> str:
        return self._servers.wait(self._connection.call(self._own, dict(arguments)), SECONDS + 5)


def connect(path: Path) -> list[Tool]:
    """Starts the servers of a file, or opens them, and asks for their tools. A tool has the name that its server gives it, behind
    the server's own where two have the same.

    Raises BadRequest for what the file or a server says wrongly, Unreachable for a server that does not answer, MissingPackage.
    """
    servers = read_servers(path)
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise MissingPackage(f"{path}: MCP servers need the package mcp: {how_to_install('serve')}") from None
    running = _Servers()
    found: list[tuple[_Connection, Any]] = []
    for server in servers:
        connection = running.start(server)
        found += [(connection, tool) for tool in connection.tools]
    named = Counter(ODD.sub("_", tool.name) for _, tool in found)
    return [_tool(connection, tool, named, running) for connection, tool in found]


def _tool(connection: _Connection, tool: Any, named: Counter[str], running: _Servers) -> Tool:
    name = ODD.sub("_", tool.name)
    if named[name] > 1:
        name = f"{ODD.sub('_', connection.server.name)}_{name}"
    where = f"MCP server {connection.server.name}: tool {ascii(tool.name)[1:61]}"
    parameters = tool.input_schema
    if is_deeper(parameters, MAX_DEPTH) or len(json.dumps(parameters)) > MOST_SCHEMA:
        raise BadRequest(f"{where}: its parameters are deeper than {MAX_DEPTH} or longer than {MOST_SCHEMA} characters")
    if not name or len(name) > 64:
        raise BadRequest(f"{where}: a name has 1 to 64 characters")
    schema = {"name": name, "description": shortened(tool.description or "", MOST_TEXT), "parameters": parameters}
    return McpTool(schema, tool.name, connection, running)


class _Servers:
    """An event loop in a thread, in which connections live."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stop: list[asyncio.Event] = []
        self._tasks: list[asyncio.Future[None]] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="mcp", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def wait(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """Its result. Raises ToolError if the time is over."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except TimeoutError:
            future.cancel()
            raise ToolError(f"no answer within {seconds:g} seconds") from None

    def start(self, server: McpServer) -> _Connection:
        """Raises Unreachable, BadRequest."""
        connection = _Connection(server)
        try:
            self.wait(self._begin(connection), STARTS + 5)
        except ToolError as error:
            raise Unreachable(f"MCP server {server.name}: {error}") from None
        return connection

    async def _begin(self, connection: _Connection) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        stop = asyncio.Event()
        self._stop.append(stop)
        self._tasks.append(asyncio.ensure_future(connection.live(ready, stop)))
        await asyncio.wait_for(ready, STARTS)

    def close(self) -> None:
        """Ends the servers, and whatever does not end in its time."""
        if not self._loop.is_running():
            return

        async def end() -> None:
            for stop in self._stop:
                stop.set()
            await asyncio.wait(self._tasks or [asyncio.ensure_future(asyncio.sleep(0))], timeout=ENDS)

        with contextlib.suppress(ToolError):
            self.wait(end(), ENDS + 1)
        self._loop.call_soon_threadsafe(self._loop.stop)


class _Connection:
    """A server that is spoken to.

    Attributes:
        server: as the file has it.
        tools: as it tells them.
    """

    def __init__(self, server: McpServer) -> None:
        self.server = server
        self.tools: list[Any] = []
        self._client: Any = None

    async def live(self, ready: asyncio.Future[None], stop: asyncio.Event) -> None:
        """From the connection's beginning to its end; `ready` is told of the tools, or of what failed."""
        with tempfile.TemporaryFile("w+", errors="replace") as said:  # the server's stderr
            await self._live(ready, stop, said)

    async def _live(self, ready: asyncio.Future[None], stop: asyncio.Event, said: IO[str]) -> None:
        from mcp.client import Client

        async with contextlib.AsyncExitStack() as stack:
            try:
                transport = await self._transport(stack, said)
                self._client = await stack.enter_async_context(Client(transport, read_timeout_seconds=SECONDS))
                self.tools = await self._list()
            except Exception as error:  # whatever a stranger's server and the library make of it
                if not ready.done():
                    ready.set_exception(ToolError(_first(error, said)))
                return
            if not ready.done():
                ready.set_result(None)
            await stop.wait()

    async def _transport(self, stack: contextlib.AsyncExitStack, said: IO[str]) -> Any:
        server = self.server
        if server.command:
            from mcp.client.stdio import StdioServerParameters, stdio_client

            command, *arguments = server.command
            settings = StdioServerParameters(
                command=command,
                args=arguments,
                env=dict(server.environment),
                cwd=server.folder,
                encoding_error_handler="replace",
            )
            return stdio_client(settings, errlog=said)  # type: ignore[arg-type]
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        client = httpx2.AsyncClient(
            headers=dict(server.headers), trust_env=False, timeout=httpx2.Timeout(30.0, read=SECONDS)
        )
        return streamable_http_client(server.url, http_client=await stack.enter_async_context(client))

    async def _list(self) -> list[Any]:
        found: list[Any] = []
        cursor = None
        for _ in range(MOST_LISTS):
            page = await self._client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if not cursor or len(found) > MOST_TOOLS:
                break
        if len(found) > MOST_TOOLS:
            raise ValueError(f"it has more than {MOST_TOOLS} tools")
        return found

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        """The answer's text. Raises ToolError."""
        from mcp.shared.exceptions import MCPError

        try:
            result = await asyncio.wait_for(self._client.call_tool(name, arguments), SECONDS)
        except TimeoutError:
            raise ToolError(f"no answer within {SECONDS:g} seconds") from None
        except (MCPError, OSError, ValueError, RuntimeError) as error:
            raise ToolError(_line(error)) from None
        except Exception as error:  # of the streams below, when the server has gone
            raise ToolError(f"the server is gone: {_line(error)}") from None
        texts = [str(getattr(part, "text", f"[{part.type}]")) for part in result.content]
        if not texts and result.structured_content is not None:
            texts = [json.dumps(result.structured_content, ensure_ascii=False)]
        text = shortened("\n".join(texts))
        return f"error: {text}" if result.is_error else text


def _first(error: BaseException, said: IO[str]) -> str:
    """What failed, in one line, with the last that the server said."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    said.flush()
    said.seek(0)
    last = said.read()[-2000:].strip().rpartition("\n")[2]
    return f"{_line(error)}; it says: {last[:200]}" if last else _line(error)


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]
