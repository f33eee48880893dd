"""A model's answer as the items and the events of a response, in the order that is published
(https://platform.openai.com/docs/api-reference/responses-streaming).

Reasoning and what is said on the way to an answer are done when they end; an answer and calls only when the whole is known to be
sound, so that nobody acts on what is not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oss_tools.chat.completion import Delta, ToolCall
from oss_tools.chat.harmony import NAMESPACE
from oss_tools.chat.sections import PYTHON
from oss_tools.engine.requests import Token
from oss_tools.escapes import json_text
from oss_tools.serve.answering import Ended, Piece, Ran
from oss_tools.serve.responses.items import INPUT, PREFIXES, SERVER, Item, new_id
from oss_tools.serve.sealed import seal

Event = dict[str, Any]
LogProbs = Callable[[Sequence[Token]], list[dict[str, Any]]]


@dataclass
class _Open:
    """An item that is being written."""

    item: Item
    index: int
    key: tuple[Any, ...] = ()
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def place(self) -> dict[str, Any]:
        return {"item_id": self.item["id"], "output_index": self.index}


class ResponseEvents:
    """What comes of an answer.

    Attributes:
        response: the response as far as it is known.
        reasoning_tokens: those of the reasoning so far.
    """

    def __init__(
        self,
        response: dict[str, Any],
        functions: Collection[str] = (),
        custom: Collection[str] = (),
        *,
        logprobs: LogProbs | None = None,
        sealed: bool = False,
    ) -> None:
        """
        Args:
            response: its head: everything but output, status, times, error and usage.
            functions: the names of the tools that the client carries out.
            custom: those of them that take a text as it is.
            logprobs: describes tokens, if they are asked for.
            sealed: whether reasoning is to be given in `encrypted_content` too.
        """
        self.response = {**response, "status": "in_progress", "output": [], "error": None, "incomplete_details": None}
        self.response |= {"completed_at": None, "usage": None}
        self.reasoning_tokens = 0
        self._functions, self._custom = frozenset(functions), frozenset(custom)
        self._logprobs, self._sealed = logprobs, sealed
        self._number = 0
        self._index = 0
        self._current: _Open | None = None
        self._waiting: list[_Open] = []  # answers and calls that are complete if the whole is
        self._done: list[_Open] = []

    # ---- events in ----------------------------------------------------------------------------------------------------

    def begin(self) -> list[Event]:
        """The first events."""
        return [self._of_response("response.created"), self._of_response("response.in_progress")]

    def take(self, event: Piece | Ended) -> list[Event]:
        """The events that follow from the next event of an answer."""
        if isinstance(event, Ended):
            return self._ended(event)
        return self._ran(event) if isinstance(event, Ran) else self._piece(event)

    def fail(self, message: str, code: str = "server_error") -> list[Event]:
        """The events of an answer that comes to nothing: what has been said of an answer, and calls, are no part of it."""
        events = self._leave("incomplete")
        self._finish("failed")
        self.response["error"] = {"code": code, "message": message}
        return [*events, self._of_response("response.failed")]

    def _piece(self, piece: Piece) -> list[Event]:
        kind = self._kind(piece.delta)
        if piece.delta.channel == "analysis" and not piece.delta.recipient:
            self.reasoning_tokens += len(piece.tokens)
        if kind is None:
            return []
        number = None if piece.delta.channel == "final" else piece.delta.message
        key = (kind, piece.delta.channel, piece.delta.recipient, number)
        events: list[Event] = []
        if self._current is None or self._current.key != key:
            events = [*self._leave(), *self._open(kind, piece.delta, key)]
        assert self._current
        return [*events, self._add(self._current, piece)]

    def _ran(self, ran: Ran) -> list[Event]:
        """A call that the server carried out, with what it gave, as the item of a remote tool's call."""
        events = self._leave()
        arguments = json_text(ran.call.arguments)
        item: Item = {"type": "mcp_call", "id": new_id("mcp"), "server_label": SERVER, "name": ran.call.name}
        item |= {"arguments": "", "output": None, "error": None, "approval_request_id": None, "status": "in_progress"}
        open_ = _Open(item, self._take_index())
        events.append(self._event("response.output_item.added", output_index=open_.index, item=dict(item)))
        events.append(self._event("response.mcp_call.in_progress", **open_.place))
        events.append(self._event("response.mcp_call_arguments.delta", **open_.place, delta=arguments))
        events.append(self._event("response.mcp_call_arguments.done", **open_.place, arguments=arguments))
        item |= {"arguments": arguments, "output": ran.delta.text, "status": "completed"}
        events.append(self._event("response.mcp_call.completed", **open_.place))
        return [*events, self._item_done(open_)]

    def _kind(self, delta: Delta) -> str | None:
        """The type of the item that a text belongs to; None for what is seen at the end only, or never."""
        name = (delta.recipient or "").removeprefix(NAMESPACE)
        if delta.recipient:
            streams = delta.recipient == NAMESPACE + name and name in self._functions - self._custom and name != PYTHON
            return "function_call" if streams else None
        if delta.channel == "analysis":
            return "reasoning"
        return "message" if delta.channel in ("final", "commentary") else None

    def _ended(self, ended: Ended) -> list[Event]:
        if ended.broken:
            self._usage(ended)
            return self.fail("; ".join(finding.sentence for finding in ended.broken))
        cut = ended.finish == "length"
        events = self._leave("incomplete" if cut else "completed")
        if not cut and not ended.calls and not self._waiting:  # an answer without a word
            events += self._open("message", Delta("", "final"), ())
            self._leave()
        calls = [open_ for open_ in self._waiting if open_.item["type"] == "function_call"]
        for open_ in self._waiting:
            if open_.item["type"] == "message":
                events += self._close(open_, "incomplete" if cut and open_ is self._waiting[-1] else "completed")
        for call in ended.calls:
            if calls and calls[0].item["name"] == call.name:
                events += self._close_call(calls.pop(0), call)
            else:
                events += self._whole_call(call)
        self._usage(ended)
        if cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        self._finish("incomplete" if cut else "completed")
        return [*events, self._of_response(f"response.{self.response['status']}")]

    def _usage(self, ended: Ended) -> None:
        usage = ended.usage
        self.response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.tokens,
        }

    def _finish(self, status: str) -> None:
        done = sorted(self._done, key=lambda open_: open_.index)
        self.response |= {"status": status, "output": [open_.item for open_ in done], "completed_at": int(time.time())}
        if status != "completed":
            self.response["completed_at"] = None

    # ---- items --------------------------------------------------------------------------------------------------------

    def _open(self, kind: str, delta: Delta, key: tuple[Any, ...]) -> list[Event]:
        item: Item = {"type": kind, "id": new_id(PREFIXES[kind]), "status": "in_progress"}
        if kind == "message":
            phase = "final_answer" if delta.channel == "final" else "commentary"
            item |= {"role": "assistant", "content": [], "phase": phase}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        else:
            name = str(delta.recipient).removeprefix(NAMESPACE)
            item |= {"call_id": new_id("call"), "name": name, "arguments": ""}
        self._current = _Open(item, self._take_index(), key)
        events = [self._event("response.output_item.added", output_index=self._current.index, item=dict(item))]
        if kind != "function_call":
            part = self._part(self._current, "")
            events.append(self._event("response.content_part.added", **self._current.place, content_index=0, part=part))
        return events

    def _take_index(self) -> int:
        self._index += 1
        return self._index - 1

    def _add(self, open_: _Open, piece: Piece) -> Event:
        open_.texts.append(piece.delta.text)
        place, delta = open_.place, piece.delta.text
        if open_.item["type"] == "function_call":
            return self._event("response.function_call_arguments.delta", **place, delta=delta)
        if open_.item["type"] == "reasoning":
            return self._event("response.reasoning_text.delta", **place, content_index=0, delta=delta)
        logprobs = self._logprobs(piece.tokens) if self._logprobs else []
        open_.logprobs += logprobs
        return self._event("response.output_text.delta", **place, content_index=0, delta=delta, logprobs=logprobs)

    def _leave(self, status: str = "completed") -> list[Event]:
        """Leaves the current item: done, or waiting for the end."""
        open_, self._current = self._current, None
        if open_ is None:
            return []
        if open_.item["type"] == "reasoning" or open_.item.get("phase") == "commentary":
            return self._close(open_, status)
        self._waiting.append(open_)
        return []

    def _part(self, open_: _Open, text: str) -> dict[str, Any]:
        if open_.item["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": open_.logprobs if text else []}

    def _close(self, open_: _Open, status: str) -> list[Event]:
        """The last events of a text."""
        text, place = open_.text, {**open_.place, "content_index": 0}
        if open_.item["type"] == "reasoning":
            done = self._event("response.reasoning_text.done", **place, text=text)
            if self._sealed:
                open_.item["encrypted_content"] = seal(text)
        else:
            done = self._event("response.output_text.done", **place, text=text, logprobs=open_.logprobs)
        part = self._part(open_, text)
        open_.item |= {"content": [part], "status": status}
        return [done, self._event("response.content_part.done", **place, part=part), self._item_done(open_)]

    def _close_call(self, open_: _Open, call: ToolCall) -> list[Event]:
        """The last events of a call whose arguments were shown as they came."""
        open_.item |= {"arguments": _as_written(open_.text, call.arguments), "status": "completed"}
        done = self._event("response.function_call_arguments.done", **open_.place, arguments=open_.item["arguments"])
        return [done, self._item_done(open_)]

    def _whole_call(self, call: ToolCall) -> list[Event]:
        """All events of a call at once."""
        if call.name in self._custom:
            return self._whole_custom_call(call)
        events = self._open("function_call", Delta("", None, NAMESPACE + call.name), ())
        open_, self._current = self._current, None
        assert open_
        open_.texts.append(json_text(call.arguments))
        events.append(self._event("response.function_call_arguments.delta", **open_.place, delta=open_.text))
        return events + self._close_call(open_, call)

    def _whole_custom_call(self, call: ToolCall) -> list[Event]:
        item: Item = {
            "type": "custom_tool_call",
            "id": new_id("ctc"),
            "call_id": new_id("call"),
            "name": call.name,
            "input": "",
        }
        open_ = _Open(item, self._take_index())
        events = [self._event("response.output_item.added", output_index=open_.index, item=dict(item))]
        item["input"] = str(call.arguments.get(INPUT, ""))
        events.append(self._event("response.custom_tool_call_input.delta", **open_.place, delta=item["input"]))
        events.append(self._event("response.custom_tool_call_input.done", **open_.place, input=item["input"]))
        return [*events, self._item_done(open_)]

    def _item_done(self, open_: _Open) -> Event:
        self._done.append(open_)
        return self._event("response.output_item.done", output_index=open_.index, item=dict(open_.item))

    # ---- events out ---------------------------------------------------------------------------------------------------

    def _of_response(self, kind: str) -> Event:
        return self._event(kind, response=dict(self.response))

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}


def _as_written(text: str, arguments: Mapping[str, Any]) -> str:
    """The JSON text of arguments as the model wrote it, if it is that; else as we write it."""
    try:
        same = json.loads(text) == arguments
    except (ValueError, RecursionError):
        same = False
    return text if same else json_text(arguments)
