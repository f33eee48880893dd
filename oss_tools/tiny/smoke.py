"""Writes the questions of the smoke tests, evals/*/smoke.jsonl: `python -m oss_tools.tiny.smoke`.

They are drawn from the held-out share of the embedded model's questions, equally from every kind. The same code writes the same
bytes on every machine.
"""

from __future__ import annotations

import importlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from oss_tools.chat.messages import Message
from oss_tools.checkpoints.files import replace_file
from oss_tools.resources import resource
from oss_tools.tiny.items import Item, Split

SUITES = ("math", "health", "tool_use")
COUNT = 200  # questions of each suite
SHOTS = 8  # worked examples of each, from what was trained on
DRAWN = 5000  # questions among which kinds are balanced
SEED = 20240229


def documents(suite: str, split: Split = "test", count: int = COUNT) -> list[dict[str, Any]]:
    """The suite's questions as lm-eval documents, no two with the same key."""
    items = importlib.import_module(f"oss_tools.tiny.{suite}").items
    drawn = {item.key: item for item in islice(items(random.Random(f"{suite} {split} {SEED}"), split), DRAWN)}
    kinds: dict[str, list[Item]] = defaultdict(list)
    for item in drawn.values():
        kinds[item.kind].append(item)
    return [document(item) for item in islice(_in_turn([kinds[kind] for kind in sorted(kinds)]), count)]


def _in_turn(groups: list[list[Item]]) -> Iterator[Item]:
    """One of each group, then the next of each, until all are empty."""
    for i in range(max(map(len, groups))):
        yield from (group[i] for group in groups if i < len(group))


def document(item: Item) -> dict[str, Any]:
    """What the model is asked, without the worked answer and without an effort, which the run decides."""
    messages = list(item.conversation.messages)
    while messages[-1].role == "assistant":
        messages.pop()
    conversation: dict[str, Any] = {}
    if len(messages) > 1:
        conversation["messages"] = [_fields(message) for message in messages]
    if item.conversation.tools:
        conversation["tools"] = list(item.conversation.tools)
    question = next(message.content for message in reversed(messages) if message.role == "user")
    doc = {"key": item.key, "kind": item.kind, "question": question, "answer": item.answer}
    return (
        doc
        | ({"call": item.call} if item.suite == "tool_use" else {})
        | ({"conversation": conversation} if conversation else {})
    )


def _fields(message: Message) -> dict[str, str]:
    return {name: value for name, value in asdict(message).items() if value is not None}


def files() -> dict[str, str]:
    """Content by path under evals/."""
    found = {f"{suite}/smoke.jsonl": _lines(documents(suite)) for suite in SUITES}
    return found | {f"{suite}/smoke_shots.jsonl": _lines(documents(suite, "train", SHOTS)) for suite in ("math", "health")}


def _lines(docs: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in docs)


def write(folder: Path) -> list[Path]:
    """Writes the files under `folder`."""
    paths = []
    for name, content in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
        paths.append(path)
    return paths


if __name__ == "__main__":
    for path in write(resource("evals")):
        print(path)
