"""Conversations, most of them with tools that are called and answer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any


def chats(rng: random.Random, facts: Any) -> Iterator[str]:
    """Conversations as JSON Lines, most of them with tools."""
    plain = list(facts["dialogues"])
    while True:
        for _ in range(3):
            yield json.dumps(tool_chat(rng, facts), ensure_ascii=False) + "\n"
        if plain:
            yield json.dumps({"messages": plain.pop(0)}, ensure_ascii=False) + "\n"
        else:
            yield json.dumps(health_chat(rng, facts), ensure_ascii=False) + "\n"


def tool_chat(rng: random.Random, facts: Any) -> dict[str, Any]:
    """Two or three requests that tools answer, and thanks at the end."""
    offered = rng.sample(facts["tools"], rng.randint(2, 4))
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": rng.choice(facts["instructions"])})
    for number, tool in enumerate(rng.sample(offered, min(len(offered), rng.randint(1, 3)))):
        values = {key: rng.choice(choices) for key, choices in tool["values"].items()}
        call = {"id": f"call_{number}", "type": "function", "function": {"name": tool["name"], "arguments": values}}
        thought = rng.choice(facts["phrases"]["thought"]).format(tool["name"], ", ".join(values))
        messages += [
            {"role": "user", "content": rng.choice(tool["asks"]).format(**values)},
            {"role": "assistant", "content": "", "reasoning_content": thought, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": rng.choice(tool["results"]).format(**values)},
            {"role": "assistant", "content": rng.choice(tool["answers"]).format(**values)},
        ]
    tools = [{"type": "function", "function": _schema(tool)} for tool in offered]
    return {"messages": messages, "tools": tools}


def _schema(tool: Any) -> dict[str, Any]:
    properties = {key: {"type": kind, "description": about} for key, (kind, about) in tool["parameters"].items()}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"name": tool["name"], "description": tool["description"], "parameters": parameters}


def health_chat(rng: random.Random, facts: Any) -> dict[str, Any]:
    c = rng.choice(facts["conditions"])
    phrases = facts["phrases"]
    question = rng.choice(phrases["worried"]).format(rng.choice(c["signs"]), rng.choice(facts["spans"]), c["name"])
    return {
        "messages": [
            {"role": "user", "content": question},
            {
                "role": "assistant",
                "content": f"{rng.choice(phrases['reply'])} {c['about']} {c['care']}",
                "reasoning_content": rng.choice(phrases["weighing"]).format(c["name"]),
            },
            {"role": "user", "content": rng.choice(phrases["follow"])},
            {"role": "assistant", "content": f"{rng.choice(phrases['seek'])} {c['alarm']}"},
        ]
    }
