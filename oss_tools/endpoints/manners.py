"""What a server does with what it is asked: a few small requests before a run, so that unlike things are not taken for alike."""

from __future__ import annotations

from typing import Any

from oss_tools.endpoints.client import Client
from oss_tools.endpoints.replies import ChatReply, read_chat

WORDS = "Write four random words."
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up_the_weather_of_a_city",
        "description": "Looks up temperature, wind and rain of a city at an hour of a day.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "hour": {"type": "integer"}}},
    },
}


def remarks(client: Client, *, sampled: bool, tools: bool) -> list[str]:
    """What the user should know about this server.

    sampled: whether answers will be drawn with seeds; tools: whether functions will be offered. Raises BadSource, Unreachable.
    """
    said = []
    plain = _ask(client, {"temperature": 0.0})
    if not plain.prompt_tokens:
        said.append("it counts no tokens: rates and cost are not known")
    if tools and plain.prompt_tokens:
        offered = _ask(client, {"temperature": 0.0, "tools": [TOOL]})
        if offered.prompt_tokens <= plain.prompt_tokens + 8:
            said.append("tools that are offered do not make its prompt longer: the model is not told of them")
    if sampled:
        first, second = (_ask(client, {"temperature": 1.0, "seed": 1}) for _ in range(2))
        if (first.text, first.reasoning) != (second.text, second.reasoning):
            said.append("it ignores `seed`: the same request is answered differently, so a run cannot be repeated")
    return said


def _ask(client: Client, more: dict[str, Any]) -> ChatReply:
    body = {"model": client.endpoint.model, "messages": [{"role": "user", "content": WORDS}], "max_tokens": 24, **more}
    return client.post(body, read_chat)
