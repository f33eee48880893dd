"""What clients do wrong costs them their request, and nobody else anything."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
from serving import Running

from oss_tools.serve.protocol import Events, event_text
from oss_tools.serve.settings import Settings

CHAT = "/v1/chat/completions"
ENDLESS = "<|channel|>final<|message|>" + "and so on " * 300 + "<|return|>"
SHORT = "<|channel|>final<|message|>Yes.<|return|>"


def ask(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Tell me."}], **more}


def until(what: Callable[[], bool]) -> None:
    """Waits for what has to come."""
    ends = time.monotonic() + 60
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"messages": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 5000, b'{"messages": []}',
     b'{"messages": "hello"}', b'{"messages": [{"role": "king", "content": "x"}]}', b'{"messages": [{"role": "user"}], "n": 0}',
     b'{"messages": [{"role": "user", "content": "x"}], "temperature": "warm"}',
     b'{"messages": [{"role": "user", "content": 5}]}',
     b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}',
     b'{"messages": [{"role": "tool", "content": "5", "tool_call_id": "none"}]}',
     b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {"name": "a b"}}]}',
     b'{"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"}',
     b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', b'{"seed": 1e400}'],
)  # fmt: skip
def test_malformed_bodies_are_told_apart(server: Running, body: bytes) -> None:
    with server.client() as client:
        found = client.post(CHAT, content=body)
    assert found.status_code == 400
    error = found.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 400


def test_bodies_are_bounded(scripted: Callable[..., Running]) -> None:
    server = scripted(SHORT, settings=Settings(port=0, max_body=10_000, body_seconds=0.3))

    def chunks() -> Any:
        while True:
            yield b" " * 1000

    with server.client() as client:
        assert client.post(CHAT, content=b" " * 10_001).status_code == 413
        with suppress(httpx.TransportError):  # it may be cut off while it still sends
            assert client.post(CHAT, content=chunks()).status_code == 413
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:  # promises more than it sends
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        slow.settimeout(60)
        assert b"408" in slow.recv(100)
    with server.client() as client:
        assert client.post(CHAT, json=ask()).status_code == 200


def test_who_goes_is_cancelled(scripted: Callable[..., Running]) -> None:
    server = scripted(ENDLESS)
    scheduler = server.models["scripted"].scheduler
    for stream in (True, False):
        before = scheduler.stats.finished["cancelled"]
        hold = threading.Event()
        scheduler.run(lambda engine, hold=hold: hold.wait(60))
        with server.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=ask(stream=stream), timeout=0.3)
        until(lambda before=before: scheduler.stats.waiting == 0 and scheduler.stats.finished["cancelled"] == before + 1)
        hold.set()
    until(lambda: scheduler.stats.running == 0)
    assert scheduler.stats.generated_tokens == 0


def test_who_goes_in_the_middle_is_cancelled(server: Running) -> None:
    scheduler = server.models["tiny"].scheduler
    before = scheduler.stats.finished["cancelled"]
    with server.client() as client:
        asked = {"prompt": "a", "stream": True, "max_tokens": 6000, "temperature": 1.5, "logprobs": 20}
        with client.stream("POST", "/v1/completions", json=asked) as answer:
            next(answer.iter_lines())
    until(lambda: scheduler.stats.running == 0)
    assert scheduler.stats.finished["cancelled"] == before + 1


def test_a_full_queue_says_when_to_come_again(scripted: Callable[..., Running]) -> None:
    server = scripted(SHORT, settings=Settings(port=0, parallel=1, queue=1))
    scheduler = server.models["scripted"].scheduler
    hold = threading.Event()
    scheduler.run(lambda engine: hold.wait(60))
    answers: list[httpx.Response] = []

    def post() -> None:
        with server.client() as client:
            answers.append(client.post(CHAT, json=ask()))

    thread = threading.Thread(target=post)
    thread.start()
    until(lambda: scheduler.stats.waiting == 1)
    with server.client() as client:
        refused = client.post(CHAT, json=ask(stream=True))
    hold.set()
    thread.join(60)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert answers[0].json()["choices"][0]["message"]["content"] == "Yes."


@pytest.mark.parametrize("goes", [True, False])
def test_who_does_not_take_an_answer_is_let_go(goes: bool) -> None:
    """Whether the connection ends, or stands and nobody reads: then for as long as the settings say."""
    closed = []

    async def events() -> AsyncIterator[str]:
        try:
            while True:
                yield event_text("more")
        finally:
            closed.append(True)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # the socket's buffers are full

    async def receive() -> Any:
        if not goes:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    settings = Settings(send_seconds=3600 if goes else 0.01)
    answer = Events(events(), settings, lambda error: event_text(error.message))
    asyncio.run(asyncio.wait_for(answer({"type": "http"}, receive, send), 60))
    assert closed or goes  # an iterator that was never asked has nothing to close


def test_unknown_addresses_and_methods(server: Running) -> None:
    with server.client() as client:
        assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
        assert client.get(CHAT).status_code == 405
        assert client.get("/v1/models/none").json()["error"]["code"] == "model_not_found"
        assert client.post("/v1/messages/none").json()["type"] == "error"


def test_the_figures_are_prometheus_text(server: Running) -> None:
    with server.client() as client:
        client.post(CHAT, json=ask(max_tokens=3))
        lines = client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values['oss_tools_generated_tokens_total{model="tiny"}']) >= 3
    assert float(values["oss_tools_resident_memory_bytes"]) > 1e6
    for line in lines:
        if line.startswith("# TYPE"):
            assert any(name.startswith(line.split()[2]) for name in values) or line.split()[2].endswith("requests_total")
