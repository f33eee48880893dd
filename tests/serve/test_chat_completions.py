"""/v1/chat/completions over HTTP: the same answer as `generate`, at once and as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
from serving import Running

from oss_tools.chat.chat_template import chat_template
from oss_tools.chat.messages import Conversation, Message
from oss_tools.engine.requests import Request
from oss_tools.engine.sampling import Sampling

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluates an expression.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
CHAT = "/v1/chat/completions"


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "temperature": 0, **more}


def events(response: httpx.Response) -> list[Any]:
    """The data of server-sent events."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_the_answer_is_that_of_generate(server: Running) -> None:
    with server.client() as client:
        found = client.post(CHAT, json=ask("What is 47 + 38?", seed=3, temperature=0.7)).raise_for_status().json()
    served = server.models["tiny"]
    template = chat_template(served.engine.metadata, served.engine.text)
    conversation = Conversation((Message("user", "What is 47 + 38?"),))
    request = Request(template.encode(conversation), 500, Sampling(temperature=0.7, seed=3))
    tokens = served.scheduler.run(lambda engine: [token.id for token in engine.generate(request)]).result()
    completion = template.parse(tokens, conversation)
    message = found["choices"][0]["message"]
    assert message["content"] == completion.shown
    assert message["reasoning"] == message["reasoning_content"] == completion.analysis
    assert found["usage"]["completion_tokens"] == len(tokens)
    assert found["usage"]["prompt_tokens"] == len(request.tokens)


def test_pieces_make_up_the_answer(server: Running) -> None:
    with server.client() as client:
        whole = client.post(CHAT, json=ask("What is 12 * 3?")).json()
        streamed = events(
            client.post(CHAT, json=ask("What is 12 * 3?", stream=True, stream_options={"include_usage": True}))
        )
    *chunks, usage, done = streamed
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    message = whole["choices"][0]["message"]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == message["reasoning"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"


def test_calls_are_sent_whole(scripted: Callable[..., Running]) -> None:
    says = '<|channel|>commentary to=functions.calculator <|constrain|>json<|message|>{"expression": "6*7"}<|call|>'
    server = scripted(says)
    with server.client() as client:
        asked = ask("6*7?", tools=[CALCULATOR]) | {"model": "scripted"}
        choice = client.post(CHAT, json=asked).raise_for_status().json()["choices"][0]
        chunks = events(client.post(CHAT, json=asked | {"stream": True}))
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]
    assert call["function"]["name"] == "calculator"
    assert json.loads(call["function"]["arguments"]) == {"expression": "6*7"}
    streamed = [c["choices"][0]["delta"]["tool_calls"][0] for c in chunks[:-1] if "tool_calls" in c["choices"][0]["delta"]]
    assert [json.loads(c["function"]["arguments"]) for c in streamed] == [{"expression": "6*7"}]
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_broken_answers_are_reported(scripted: Callable[..., Running]) -> None:
    server = scripted("assistantfinal The answer is 42.<|return|>")
    with server.client() as client:
        found = client.post(CHAT, json=ask("?") | {"model": "scripted"})
        chunks = events(client.post(CHAT, json=ask("?", stream=True) | {"model": "scripted"}))
    assert found.status_code == 502
    assert "42" not in json.dumps(found.json().get("choices", ""))
    assert found.json()["error"]["code"] == "malformed_answer"
    assert "[DONE]" not in chunks
    assert chunks[-1]["error"]["code"] == "malformed_answer"


def test_a_stop_string_ends_the_answer_alone(scripted: Callable[..., Running]) -> None:
    server = scripted(
        "<|channel|>analysis<|message|>So END it.<|end|><|start|>assistant<|channel|>final<|message|>One. END Two.<|return|>"
    )
    with server.client() as client:
        asked = ask("?", stop="END") | {"model": "scripted"}
        choice = client.post(CHAT, json=asked).json()["choices"][0]
        chunks = events(client.post(CHAT, json=asked | {"stream": True}))
    assert choice["message"]["content"] == "One. "
    assert choice["message"]["reasoning"] == "So END it."
    assert choice["finish_reason"] == "stop"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]) == "One. "


def test_tokens_that_run_out_are_no_fault(scripted: Callable[..., Running]) -> None:
    server = scripted("<|channel|>final<|message|>One two three four.<|return|>")
    with server.client() as client:
        found = client.post(CHAT, json=ask("?", max_completion_tokens=9) | {"model": "scripted"}).raise_for_status().json()
    assert found["choices"][0]["finish_reason"] == "length"
    assert "One two three four.".startswith(found["choices"][0]["message"]["content"])
    assert found["usage"]["completion_tokens"] == 9


def test_logprobs_are_of_the_answer_s_tokens(server: Running) -> None:
    with server.client() as client:
        asked = ask("What is 12 * 3?", logprobs=True, top_logprobs=3)
        choice = client.post(CHAT, json=asked).raise_for_status().json()["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    for token in tokens:
        assert bytes(token["bytes"]).decode() == token["token"]
        assert len(token["top_logprobs"]) == 3
        assert token["top_logprobs"][0]["logprob"] >= token["logprob"]


def test_choices_have_seeds_of_their_own(server: Running) -> None:
    with server.client() as client:
        asked = ask("What is 30 + 4?", temperature=1.0)
        several = client.post(CHAT, json={**asked, "seed": 11, "n": 2}).raise_for_status().json()["choices"]
        single = [client.post(CHAT, json={**asked, "seed": seed}).json()["choices"][0] for seed in (11, 12)]
    assert [choice["message"] for choice in several] == [choice["message"] for choice in single]
    assert [choice["index"] for choice in several] == [0, 1]


def test_calls_and_their_results_are_given_back(scripted: Callable[..., Running]) -> None:
    server = scripted("<|channel|>final<|message|>42.<|return|>")
    call = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "6*7"}'}}
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "6*7?"}]},
        {"role": "assistant", "content": None, "reasoning": "I calculate.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    with server.client() as client:
        found = client.post(CHAT, json={"messages": messages, "tools": [CALCULATOR], "temperature": 0}).raise_for_status()
    assert found.json()["choices"][0]["message"]["content"] == "42."
    served = server.models["scripted"]
    prompt = served.engine.text.decode(served.engine.backend.prompts[0], skip_special=False)  # type: ignore[attr-defined]
    for part in (
        "Be short.",
        "6*7?",
        "I calculate.",
        "to=functions.calculator",
        '{"expression": "6*7"}',
        "functions.calculator",
    ):
        assert part in prompt
    assert prompt.index("I calculate.") < prompt.index('{"expression"') < prompt.rindex("42")


def test_the_second_time_the_prompt_is_cached(server: Running) -> None:
    with server.client() as client:
        usages = [client.post(CHAT, json=ask("What is 61 + 7?", max_tokens=2)).json()["usage"] for _ in range(2)]
    assert usages[1]["prompt_tokens_details"]["cached_tokens"] == usages[1]["prompt_tokens"] - 1
