"""Tools that the server carries out itself, for clients that ask for them by type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving import Running

from oss_tools.chat.tools.choice import open_tools
from oss_tools.serve.settings import Settings

CALL = '<|channel|>commentary to=functions.calculator <|constrain|>json<|message|>{"expression": "47 + 38"}<|call|>'
SEARCH = '<|channel|>commentary to=functions.browser.search <|constrain|>json<|message|>{"query": "fever"}<|call|>'
OPEN = '<|channel|>commentary to=functions.browser.open <|constrain|>json<|message|>{"id": 0}<|call|>'
LOOK = "<|channel|>commentary to=functions.look <|constrain|>json<|message|>{}<|call|>"
FINAL = "<|channel|>final<|message|>It is 85.<|return|>"
LOOKED = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}

Scripted = Callable[..., Running]


def settings(tools: str, rounds: int = 8) -> Settings:
    return Settings(port=0, tools=open_tools(tools), rounds=rounds)


def post(server: Running, *kinds: str, **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": "?"}], "tools": [{"type": kind} for kind in kinds], **fields}
    with server.client() as client:
        return client.post("/v1/chat/completions", json=body)


def prompts(server: Running) -> list[str]:
    engine = server.models["scripted"].engine
    return [engine.text.decode(tokens, skip_special=False) for tokens in engine.backend.prompts]  # type: ignore[attr-defined]


def test_a_call_is_carried_out_and_the_answer_comes(scripted: Scripted) -> None:
    server = scripted(CALL, FINAL, settings=settings("calculator"))
    answer = post(server, "calculator").json()
    assert answer["choices"][0]["message"]["content"] == "It is 85."
    assert "tool_calls" not in answer["choices"][0]["message"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert "<|message|>85<|end|>" in prompts(server)[-1]
    assert answer["usage"]["completion_tokens"] > 10  # of both turns


def test_the_same_as_a_stream(scripted: Scripted) -> None:
    server = scripted(CALL, FINAL, settings=settings("calculator"))
    text = post(server, "calculator", stream=True).text
    assert '"content": "It' in text or '"content":"It' in text
    assert "expression" not in text
    assert text.rstrip().endswith("data: [DONE]")


def test_the_client_s_own_calls_go_to_the_client(scripted: Scripted) -> None:
    server = scripted(CALL, LOOK, settings=settings("calculator"))
    body = {"messages": [{"role": "user", "content": "?"}], "tools": [{"type": "calculator"}, LOOKED]}
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=body).json()
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "look"


def test_tools_are_told_and_carried_out_only_where_they_are_asked_for(scripted: Scripted) -> None:
    server = scripted(CALL, FINAL, settings=settings("calculator"))
    answer = post(server)
    assert answer.status_code == 502  # the model calls what it was not offered
    assert "calculator" not in prompts(server)[0].split("<|start|>assistant")[0]
    refused = post(server, "python")
    assert refused.status_code == 400
    assert "calculator" in refused.json()["error"]["message"]


def test_rounds_end(scripted: Scripted) -> None:
    server = scripted(CALL, settings=settings("calculator", rounds=3))
    answer = post(server, "calculator")
    assert answer.status_code == 502
    assert "3 rounds" in answer.json()["error"]["message"]


def test_each_request_has_a_browser_of_its_own(scripted: Scripted, tmp_path: Path) -> None:
    (tmp_path / "fever.txt").write_text("Fever is treated so.")
    server = scripted(SEARCH, OPEN, FINAL, OPEN, FINAL, settings=settings(f"browser:{tmp_path}"))
    assert post(server, "web_search").status_code == 200
    first = prompts(server)[2]
    assert "【0†fever.txt】" in first
    assert "[1] fever.txt (file:///fever.txt)" in first
    assert post(server, "browser").status_code == 200
    assert "No pages to access!" in prompts(server)[-1]
