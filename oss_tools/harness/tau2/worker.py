"""A tau2 domain in a process of its own, run by the Python that has tau2 installed; nothing of oss_tools is imported here.

A request a line (JSON) comes on stdin, its reply a line goes to stdout: {"ok": …} or {"error": …}. Databases, tools, prompts
and grading are tau2's; no model is asked.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

MEMORY = 8 << 30  # bytes of address space


class Domain:
    """Environments of one domain by number."""

    def __init__(self, name: str) -> None:
        from tau2.registry import registry

        self.make = registry.get_env_constructor(name)
        self.worlds: dict[int, Any] = {}
        self.tasks: dict[int, Any] = {}

    def open(self, number: int, task: Any) -> dict[str, Any]:
        """Prompts and tools of a task, whose environment is made in its first state."""
        from tau2.agent.llm_agent import LLMAgent
        from tau2.data_model.tasks import Task
        from tau2.user.user_simulator import UserSimulator

        task = Task.model_validate(task)
        world, start = self.make(), task.initial_state
        world.set_state(
            initialization_data=start.initialization_data if start else None,
            initialization_actions=start.initialization_actions if start else None,
            message_history=[],
        )
        self.worlds[number], self.tasks[number] = world, task
        tools, theirs = world.get_tools(), None
        if world.user_tools is not None:
            theirs = world.get_user_tools(include=getattr(task, "user_tools", None)) or None
        return {
            "agent": LLMAgent(tools=tools, domain_policy=world.get_policy(), llm="none").system_prompt,
            "user": UserSimulator(llm="none", instructions=str(task.user_scenario), tools=theirs).system_prompt,
            "tools": [tool.openai_schema for tool in tools],
            "user_tools": [tool.openai_schema for tool in theirs or ()],
        }

    def call(self, number: int, call: dict[str, Any]) -> Any:
        """The message with a call's result."""
        from tau2.data_model.message import ToolCall

        return self.worlds[number].get_response(ToolCall.model_validate(call)).model_dump(mode="json")

    def grade(self, number: int, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Every part of the reward that needs no judge, by tau2's own evaluators, and which parts the task counts."""
        from tau2.data_model.message import AssistantMessage, ToolMessage, UserMessage
        from tau2.evaluator.evaluator_action import ActionEvaluator
        from tau2.evaluator.evaluator_communicate import CommunicateEvaluator
        from tau2.evaluator.evaluator_env import EnvironmentEvaluator

        kinds = {"assistant": AssistantMessage, "user": UserMessage, "tool": ToolMessage}
        said = [kinds[message["role"]].model_validate(message) for message in messages]
        task = self.tasks[number]
        state = EnvironmentEvaluator.calculate_reward(environment_constructor=self.make, task=task, full_trajectory=said)
        criteria = task.evaluation_criteria
        return {
            "basis": sorted(kind.value for kind in criteria.reward_basis) if criteria else [],
            "state": state.reward,
            "told": CommunicateEvaluator.calculate_reward(task=task, full_trajectory=said).reward,
            "acted": ActionEvaluator.calculate_reward(task=task, full_trajectory=said).reward,
        }

    def close(self, number: int) -> None:
        self.worlds.pop(number, None)
        self.tasks.pop(number, None)


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what tau2 prints is no reply
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, ValueError, OSError) as error:
        print(f"memory is not limited: {error}", file=sys.stderr)
    domain: Domain | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if domain is None:
                domain = Domain(sys.argv[1])
            reply = {"ok": getattr(domain, request.pop("do"))(**request)}
        except Exception as error:  # of tau2, whatever it is
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
