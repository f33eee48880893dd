"""The verb: its line when it is ready, its end, what it refuses."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from oss_tools.cli import serve
from oss_tools.errors import MissingPackage


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "oss_tools", "serve", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_its_address_and_ends_in_order(number: signal.Signals) -> None:
    process = started("tiny", "other=tiny", "--port", "0", "--threads", "1")
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(r"serving tiny, other at (http://127\.0\.0\.1:\d+)\n", line)
        assert found, (line, process.stderr and process.stderr.read() if process.poll() else "")
        models = httpx.get(f"{found[1]}/v1/models", timeout=60).json()["data"]
        assert [model["id"] for model in models] == ["tiny", "other"]
        process.send_signal(number)
        rest, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, rest) == (0, "")
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_said_in_a_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = started("tiny", "--port", str(taken.getsockname()[1]))
        _, said = done.communicate(timeout=120)
    assert done.returncode == 2
    assert said.count("\n") == 1
    assert "cannot listen" in said


def test_other_hosts_need_a_key() -> None:
    done = started("tiny", "--host", "0.0.0.0")
    _, said = done.communicate(timeout=120)
    assert (done.returncode, said.count("\n")) == (2, 1)
    assert "--api-key-file" in said


def test_missing_packages_are_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(MissingPackage, match=r"the server needs uvicorn: pip install '\.\[serve\]' in a clone"):
        serve.require_packages()
