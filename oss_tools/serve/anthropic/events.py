"""A model's answer as the content blocks and the events of a message (https://docs.anthropic.com/en/docs/build-with-claude/streaming).

Calls of tools are sent when the whole answer is known to be sound, so that nobody acts on one that is not.
"""

from __future__ import annotations

from typing import Any

from oss_tools.chat.completion import ToolCall
from oss_tools.engine.scheduled_requests import Finished
from oss_tools.escapes import json_text
from oss_tools.serve.answering import Ended, Piece
from oss_tools.serve.responses.items import new_id
from oss_tools.serve.sealed import seal

Event = dict[str, Any]
STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}


class MessageEvents:
    """What comes of an answer.

    Attributes:
        message: as far as it is known.
    """

    def __init__(
        self,
        model: str,
        prompt_tokens: int,
        stops: tuple[str, ...] = (),
        *,
        shows_thinking: bool = True,
        omits: bool = False,
    ) -> None:
        """
        Args:
            model, prompt_tokens: what the message begins with.
            stops: texts at which the answer ends.
            shows_thinking: whether reasoning is given.
            omits: whether it is given sealed only.
        """
        self.message: dict[str, Any] = {
            "id": new_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(Finished("", prompt_tokens, 0, 0, 0.0, 0.0), 0),
        }
        self._shows, self._omits = shows_thinking, omits
        self._thinking_tokens = 0
        self._key: tuple[Any, ...] | None = None
        self._texts: list[str] = []

    def begin(self) -> list[Event]:
        """The first event."""
        return [{"type": "message_start", "message": {**self.message, "content": []}}]

    def take(self, event: Piece | Ended) -> list[Event]:
        """The events that follow from the next event of an answer, which must not be a broken one."""
        return self._ended(event) if isinstance(event, Ended) else self._piece(event)

    def _piece(self, piece: Piece) -> list[Event]:
        delta = piece.delta
        if delta.recipient or delta.channel not in ("analysis", "commentary", "final"):
            return []
        thinks = delta.channel == "analysis"
        self._thinking_tokens += len(piece.tokens) if thinks else 0
        if thinks and not self._shows:
            return []
        key = (delta.channel, delta.message if delta.channel != "final" else None)
        events: list[Event] = []
        if key != self._key:
            empty = {"type": "thinking", "thinking": "", "signature": ""} if thinks else {"type": "text", "text": ""}
            events = [*self._leave(), self._start(empty)]
            self._key = key
        self._texts.append(delta.text)
        if not thinks:
            events.append(self._delta({"type": "text_delta", "text": delta.text}))
        elif not self._omits:
            events.append(self._delta({"type": "thinking_delta", "thinking": delta.text}))
        return events

    def _ended(self, ended: Ended) -> list[Event]:
        events = self._leave()
        for call in ended.calls:
            events += self._call(call)
        self.message |= {
            "stop_reason": "stop_sequence" if ended.stopped_by else STOP_REASONS[ended.finish],
            "stop_sequence": ended.stopped_by,
            "usage": _usage(ended.usage, self._thinking_tokens),
        }
        how = {"stop_reason": self.message["stop_reason"], "stop_sequence": self.message["stop_sequence"]}
        return [*events, {"type": "message_delta", "delta": how, "usage": self.message["usage"]}, {"type": "message_stop"}]

    # ---- blocks -------------------------------------------------------------------------------------------------------

    def _start(self, block: dict[str, Any]) -> Event:
        self.message["content"].append(dict(block))
        return {"type": "content_block_start", "index": len(self.message["content"]) - 1, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": len(self.message["content"]) - 1, "delta": delta}

    def _leave(self) -> list[Event]:
        """The last events of the block that is being written."""
        if self._key is None:
            return []
        block, text = self.message["content"][-1], "".join(self._texts)
        self._key, self._texts = None, []
        if block["type"] == "text":
            block["text"] = text
            return [self._stop()]
        block |= {"thinking": "" if self._omits else text, "signature": seal(text)}
        return [self._delta({"type": "signature_delta", "signature": block["signature"]}), self._stop()]

    def _call(self, call: ToolCall) -> list[Event]:
        start = self._start({"type": "tool_use", "id": new_id("toolu"), "name": call.name, "input": {}})
        self.message["content"][-1]["input"] = dict(call.arguments)
        return [start, self._delta({"type": "input_json_delta", "partial_json": json_text(call.arguments)}), self._stop()]

    def _stop(self) -> Event:
        return {"type": "content_block_stop", "index": len(self.message["content"]) - 1}


def _usage(finished: Finished, thinking: int) -> dict[str, Any]:
    """Tokens. What the prefix cache had does not count as input, as Anthropic counts."""
    return {
        "input_tokens": finished.prompt_tokens - finished.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": finished.cached_tokens,
        "output_tokens": finished.tokens,
        "output_tokens_details": {"thinking_tokens": thinking},
    }
