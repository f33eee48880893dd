"""What an OpenAI-compatible server answers, in our terms: a message with reasoning and calls, or the log-probabilities of a text.

Fields are those of https://platform.openai.com/docs/api-reference/chat and …/completions; reasoning stands under
`reasoning_content` (vLLM, llama.cpp, DeepSeek) or `reasoning` (newer vLLM, OpenRouter).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oss_tools.download.failures import Transient
from oss_tools.endpoints.client import text_of, tokens_of

NO_COMPLETION = "an answer that is no chat completion"
LARGEST_TEXT = 4 << 20  # positions of an echoed text
MOST_CALLS = 1024


@dataclass(frozen=True)
class ChatReply:
    """One answer.

    Attributes:
        text: the message's content; reasoning: what stands beside it.
        calls: (function, arguments as the server sent them).
        finish: stop, length, tool_calls, content_filter, …
        prompt_tokens, tokens: as the server counts them; 0 where it does not.
    """

    text: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    finish: str
    prompt_tokens: int
    tokens: int


def read_chat(answer: Any) -> ChatReply:
    """A chat completion. Raises Transient for what is none."""
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        calls = tuple(_call(call) for call in (message.get("tool_calls") or [])[:MOST_CALLS])
        finish = choice.get("finish_reason")
        content = message.get("content")
        usage = answer.get("usage")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Transient(NO_COMPLETION) from None
    counts = tokens_of(usage, "prompt_tokens"), tokens_of(usage, "completion_tokens")
    return ChatReply(text_of(content), text_of(reasoning), calls, finish if isinstance(finish, str) else "stop", *counts)


def read_text(answer: Any) -> ChatReply:
    """A completion of a plain text. Raises Transient for what is none."""
    try:
        choice = answer["choices"][0]
        text, finish, usage = choice["text"], choice.get("finish_reason"), answer.get("usage")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Transient("an answer that is no completion") from None
    counts = tokens_of(usage, "prompt_tokens"), tokens_of(usage, "completion_tokens")
    return ChatReply(text_of(text), "", (), finish if isinstance(finish, str) else "stop", *counts)


def _call(call: Any) -> tuple[str, str]:
    function = call["function"]
    name, arguments = function["name"], function.get("arguments") or ""
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise TypeError
    return name, arguments


@dataclass(frozen=True)
class Echo:
    """The log-probabilities of a text's tokens from a character on.

    Attributes:
        logprob: their sum, natural; greedy: whether each was the likeliest; tokens: how many.
    """

    logprob: float
    greedy: bool
    tokens: int


class Unscored(Exception):
    """The server gives no log-probabilities of a prompt."""


def read_echo(answer: Any, begin: int, end: int) -> Echo:
    """Of a completion with `echo` and `logprobs`: the tokens that begin at characters begin … end − 1 of the prompt. The first
    token of all has nothing before it and no log-probability.

    Raises Transient for what is no completion, Unscored for one without log-probabilities.
    """
    try:
        choice = answer["choices"][0]
        found = choice.get("logprobs")
        rows = choice.get("prompt_logprobs")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Transient("an answer that is no completion") from None
    if isinstance(rows, list):
        return _of_rows(rows[:LARGEST_TEXT], begin, end)
    if not isinstance(found, Mapping):
        raise Unscored
    offsets, logprobs, tops = (found.get(name) for name in ("text_offset", "token_logprobs", "top_logprobs"))
    if not isinstance(offsets, list) or not isinstance(logprobs, list) or len(offsets) != len(logprobs):
        raise Unscored
    if len(offsets) > LARGEST_TEXT or not all(type(offset) is int for offset in offsets):
        raise Transient("log-probabilities that are none")
    chosen = [i for i, offset in enumerate(offsets) if begin <= offset < end and logprobs[i] is not None]
    if not chosen:
        raise Unscored
    return Echo(
        math.fsum(_number(logprobs[i]) for i in chosen),
        all(_is_likeliest(tops, logprobs, i) for i in chosen),
        len(chosen),
    )


def _of_rows(rows: Sequence[Any], begin: int, end: int) -> Echo:
    """vLLM's `prompt_logprobs`: a mapping for each token but the first, {number: {logprob, rank, decoded_token}}."""
    at, chosen = 0, []
    for row in rows:
        entry = next(iter(row.values()), None) if isinstance(row, Mapping) else None
        if entry is not None and not (isinstance(entry, Mapping) and isinstance(entry.get("decoded_token"), str)):
            raise Unscored
        if entry is not None and begin <= at < end:
            chosen.append((_number(entry.get("logprob")), entry.get("rank") == 1))
        at += len(entry["decoded_token"]) if entry is not None else 0
    if not chosen:
        raise Unscored
    return Echo(math.fsum(value for value, _ in chosen), all(likeliest for _, likeliest in chosen), len(chosen))


@dataclass(frozen=True)
class Likeliest:
    """The likeliest first tokens of an answer, as texts, and their natural log-probabilities."""

    logprobs: Mapping[str, float]

    def of(self, text: str) -> float | None:
        """Of the answer that begins with this text, whose tokens may have blanks around it; None if it is not among them."""
        values = [value for token, value in self.logprobs.items() if token.strip() == text.strip()]
        return math.log(math.fsum(map(math.exp, values))) if values else None


def read_likeliest(answer: Any) -> Likeliest:
    """Of a chat completion with `logprobs` and `top_logprobs`. Raises Transient for what is none, Unscored for one without."""
    try:
        choice = answer["choices"][0]
        found = choice.get("logprobs")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Transient(NO_COMPLETION) from None
    content = found.get("content") if isinstance(found, Mapping) else None
    rows = (
        content[0].get("top_logprobs") if isinstance(content, list) and content and isinstance(content[0], Mapping) else None
    )
    if not isinstance(rows, list) or not rows or len(rows) > MOST_CALLS:
        raise Unscored
    if not all(isinstance(row, Mapping) and isinstance(row.get("token"), str) for row in rows):
        raise Unscored
    return Likeliest({row["token"]: _number(row.get("logprob")) for row in rows})


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not value <= 0.001:
        raise Transient("log-probabilities that are none")
    return float(value)


def _is_likeliest(tops: Any, logprobs: Sequence[Any], i: int) -> bool:
    """Whether token i was the likeliest: none of those named beside it is likelier."""
    top = tops[i] if isinstance(tops, list) and i < len(tops) else None
    if not isinstance(top, Mapping) or not top:
        return False
    best = max((value for value in top.values() if type(value) in (int, float)), default=math.inf)
    return bool(logprobs[i] >= best - 1e-9)
