"""OpenAI's own client against the server: chat, responses, streams, tools, structured output."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from pydantic import BaseModel
from replying import answered, called
from serving import Running

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.peers


class Weather(BaseModel):
    """The weather of a city."""

    city: str
    degrees: int


def client_of(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def test_chat(server: Running) -> None:
    client = client_of(server)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "What is 47 + 38?"}], "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert "85" in whole.choices[0].message.content
    with client.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == whole.choices[0].message.content


def test_responses(server: Running) -> None:
    client = client_of(server)
    first = client.responses.create(model="tiny", input="What is 47 + 38?", temperature=0)
    assert first.status == "completed"
    assert "85" in first.output_text
    with client.responses.stream(model="tiny", input="What is 47 + 38?", temperature=0) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(texts) == final.output_text == first.output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    listed = client.responses.input_items.list(first.id)
    assert listed.data[0].content[0].text == "What is 47 + 38?"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="not there"):
        client.responses.create(model="tiny", input="And now?", previous_response_id=first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="other", input="?")


def test_tools_of_chat(scripted: Callable[..., Running]) -> None:
    client = client_of(scripted(called("Weather", '{"city": "Paris", "degrees": 21}'), answered("Sunny.")))
    messages = [{"role": "user", "content": "Weather?"}]
    tools = [openai.pydantic_function_tool(Weather)]
    first = client.chat.completions.parse(model="scripted", messages=messages, tools=tools)
    call = first.choices[0].message.tool_calls[0]
    assert call.function.parsed_arguments == Weather(city="Paris", degrees=21)
    messages += [first.choices[0].message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "noted"}]
    assert (
        client.chat.completions.create(model="scripted", messages=messages, tools=tools).choices[0].message.content
        == "Sunny."
    )


def test_tools_of_responses(scripted: Callable[..., Running]) -> None:
    client = client_of(scripted(called("get_weather", '{"city": "Paris"}'), answered("Sunny.")))
    tool = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}, "strict": False}
    with client.responses.stream(model="scripted", input="Weather?", tools=[tool]) as stream:
        kinds = [event.type for event in stream]
        first = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    call = first.output[-1]
    assert json.loads(call.arguments) == {"city": "Paris"}
    given = [{"role": "user", "content": "Weather?"}, *[item.to_dict() for item in first.output]]
    given.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    assert client.responses.create(model="scripted", input=given, tools=[tool]).output_text == "Sunny."


def test_structured_output(scripted: Callable[..., Running]) -> None:
    client = client_of(scripted(answered('{"city": "Paris", "degrees": 21}')))
    found = client.responses.parse(model="scripted", input="Weather?", text_format=Weather)
    assert found.output_parsed == Weather(city="Paris", degrees=21)
    chat = client.chat.completions.parse(
        model="scripted", messages=[{"role": "user", "content": "Weather?"}], response_format=Weather
    )
    assert chat.choices[0].message.parsed == Weather(city="Paris", degrees=21)


def test_a_broken_answer_fails(scripted: Callable[..., Running]) -> None:
    client = client_of(scripted(answered("Well assistantfinal 42.")))
    found = client.responses.create(model="scripted", input="?")
    assert (found.status, found.output_text) == ("failed", "")
    with client.responses.stream(model="scripted", input="?") as stream:
        kinds = [event.type for event in stream]
    assert kinds[-1] == "response.failed"
    with pytest.raises(openai.InternalServerError, match="malformed"):
        client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "?"}])
