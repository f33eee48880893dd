"""A model whose answer is a function of its prompt: for clients that ask several things at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scripted_engine import ScriptedBackend, scripted_engine

from oss_tools.engine.engine import Engine


class ReplyingBackend(ScriptedBackend):
    """Answers each prompt with what `reply` makes of its text."""

    def __init__(self, engine: Engine, reply: Callable[[str], str]) -> None:
        super().__init__([], engine.backend.vocabulary)
        self._text, self._reply = engine.text, reply
        self._replies: dict[int, list[int]] = {}

    def logits(self, rows: np.ndarray) -> np.ndarray:
        found = np.full((len(rows), self.vocabulary), -100.0, np.float32)
        for logits, row in zip(found, rows, strict=True):
            said = self._owners[row]
            if said.answer not in self._replies:
                prompt = self._text.decode(self.prompts[said.answer], skip_special=False)
                self._replies[said.answer] = self._text.encode(self._reply(prompt), special=False)
            answer = self._replies[said.answer]
            logits[answer[min(said.given, len(answer) - 1)]] = 0
            said.given += 1
        return found


def replying_engine(reply: Callable[[str], str]) -> Engine:
    """An engine with the embedded model's tokenizer and template: a prompt's text in harmony to an answer in harmony."""
    engine = scripted_engine("")
    engine.backend = ReplyingBackend(engine, reply)
    return engine


def called(name: str, arguments: str, thought: str = "I need the tool.") -> str:
    """An answer in harmony that thinks and calls a function."""
    return (
        f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant"
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"
    )


def answered(text: str, thought: str = "Now I know.") -> str:
    """An answer in harmony that thinks and says something."""
    return f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>{text}<|return|>"
