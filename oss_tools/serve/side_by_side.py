"""Two quantizations of one model answer one conversation from one seed; then each reads the other's answer.

At every token of an answer both models' distributions of the next token are held against each other: how far they are apart is
the divergence of the model that answered from the other one, KL(own ‖ other), in nats, over the whole vocabulary and without
any sampling rule.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request, Token
from oss_tools.engine.requests import Sequence as Live
from oss_tools.engine.scheduled_requests import Finished
from oss_tools.engine.text import Text
from oss_tools.errors import BadRequest
from oss_tools.machine.description import machine, versions
from oss_tools.measure.fidelity import common_rows, measure_rows
from oss_tools.report.side_by_side import KIND, SCHEMA, parted
from oss_tools.serve.answering import Asked, Stream
from oss_tools.serve.served import Served

MOST_TOKENS = 4096  # of an answer
STEP = 64  # positions that are scored between two passes of other requests
LIKELIEST = 3  # tokens that are named at every position

Pair = tuple[Served, Served]
Event = tuple[str, dict[str, Any]]


@dataclass
class Answer:
    """What one of the models said."""

    served: Served
    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    channels: list[str | None] = field(default_factory=list)
    finished: Finished | None = None
    scores: dict[str, list[Any]] = field(default_factory=dict)

    def sums(self) -> dict[str, float]:
        kld = np.array(self.scores["kld"])
        same = float(np.mean(self.scores["same_top"]))
        return {"kld_sum": float(kld.sum()), "kld_mean": float(kld.mean()), "kld_max": float(kld.max()), "same_top": same}


async def side_by_side(pair: Pair, asked: Asked, messages: Sequence[dict[str, Any]]) -> AsyncGenerator[Event, None]:
    """Events: `token` of either model as it comes, `answer` at the end of each, `divergence` of some tokens, `sums` of each, and
    last `case`, the record of all. The first model's chat template writes the prompt for both. Closing the iterator cancels.

    Args:
        asked: with a seed; of the rest, the conversation, the sampling and the most tokens are heeded.
        messages: the conversation as the client sent it, for the record.

    Raises BadRequest if the two have other tokenizers, or the logits of one are no numbers, and what a scheduler raises.
    """
    first, second = pair
    rows = await asyncio.to_thread(common_rows, first.engine, second.engine)
    template = first.speaker
    prompt = await asyncio.to_thread(template.encode, asked.conversation)
    parsers = [await asyncio.to_thread(template.parser, asked.conversation) for _ in pair]
    most = min(asked.max_tokens or MOST_TOKENS, MOST_TOKENS)
    request = Request(prompt, most, asked.sampling, asked.stop)
    answers = [Answer(served) for served in pair]
    naming = [_Naming(answer, parser, template.text) for answer, parser in zip(answers, parsers, strict=True)]
    async with aclosing(_both(pair, request)) as events:
        async for side, event in events:
            if isinstance(event, Finished):
                answers[side].finished = event
                yield "answer", {"side": side, **asdict(event)}
            else:
                yield "token", {"side": side, **naming[side].add(event)}
    for side, answer in enumerate(answers):
        other = answers[1 - side].served
        async with aclosing(_divergence(answer.served, other, prompt, answer.tokens, rows, template.text)) as parts:
            async for part in parts:
                for name, values in part.items():
                    answer.scores.setdefault(name, []).extend(values)
                start = len(answer.scores["kld"]) - len(part["kld"])
                yield "divergence", {"side": side, "start": start, **part}
        yield "sums", {"side": side, **answer.sums()}
    yield "case", _record(answers, replace(asked, max_tokens=most), messages)


async def _both(pair: Pair, request: Request) -> AsyncGenerator[tuple[int, Token | Finished], None]:
    """The tokens of both models as they come, each with which of them it is of."""
    queue: asyncio.Queue[tuple[int, Token | Finished | Exception]] = asyncio.Queue(maxsize=64)

    async def pass_on(side: int) -> None:
        try:
            async with aclosing(Stream(pair[side].scheduler, request)) as events:
                async for event in events:
                    await queue.put((side, event))
        except Exception as error:  # it is raised where the events are awaited
            await queue.put((side, error))

    tasks = [asyncio.ensure_future(pass_on(side)) for side in range(2)]
    left = 2
    try:
        while left:
            side, event = await queue.get()
            if isinstance(event, Exception):
                raise event
            left -= isinstance(event, Finished)
            yield side, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Naming:
    """Gives every token of an answer its text and the channel that it belongs to."""

    def __init__(self, answer: Answer, parser: Any, text: Text) -> None:
        self._answer, self._parser, self._text = answer, parser, text
        self._names = {number: name for name, number in (text.special | text.marks).items()}
        self._stream = text.stream()  # the engine's own leaves out special tokens, and what a stop string cut off
        self._channel: str | None = None

    def add(self, token: Token) -> dict[str, Any]:
        special = token.id in self._names
        deltas = self._parser.add(token.id)
        if deltas:
            self._channel = deltas[-1].channel or "final"
        if special:
            self._channel = None
        shown = self._names[token.id] if special else self._stream.add(token.id)
        self._answer.tokens.append(token.id)
        self._answer.texts.append(shown)
        self._answer.channels.append(self._channel)
        return {"id": token.id, "text": shown, "channel": self._channel, "special": special}


class _Reader:
    """A model that reads a text piece by piece, between other requests."""

    def __init__(self, served: Served, tokens: list[int], known: int) -> None:
        self._served, self._tokens, self._known = served, tokens, known
        self._live: Live | None = None

    async def after(self, start: int, stop: int) -> np.ndarray:
        """The logits after tokens[start:stop], float32 [n, vocabulary]; what stands before must have been read."""
        return await asyncio.wrap_future(self._served.scheduler.run(lambda engine: self._read(engine, start, stop)))

    async def begin(self) -> None:
        """Reads the prompt but for its last token: what the prefix cache does not have."""
        while await asyncio.wrap_future(self._served.scheduler.run(self._begin)):
            pass

    def _begin(self, engine: Engine) -> bool:
        if self._live is None:
            self._live = engine.open(self._tokens, reuse=self._known)
            self._live.kept = False  # nobody asks for what follows
        at = len(self._live.tokens)
        if at < self._known:
            engine.prefill(self._live, self._tokens[at : min(at + STEP, self._known)])
        return len(self._live.tokens) < self._known

    def _read(self, engine: Engine, start: int, stop: int) -> np.ndarray:
        assert self._live
        return np.concatenate([rows.copy() for rows in engine.append(self._live, self._tokens[start:stop])])


async def _divergence(
    own: Served, other: Served, prompt: list[int], answer: list[int], rows: int, text: Text
) -> AsyncGenerator[dict[str, list[Any]], None]:
    """What both models predicted at the answer's tokens, some at a time."""
    tokens = prompt + answer[:-1]
    known = len(prompt) - 1
    readers = [_Reader(served, tokens, known) for served in (own, other)]
    for reader in readers:
        await reader.begin()
    for at in range(known, len(tokens), STEP):
        stop = min(at + STEP, len(tokens))
        both = await asyncio.gather(*(reader.after(at, stop) for reader in readers))
        came = answer[at - known : stop - known]
        for served, logits in zip((own, other), both, strict=True):
            if not np.isfinite(logits[:, :rows].max(-1)).all() or np.isnan(logits).any():
                raise BadRequest(f"{served.name} gives logits that are no numbers: there is nothing to compare")
        yield await asyncio.to_thread(_measured, both[0][:, :rows], both[1][:, :rows], came, text)


def _measured(own: np.ndarray, other: np.ndarray, came: list[int], text: Text) -> dict[str, list[Any]]:
    found = measure_rows(own, other, np.array(came))
    return {
        "kld": found.kld.tolist(),
        "logprob": (-found.base_nll).tolist(),
        "other_logprob": (-found.nll).tolist(),
        "same_top": found.same_top.tolist(),
        "top": [_likeliest(row, text) for row in own],
        "other_top": [_likeliest(row, text) for row in other],
    }


def _likeliest(logits: np.ndarray, text: Text) -> list[tuple[str, float, int]]:
    """(text, probability, id) of the likeliest tokens, the likeliest first."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    few = np.argpartition(-wide, min(LIKELIEST, len(wide) - 1))[:LIKELIEST]
    few = few[np.argsort(-wide[few], kind="stable")]
    total = np.exp(wide).sum()
    return [(text.decode([int(n)], skip_special=False), float(np.exp(wide[n]) / total), int(n)) for n in few]


def _record(answers: list[Answer], asked: Asked, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The case, as `oss-tools report` reads it."""
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "messages": list(messages),
        "sampling": {**asdict(asked.sampling), "max_tokens": asked.max_tokens, "effort": asked.conversation.effort},
        "parted": parted(*(tuple(answer.tokens) for answer in answers)),
        "answers": [_answer_record(answer) for answer in answers],
        "machine": machine(),
        "versions": versions("numpy", "numba", "tokenizers"),
    }


def _answer_record(answer: Answer) -> dict[str, Any]:
    assert answer.finished
    scores = {name: values for name, values in answer.scores.items() if name != "top"}
    return {
        "model": answer.served.name,
        "finish": answer.finished.finish,
        "time_to_first_token": answer.finished.time_to_first_token,
        "seconds": answer.finished.seconds,
        "tokens": answer.tokens,
        "texts": answer.texts,
        "channels": answer.channels,
        **scores,
        "other_top": [likeliest[0][:2] for likeliest in scores["other_top"]],
    }
