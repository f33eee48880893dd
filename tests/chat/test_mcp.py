"""Tools of MCP servers: real ones, made with the protocol's own package, over stdin and stdout and over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oss_tools.chat.tools.choice import open_tools
from oss_tools.errors import BadRequest, OssToolsError, Unreachable

pytest.importorskip("mcp")

SERVER = '''
import os, sys
from mcp.server.mcpserver import MCPServer

server = MCPServer("shop")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def fail(why: str) -> str:
    """Always fails."""
    raise ValueError(why)


@server.tool(name="odd name!")
def odd() -> str:
    return "x" * 10_000


@server.tool()
def see(name: str) -> str:
    return os.environ.get(name, "nothing")


@server.tool()
def leave() -> str:
    os._exit(3)


print("a line on stderr", file=sys.stderr)
if len(sys.argv) > 1:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
else:
    server.run()
'''


def written(folder: Path, **servers: Any) -> str:
    (folder / "server.py").write_text(SERVER)
    (folder / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
    return str(folder / "mcp.json")


def stdio(folder: Path, **fields: Any) -> dict[str, Any]:
    return {"command": sys.executable, "args": ["-P", str(folder / "server.py")], **fields}


def test_a_server_that_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORD", "heron")
    monkeypatch.setenv("SECRET", "not to be seen")
    tools = open_tools(written(tmp_path, shop=stdio(tmp_path, env={"GIVEN": "${WORD}", "ELSE": "${NO_SUCH:-usual}"})))
    assert list(tools) == ["add", "fail", "odd_name_", "see", "leave"]
    assert tools["add"].schema["description"] == "Adds two numbers."
    assert tools["add"].schema["parameters"]["required"] == ["a", "b"]
    assert tools["add"].call({"a": 2, "b": 3}) == "5"
    assert tools["add"].call({"a": "two"}).startswith("error: ")
    assert tools["fail"].call({"why": "no paper"}).startswith("error: ")
    assert len(tools["odd_name_"].call({})) < 4100
    assert [tools["see"].call({"name": name}) for name in ("GIVEN", "ELSE", "SECRET")] == ["heron", "usual", "nothing"]
    assert tools["leave"].call({}).startswith("error: ")
    assert tools["add"].call({"a": 2, "b": 3}).startswith("error: ")  # it is gone, and says so at once


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "server.py").write_text(SERVER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", str(tmp_path / "server.py"), str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


def test_a_server_at_an_address(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # would lead elsewhere
    tools = open_tools(written(tmp_path, shop={"type": "http", "url": address, "headers": {"X-Key": "k"}}))
    assert tools["add"].call({"a": 20, "b": 3}) == "23"


def test_tools_of_one_name_have_their_servers_before_it(tmp_path: Path) -> None:
    tools = open_tools(
        written(tmp_path, one=stdio(tmp_path), **{"the other": stdio(tmp_path), "third": stdio(tmp_path, disabled=True)})
    )
    assert {"one_add", "the_other_add"} < set(tools)
    assert tools["the_other_add"].call({"a": 1, "b": 1}) == "2"


def test_servers_end_with_the_program(tmp_path: Path) -> None:
    """Also where nobody says so."""
    file = written(tmp_path, shop=stdio(tmp_path))
    (tmp_path / "server.py").write_text(f"import os\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n{SERVER}")
    code = f"from oss_tools.chat.tools.choice import open_tools; print(open_tools({file!r})['add'].call(dict(a=1, b=1)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("2\n", "")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    "entry",
    [
        {}, [], 7, {"command": 7}, {"command": "x", "url": "http://x"}, {"url": "ftp://x"}, {"url": "http://x", "type": "sse"},
        {"command": "x", "args": "y"}, {"command": "x", "args": [1]}, {"command": "x", "env": {"A": 1}},
        {"command": "x", "env": {"A": "${SURELY_NOT_SET}"}}, {"command": "a\nb"}, {"comand": "x"},
        {"command": "x", "type": "http"},
    ],
)  # fmt: skip
def test_an_entry_that_is_wrong_is_refused(entry: Any, tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as refused:
        open_tools(written(tmp_path, shop=entry))
    assert "server shop" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"mcpServers": {}}', '{"servers": {"a": {}}}'])
def test_a_file_without_servers_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "mcp.json").write_text(content)
    with pytest.raises(BadRequest):
        open_tools(str(tmp_path / "mcp.json"))


@pytest.mark.parametrize(
    "entry",
    [
        {"command": "/no/such/program"},
        {"command": sys.executable, "args": ["-c", "raise SystemExit('no licence')"]},
        {"command": sys.executable, "args": ["-c", "print('no JSON at all')"]},
        {"url": "http://127.0.0.1:9/mcp"},
    ],
)
def test_a_server_that_does_not_answer_is_one_line(entry: Any, tmp_path: Path) -> None:
    with pytest.raises(OssToolsError) as refused:
        open_tools(written(tmp_path, shop=entry))
    assert isinstance(refused.value, Unreachable)
    assert str(refused.value).startswith("MCP server shop: ")
    assert "\n" not in str(refused.value)
    if "no licence" in str(entry):
        assert "no licence" in str(refused.value)
