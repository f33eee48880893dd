"""Both sides of tau2's conversations, as a server plays them: a model that makes a task's reference calls, and a user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.endpoints.chat_server import call, completion

MODEL, USER = "served-model", "played-user"


def players(
    tasks: list[dict[str, Any]], agent: Callable[[dict[str, Any], int], Any]
) -> Callable[[str, dict[str, Any]], Any]:
    """What a server answers.

    Args:
        agent: of a task and what the model said before, what it says next: a text, or a list of (name, arguments).
    """
    lines = [_lines(task) for task in tasks]

    def answer(path: str, body: dict[str, Any]) -> Mapping[str, Any]:
        messages = body["messages"]
        mine = [message for message in messages if message["role"] == "assistant"]
        if body["model"] == USER:
            told = messages[0]["content"]
            fitting = [(sum(map(len, known)), n) for n, known in enumerate(lines) if all(line in told for line in known)]
            task = tasks[max(fitting)[1]]
            said = _user(task, mine)
        else:
            first = next(message for message in messages if message["role"] == "user")["content"]
            known = [task for task in tasks if f"I am {task['id']}." == first]
            said = agent(known[0], mine[1:]) if known else "Hello."  # behind the greeting
        if isinstance(said, str):
            return completion(said)
        return completion(None, "tool_calls", tool_calls=[call(name, arguments) for name, arguments in said])

    return answer


def reference(task: dict[str, Any], mine: list[dict[str, Any]]) -> Any:
    """A model that makes the calls of the reference in their order, lets the user make others, and says what is to be said."""
    rounds = _rounds(task)
    at = sum(not message.get("tool_calls") for message in mine)
    made = len(mine) - at - sum(len(calls) for calls, _ in rounds[:at])
    if at < len(rounds) and made < len(rounds[at][0]):
        return [rounds[at][0][made]]
    return "Done. " + "; ".join(task["evaluation_criteria"].get("communicate_info") or ["All is well."])


def _user(task: dict[str, Any], mine: list[dict[str, Any]]) -> Any:
    """Says who it is; makes the calls that are the user's; ends when all is done."""
    rounds = _rounds(task)
    at = sum(not message.get("tool_calls") for message in mine) - 1
    if at < 0:
        return f"I am {task['id']}."
    made = len(mine) - at - 1 - sum(len(calls) for _, calls in rounds[:at])
    if made < len(rounds[at][1]):
        return [rounds[at][1][made]]
    return "I have done so." if at + 1 < len(rounds) else "Thank you. ###STOP###"


def _rounds(task: dict[str, Any]) -> list[tuple[list[Any], list[Any]]]:
    """The reference's calls, of the model and then of the user, in turns."""
    rounds: list[tuple[list[Any], list[Any]]] = [([], [])]
    for action in task["evaluation_criteria"].get("actions") or []:
        mine = action.get("requestor", "assistant") == "assistant"
        if mine and rounds[-1][1]:
            rounds.append(([], []))
        rounds[-1][0 if mine else 1].append((action["name"], action["arguments"]))
    return rounds


def _lines(task: dict[str, Any]) -> list[str]:
    """What a task's user is told, line by line, as prompts have it somewhere."""
    told = task["user_scenario"]["instructions"]
    texts = [told] if isinstance(told, str) else [text for name, text in told.items() if name != "domain" and text]
    return [line.strip() for text in texts for line in text.splitlines()]
