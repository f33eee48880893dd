"""/v1/responses over HTTP: events in the published order, state, and what is never sent on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from replying import answered, called
from serving import Running

from oss_tools.chat.tools.choice import open_tools
from oss_tools.serve.responses.store import ResponseStore
from oss_tools.serve.sealed import seal
from oss_tools.serve.settings import Settings

RESPONSES = "/v1/responses"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Applies a patch."}
THOUGHT = "What is the sky?"


def post(server: Running, given: Any, **more: Any) -> httpx.Response:
    with server.client() as client:
        return client.post(RESPONSES, json={"model": "scripted", "input": given, **more})


def made(server: Running, given: Any, **more: Any) -> Any:
    return post(server, given, **more).raise_for_status().json()


def events_of(server: Running, given: Any, **more: Any) -> list[Any]:
    """Data of the events, whose names and numbers are checked."""
    blocks = [block for block in post(server, given, stream=True, **more).text.split("\n\n") if block.startswith("event:")]
    found = []
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert found[-1]["type"] == name.removeprefix("event: ")
        assert found[-1]["sequence_number"] == number
    return found


def told(server: Running, number: int) -> str:
    """The prompt of a request, in harmony; what the model answered stands behind it."""
    engine = server.models["scripted"].engine
    return engine.text.decode(engine.backend.prompts[number], skip_special=False)  # type: ignore[attr-defined]


def is_valid(events: list[Any]) -> None:
    """Holds events against the models of OpenAI's own package."""
    responses = pytest.importorskip("openai.types.responses")
    from pydantic import TypeAdapter

    adapter = TypeAdapter(responses.ResponseStreamEvent)
    for event in events:
        adapter.validate_python(event)


# ---- an answer ------------------------------------------------------------------------------------------------------


def test_events_come_in_the_published_order(scripted: Callable[..., Running]) -> None:
    events = events_of(scripted(answered("It is blue.", THOUGHT)), "Hi")
    is_valid(events)
    kinds = [event["type"].removeprefix("response.") for event in events]
    once = [kind for i, kind in enumerate(kinds) if not kind.endswith(".delta") or kinds[i - 1] != kind]
    assert once == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done",
        "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done",
        "completed",
    ]  # fmt: skip
    for kind, text in (("reasoning_text", THOUGHT), ("output_text", "It is blue.")):
        assert "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta") == text
        assert [event["text"] for event in events if event["type"] == f"response.{kind}.done"] == [text]


def test_what_is_streamed_is_what_is_sent_at_once(scripted: Callable[..., Running]) -> None:
    server = scripted(answered("It is blue.", THOUGHT))
    whole, last = made(server, "Hi"), events_of(server, "Hi")[-1]["response"]
    for response in (whole, last):
        for item in response["output"]:
            assert len(item.pop("id")) > 40
        for field in ("id", "created_at", "completed_at"):
            response.pop(field)
    assert whole == last
    assert whole["status"] == "completed"
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message"]
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]


def test_open_responses_names_events_its_own_way(scripted: Callable[..., Running]) -> None:
    with scripted(answered("Blue.", THOUGHT)).client() as client:
        asked = {"model": "scripted", "input": "Hi", "stream": True}
        text = client.post("/openresponses/v1/responses", json=asked).raise_for_status().text
    assert "event: response.reasoning.delta\n" in text
    assert "reasoning_text.delta" not in text


def test_calls_show_their_arguments_as_they_come(scripted: Callable[..., Running]) -> None:
    written = '{"city":  "Paris"}'
    events = events_of(scripted(called("get_weather", written)), "Weather?", tools=[WEATHER])
    is_valid(events)
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert len(deltas) > 1
    call = events[-1]["response"]["output"][1]
    assert "".join(deltas) == call["arguments"] == written
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done[1] == call
    assert call["status"] == "completed"


def test_a_custom_tool_gets_its_text(scripted: Callable[..., Running]) -> None:
    server = scripted(called("apply_patch", '{"input": "*** Begin"}'), answered("Done."))
    events = events_of(server, "Patch it.", tools=[PATCH])
    is_valid(events)
    call = events[-1]["response"]["output"][1]
    assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "apply_patch", "*** Begin")
    back = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "applied"}
    made(server, [back], tools=[PATCH], previous_response_id=events[-1]["response"]["id"])
    assert "applied" in told(server, 1)


def test_an_answer_that_runs_out_of_tokens_is_incomplete(scripted: Callable[..., Running]) -> None:
    server = scripted(answered("one two three four five six seven eight nine ten", "Hm"))
    events = events_of(server, "Count.", max_output_tokens=14)
    is_valid(events)
    response = events[-1]["response"]
    assert events[-1]["type"] == "response.incomplete"
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][-1]["status"] == "incomplete"
    assert response["output"][-1]["content"][0]["text"].startswith("one")


BROKEN = {
    "spelt markers": answered("Well assistantfinal The answer is 42."),
    "no such tool": called("get_secret", '{"city": "Paris"}'),
    "broken arguments": called("get_weather", '{"city": Paris}'),
    "no end": "<|channel|>analysis<|message|>I think.<|end|>",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_answer_is_reported_and_not_sent_on(scripted: Callable[..., Running], kind: str) -> None:
    server = scripted(BROKEN[kind] + "<|return|>")
    said = "calls a tool that it was not offered ('functions.get_secret')" if kind == "no such tool" else "malformed"
    events = events_of(server, "?", tools=[WEATHER])
    is_valid(events)
    whole = made(server, "?", tools=[WEATHER])
    for response in (whole, events[-1]["response"]):
        assert response["status"] == "failed"
        assert said in response["error"]["message"]
        assert {item["type"] for item in response["output"]} <= {"reasoning"}
    assert events[-1]["type"] == "response.failed"
    done = [event["item"]["type"] for event in events if event["type"] == "response.output_item.done"]
    assert set(done) <= {"reasoning"}


def test_log_probabilities(scripted: Callable[..., Running]) -> None:
    server = scripted(answered("Blue sky."))
    events = events_of(server, "Hi", include=["message.output_text.logprobs"], top_logprobs=2)
    is_valid(events)
    part = events[-1]["response"]["output"][1]["content"][0]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]
    assert all(
        len(entry["top_logprobs"]) == 2 and bytes(entry["bytes"]).decode() == entry["token"] for entry in part["logprobs"]
    )


# ---- state ----------------------------------------------------------------------------------------------------------


def test_reasoning_is_given_back_with_results_and_dropped_after_an_answer(scripted: Callable[..., Running]) -> None:
    server = scripted(called("get_weather", '{"city": "Paris"}', THOUGHT), answered("Sunny."), answered("You are welcome."))
    first = made(server, "Weather?", tools=[WEATHER], instructions="Be brief.")
    result = {"type": "function_call_output", "call_id": first["output"][1]["call_id"], "output": "sunny, 21 C"}
    second = made(server, [result], tools=[WEATHER], previous_response_id=first["id"])
    third = made(server, "Thanks", previous_response_id=second["id"])
    assert "Be brief." in told(server, 0)
    assert "Be brief." not in told(server, 1)
    assert THOUGHT in told(server, 1)
    assert told(server, 1).index(THOUGHT) < told(server, 1).index("sunny, 21 C")
    assert THOUGHT not in told(server, 2)
    assert "Sunny." in told(server, 2)
    assert second["previous_response_id"] == first["id"]
    assert third["status"] == "completed"


def test_a_client_that_stores_nothing_gives_reasoning_back_sealed(scripted: Callable[..., Running]) -> None:
    server = scripted(called("get_weather", '{"city": "Paris"}', THOUGHT), answered("Sunny."))
    settings = {"tools": [WEATHER], "store": False, "include": ["reasoning.encrypted_content"]}
    first = made(server, "Weather?", **settings)
    reasoning, call = first["output"]
    assert reasoning.pop("content")
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    made(server, [{"role": "user", "content": "Weather?"}, reasoning, call, result], **settings)
    assert THOUGHT in told(server, 1)
    with server.client() as client:
        assert client.get(f"{RESPONSES}/{first['id']}").status_code == 404


def test_results_stand_behind_their_calls_in_the_order_of_the_calls(scripted: Callable[..., Running]) -> None:
    server = scripted(answered("Both."))
    calls = [
        {"type": "function_call", "call_id": f"c{n}", "name": "get_weather", "arguments": json.dumps({"city": city})}
        for n, city in enumerate(("Paris", "Rome"))
    ]
    results = [{"type": "function_call_output", "call_id": f"c{n}", "output": f"result {n}"} for n in (1, 0)]
    made(server, [{"role": "user", "content": "?"}, *calls, *results], tools=[WEATHER])
    prompt = told(server, 0)
    assert prompt.index("Paris") < prompt.index("Rome") < prompt.index("result 0") < prompt.index("result 1")


def test_a_stored_response_is_read_listed_referred_to_and_deleted(scripted: Callable[..., Running]) -> None:
    server = scripted(answered("One."), answered("Two."))
    first = made(server, "Say one.", metadata={"kind": "test"})
    second = made(server, "Say two.", previous_response_id=first["id"])
    with server.client() as client:
        assert client.get(f"{RESPONSES}/{first['id']}").json() == first
        listed = client.get(f"{RESPONSES}/{second['id']}/input_items", params={"order": "asc"}).json()
        assert [item["type"] for item in listed["data"]] == ["message", "reasoning", "message", "message"]
        page = client.get(f"{RESPONSES}/{second['id']}/input_items", params={"limit": 1}).json()
        assert page["data"] == listed["data"][-1:]
        assert page["has_more"]
        after = {"after": page["last_id"], "limit": 3}
        rest = client.get(f"{RESPONSES}/{second['id']}/input_items", params=after).json()
        assert rest["data"] == listed["data"][-2::-1]
        assert not rest["has_more"]
        reference = {"type": "item_reference", "id": first["output"][1]["id"]}
        made(server, [{"role": "user", "content": "Say one."}, reference, {"role": "user", "content": "Again."}])
        assert "One." in told(server, 2)
        assert client.delete(f"{RESPONSES}/{first['id']}").json()["deleted"]
        assert client.get(f"{RESPONSES}/{first['id']}").status_code == 404
    missing = post(server, "?", previous_response_id=first["id"])
    assert missing.status_code == 400
    assert missing.json()["error"]["code"] == "previous_response_not_found"
    assert made(server, "On.", previous_response_id=second["id"])["status"] == "completed"


def test_the_store_forgets_what_was_used_longest_ago() -> None:
    store = ResponseStore(most=2)
    for number in "abc":
        store.put({"id": number, "output": []}, (), None)
        store.get("a")
    assert store.get("b") is None
    assert store.get("a") is not None
    store = ResponseStore(nbytes=1200)
    store.put({"id": "a", "output": [{"id": "x", "text": "y" * 300}]}, (), None)
    store.put({"id": "b", "output": []}, ({"id": "z", "text": "y" * 300},), store.get("a"))
    assert store.item("x") is not None
    assert len(store) == 2
    store.put({"id": "c", "output": [{"id": "w", "text": "y" * 600}]}, (), None)
    assert [store.get(number) is None for number in "abc"] == [True, True, False]
    store.put({"id": "d", "output": [{"id": "v", "text": "y" * 2000}]}, (), None)
    assert store.get("d") is None


def test_truncation_drops_the_oldest_turns(scripted: Callable[..., Running]) -> None:
    server = scripted(answered("Yes."))
    turns: list[dict[str, str]] = [{"role": "system", "content": "Speak plainly."}]
    for number in range(40):
        turns += [{"role": "user", "content": f"turn {number} " + "word " * 100}, {"role": "assistant", "content": "Yes."}]
    turns.append({"role": "user", "content": "last turn"})
    refused = post(server, turns)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert made(server, turns, truncation="auto")["truncation"] == "auto"
    prompt = told(server, 0)
    assert "Speak plainly." in prompt
    assert "last turn" in prompt
    assert "turn 39 " in prompt
    assert "turn 0 " not in prompt


def test_tokens_are_counted_as_they_are_used(scripted: Callable[..., Running]) -> None:
    server = scripted(answered("Yes."))
    asked = {"model": "scripted", "input": "How are you?", "tools": [WEATHER], "instructions": "Be brief."}
    with server.client() as client:
        counted = client.post(f"{RESPONSES}/input_tokens", json=asked).raise_for_status().json()
    assert counted["input_tokens"] == made(server, asked.pop("input"), **asked)["usage"]["input_tokens"]


# ---- what cannot be asked -------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "Hi"}
CALL = {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "x"}
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a picture": (
        [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}],
        {},
        "input[0].content[0]",
    ),
    "a result without its call": ([USER, RESULT], {}, "'c'"),
    "a call without its result": ([USER, CALL, USER], {}, "'c' has no result"),
    "two calls of one id": ([USER, CALL, RESULT, CALL, RESULT], {}, "two calls"),
    "the assistant's turn": ([USER, {"role": "assistant", "content": "Hello"}], {}, "last message"),
    "an unknown item": ([{"type": "computer_call", "id": "x"}], {}, "computer_call"),
    "no item": ([7], {}, "input[0]"),
    "an item that is not stored": ([{"type": "item_reference", "id": "msg_1"}], {}, "msg_1"),
    "another server's reasoning": (
        [{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}, USER],
        {},
        "input[0]",
    ),
    "a tool of another server": ("?", {"tools": [{"type": "computer_use_preview"}]}, "computer_use_preview"),
    "a tool without a name": ("?", {"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    "one name twice": ("?", {"tools": [WEATHER, WEATHER]}, "tools[1]"),
    "a choice of no tool": ("?", {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
    "no tools": ("?", {"tool_choice": "required"}, "tool_choice"),
    "the background": ("?", {"background": True}, "background"),
    "a conversation": ("?", {"conversation": "conv_1"}, "conversation"),
    "too much metadata": ("?", {"metadata": {"k" * 65: "v"}}, "metadata"),
    "a strange effort": ("?", {"reasoning": {"effort": "enormous"}}, "enormous"),
}


@pytest.mark.parametrize(("given", "more", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_asked(scripted: Callable[..., Running], given: Any, more: dict[str, Any], says: str) -> None:
    found = post(scripted(answered("Yes.")), given, **more)
    assert found.status_code == 400
    assert says in found.json()["error"]["message"]
    assert found.json()["error"]["type"] == "invalid_request_error"


def test_a_seal_that_was_changed_is_another_server_s(scripted: Callable[..., Running]) -> None:
    server = scripted(answered("Yes."))
    for sealed in (seal("thought")[:-2] + "!!", "oss-tools.1.////"):
        reasoning = {"type": "reasoning", "summary": [], "encrypted_content": sealed}
        assert post(server, [USER, reasoning, USER]).status_code == 400


def test_only_allowed_tools_are_offered(scripted: Callable[..., Running]) -> None:
    server = scripted(answered("Yes."))
    other = {**WEATHER, "name": "get_time"}
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_time"}]}
    made(server, "?", tools=[WEATHER, other], tool_choice=allowed)
    assert "get_time" in told(server, 0)
    assert "get_weather" not in told(server, 0)


# ---- tools that the server carries out -------------------------------------------------------------------------------


def test_the_server_s_own_tools(scripted: Callable[..., Running]) -> None:
    script = (called("calculator", '{"expression": "6*7"}', THOUGHT), answered("It is 42."), answered("As I said."))
    server = scripted(*script, settings=Settings(port=0, tools=open_tools("calculator")))
    events = events_of(server, "6*7?", tools=[{"type": "calculator"}, WEATHER])
    is_valid(events)
    response = events[-1]["response"]
    assert [item["type"] for item in response["output"]] == ["reasoning", "mcp_call", "reasoning", "message"]
    call = response["output"][1]
    assert (call["name"], json.loads(call["arguments"]), call["output"]) == ("calculator", {"expression": "6*7"}, "42")
    assert response["output"][3]["content"][0]["text"] == "It is 42."
    made(server, [{"role": "user", "content": "6*7?"}, *response["output"], {"role": "user", "content": "Sure?"}])
    assert '{"expression": "6*7"}' in told(server, 2)
    assert post(server, "?", tools=[{"type": "calculator"}, {**WEATHER, "name": "calculator"}]).status_code == 400
