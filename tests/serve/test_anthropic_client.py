"""Anthropic's own client against the server: messages, streams, tools, thinking, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from replying import answered, called
from serving import Running

from oss_tools.serve.settings import Settings

anthropic = pytest.importorskip("anthropic")
pytestmark = pytest.mark.peers

WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASK = [{"role": "user", "content": "Weather?"}]


def client_of(server: Running, key: str = "none") -> Any:
    return anthropic.Anthropic(base_url=server.address, api_key=key, max_retries=0)


def told(server: Running, number: int) -> str:
    engine = server.models["scripted"].engine
    return engine.text.decode(engine.backend.prompts[number], skip_special=False)  # type: ignore[attr-defined]


def test_messages(server: Running) -> None:
    client = client_of(server)
    asked = {"model": "tiny", "max_tokens": 500, "messages": [{"role": "user", "content": "What is 47 + 38?"}]}
    asked["extra_body"] = {"temperature": 0}
    whole = client.messages.create(**asked)
    assert whole.stop_reason == "end_turn"
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert "85" in whole.content[1].text
    with client.messages.stream(**asked) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(texts) == whole.content[1].text
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    counted = client.messages.count_tokens(model="tiny", messages=asked["messages"])
    for message in (whole, final):
        assert counted.input_tokens == message.usage.input_tokens + message.usage.cache_read_input_tokens
        assert message.usage.output_tokens == whole.usage.output_tokens


def test_the_events_are_those_that_are_published(scripted: Callable[..., Running]) -> None:
    client = client_of(scripted(called("get_weather", '{"city": "Paris"}', "Look it up.")))
    events = list(client.messages.create(model="scripted", max_tokens=99, messages=ASK, tools=[WEATHER], stream=True))
    kinds = [event.type for event in events]
    once = [kind for i, kind in enumerate(kinds) if kind != "content_block_delta" or kinds[i - 1] != kind]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert once == ["message_start", *block, *block, "message_delta", "message_stop"]
    assert [event.index for event in events if event.type == "content_block_start"] == [0, 1]
    assert events[0].message.usage.input_tokens > 0
    assert events[-2].delta.stop_reason == "tool_use"
    assert events[-2].usage.output_tokens > 0


def test_tools_and_thinking_come_back(scripted: Callable[..., Running]) -> None:
    server = scripted(called("get_weather", '{"city": "Paris"}', "Look it up."), answered("Sunny."))
    client = client_of(server)
    with client.messages.stream(
        model="scripted", max_tokens=99, messages=ASK, tools=[WEATHER], system="Be brief."
    ) as stream:
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny, 21 C"}]}
    messages = [*ASK, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = client.messages.create(model="scripted", max_tokens=99, messages=messages, tools=[WEATHER])
    assert second.content[-1].text == "Sunny."
    assert "Be brief." in told(server, 0)
    prompt = told(server, 1)
    assert prompt.index("Look it up.") < prompt.index('{"city": "Paris"}') < prompt.index("sunny, 21 C")


def test_thinking_may_be_omitted_and_still_comes_back(scripted: Callable[..., Running]) -> None:
    server = scripted(called("get_weather", '{"city": "Paris"}', "Look it up."), answered("Sunny."))
    client = client_of(server)
    settings = {
        "model": "scripted",
        "max_tokens": 99,
        "tools": [WEATHER],
        "thinking": {"type": "adaptive", "display": "omitted"},
    }
    first = client.messages.create(messages=ASK, **settings)
    assert first.content[0].thinking == ""
    result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": "down", "is_error": True}
    said = [*ASK, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    client.messages.create(messages=said, **settings)
    assert "Look it up." in told(server, 1)
    assert "Error: down" in told(server, 1)


def test_thinking_may_be_switched_off(scripted: Callable[..., Running]) -> None:
    server = scripted(answered("Sunny."))
    found = client_of(server).messages.create(model="scripted", max_tokens=99, messages=ASK, thinking={"type": "disabled"})
    assert [block.type for block in found.content] == ["text"]
    assert "Reasoning: low" in told(server, 0)


def test_how_an_answer_ends(scripted: Callable[..., Running]) -> None:
    client = client_of(scripted(answered("one two three four five", "Hm")))
    stopped = client.messages.create(model="scripted", max_tokens=99, messages=ASK, stop_sequences=["four", "three"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "three")
    assert stopped.content[-1].text == "one two "
    cut = client.messages.create(model="scripted", max_tokens=14, messages=ASK)
    assert cut.stop_reason == "max_tokens"


def test_errors_have_anthropic_s_shape(scripted: Callable[..., Running]) -> None:
    server = scripted(answered("Well assistantfinal 42."), settings=Settings(port=0, api_key="key"))
    with pytest.raises(anthropic.AuthenticationError):
        client_of(server).messages.create(model="scripted", max_tokens=9, messages=ASK)
    client = client_of(server, "key")
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude", max_tokens=9, messages=ASK)
    picture = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.create(model="scripted", max_tokens=9, messages=[{"role": "user", "content": [picture]}])
    said = [*ASK, {"role": "assistant", "content": "The best answer is ("}]
    with pytest.raises(anthropic.BadRequestError, match="last message"):
        client.messages.create(model="scripted", max_tokens=9, messages=said)
    search = {"type": "web_search_20250305", "name": "web_search"}
    with pytest.raises(anthropic.BadRequestError, match="web_search"):
        client.messages.create(model="scripted", max_tokens=9, messages=ASK, tools=[search])
    with pytest.raises(anthropic.InternalServerError, match="malformed"):
        client.messages.create(model="scripted", max_tokens=99, messages=ASK)
    with pytest.raises(anthropic.APIStatusError, match="malformed"):
        list(client.messages.create(model="scripted", max_tokens=99, messages=ASK, stream=True))


def test_calls_without_results_are_refused(scripted: Callable[..., Running]) -> None:
    client = client_of(scripted(answered("Yes.")))
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
    said = [*ASK, {"role": "assistant", "content": [call]}, {"role": "user", "content": "And?"}]
    with pytest.raises(anthropic.BadRequestError, match="toolu_1"):
        client.messages.create(model="scripted", max_tokens=9, messages=said, tools=[WEATHER])
