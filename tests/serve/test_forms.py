"""Answers of a form over HTTP: JSON schemas, expressions, calls that must come; what cannot be kept is refused at once."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from serving import Running

SUM = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}, "sure": {"type": "boolean"}},
    "required": ["sum", "sure"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "What is 47 + 38?"}]
CALCULATOR = {
    "name": "calculator",
    "description": "Evaluates an arithmetic expression",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string", "pattern": r"^\d{1,3} [+*] \d{1,3}$"}},
        "required": ["expression"],
        "additionalProperties": False,
    },
}


def completed(server: Running, **fields: Any) -> dict[str, Any]:
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json={"messages": QUESTION, "temperature": 0, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["choices"][0]
    return found


def test_a_schema_of_chat_completions(server: Running) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "sum", "strict": True, "schema": SUM}}
    choice = completed(server, response_format=form)
    jsonschema.validate(json.loads(choice["message"]["content"]), SUM)
    assert json.loads(choice["message"]["content"])["sum"] == 85
    assert "85" in choice["message"]["reasoning"]  # which was free


def test_a_stream_is_of_the_form_too(server: Running) -> None:
    body = {
        "messages": QUESTION,
        "temperature": 1.5,
        "seed": 3,
        "stream": True,
        "response_format": {"type": "json_schema", "json_schema": {"schema": SUM}},
    }
    with server.client() as client:
        lines = client.post("/v1/chat/completions", json=body).text.splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    jsonschema.validate(json.loads(text), SUM)


def test_an_object_and_an_expression(server: Running) -> None:
    choice = completed(server, response_format={"type": "regex", "pattern": r"\d+ apples"})
    assert choice["message"]["content"] == "85 apples"
    choice = completed(server, response_format={"type": "json_object"}, max_tokens=400)
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_a_schema_of_responses(server: Running) -> None:
    body = {
        "input": "What is 47 + 38?",
        "temperature": 0,
        "text": {"format": {"type": "json_schema", "name": "sum", "schema": SUM, "strict": True}},
    }
    with server.client() as client:
        answer = client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    (message,) = [item for item in answer.json()["output"] if item["type"] == "message"]
    jsonschema.validate(json.loads(message["content"][0]["text"]), SUM)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "calculator"}}])
def test_a_call_that_must_come(server: Running, choice: Any) -> None:
    tools = [{"type": "function", "function": CALCULATOR}]
    for seed in range(3):
        found = completed(server, tools=tools, tool_choice=choice, temperature=1.0, seed=seed)
        (call,) = found["message"]["tool_calls"]
        jsonschema.validate(json.loads(call["function"]["arguments"]), CALCULATOR["parameters"])
        assert found["finish_reason"] == "tool_calls"


def test_a_strict_tool_is_called_by_its_schema(server: Running) -> None:
    tools = [{"type": "function", "function": {**CALCULATOR, "strict": True}}]
    found = completed(server, tools=tools, seed=1)
    for call in found["message"].get("tool_calls", []):
        jsonschema.validate(json.loads(call["function"]["arguments"]), CALCULATOR["parameters"])


@pytest.mark.parametrize(
    "form",
    [
        {"type": "xml"}, "json", {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": {"type": "odd"}}},
        {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1/schema"}}},
        {"type": "json_schema", "json_schema": {"schema": {"type": "integer", "multipleOf": 999_983}}},
        {"type": "regex", "pattern": "("}, {"type": "regex"},
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_kept_is_refused(server: Running, form: Any) -> None:
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json={"messages": QUESTION, "response_format": form})
    assert answer.status_code in (400, 422)
    assert "\n" not in answer.json()["error"]["message"]


def test_a_strict_schema_that_cannot_be_kept_is_refused(server: Running) -> None:
    odd = {**CALCULATOR, "strict": True, "parameters": {"type": "object", "properties": {"a": {"not": {"type": "null"}}}}}
    with server.client() as client:
        answer = client.post(
            "/v1/chat/completions", json={"messages": QUESTION, "tools": [{"type": "function", "function": odd}]}
        )
    assert answer.status_code == 400
    assert '"not"' in answer.json()["error"]["message"]
