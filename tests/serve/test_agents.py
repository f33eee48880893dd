"""The Agents SDK against the server: a loop with two tools, over Responses and over chat completions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from replying import answered, called, replying_engine
from serving import running

agents = pytest.importorskip("agents")
openai = pytest.importorskip("openai")
pytestmark = pytest.mark.peers


def reply(prompt: str) -> str:
    """A model that looks the city up, then its weather, then answers."""
    if "21 degrees" in prompt:
        return answered("It is 21 degrees in Lyon.", "The tools have said all.")
    if "<|start|>functions.find_city" in prompt:
        return called("get_weather", '{"city": "Lyon"}', "Now the weather of Lyon.")
    return called("find_city", '{"user": "Ada"}', "First the city.")


@agents.function_tool
def find_city(user: str) -> str:
    """The city where a user lives."""
    return {"Ada": "Lyon"}[user]


@agents.function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return {"Lyon": "21 degrees"}[city]


@pytest.mark.parametrize("model", ["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
@pytest.mark.parametrize("streams", [False, True])
def test_a_loop_with_two_tools(model: str, streams: bool) -> None:
    agents.set_tracing_disabled(True)
    with running({"scripted": replying_engine(reply)}) as server:

        async def converse() -> Any:
            async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
                chosen = getattr(agents, model)("scripted", client)
                agent = agents.Agent(name="Guide", instructions="Help.", tools=[find_city, get_weather], model=chosen)
                if not streams:
                    return await agents.Runner.run(agent, "How is the weather where Ada lives?")
                result = agents.Runner.run_streamed(agent, "How is the weather where Ada lives?")
                async for _ in result.stream_events():
                    pass
                return result

        result = asyncio.run(converse())
        engine = server.models["scripted"].engine
        prompts = [engine.text.decode(prompt, skip_special=False) for prompt in engine.backend.prompts]
    assert result.final_output == "It is 21 degrees in Lyon."
    assert len(prompts) == 3
    if model == "OpenAIResponsesModel":  # chat completions have no place for it in this SDK
        assert prompts[2].index("First the city.") < prompts[2].index("Now the weather of Lyon.")
