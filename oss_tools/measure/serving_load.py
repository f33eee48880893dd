"""A server under clients of which many do wrong: the others' answers must be those that each gets alone."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from oss_tools.measure.serving_client import Address, post, resident_bytes

PATH = "/v1/chat/completions"
WORDS = (
    "sun", "river", "seven", "apple", "green", "number", "road", "light", "winter", "paper", "answer", "count", "music", "hand",
)  # fmt: skip
QUESTIONS = 24
OVERSIZED = 33 << 20
SLOW = 0.02  # seconds between two reads of a slow reader


def questions(seed: int, tokens: int) -> list[dict[str, Any]]:
    """Requests whose answers are drawn, each with its own seed; half of them begin alike."""
    chance = random.Random(seed)
    found = []
    for number in range(QUESTIONS):
        common = "You are asked many things. Keep to what is asked, and answer in a few words. " * 2 if number % 2 else ""
        text = f"{common}{' '.join(chance.choices(WORDS, k=chance.randrange(3, 40)))}: what is {number} + {chance.randrange(50)}?"
        message = {"role": "user", "content": text}
        most = chance.randrange(tokens // 4, tokens)
        found.append({"messages": [message], "seed": number, "temperature": 0.8, "max_tokens": most, "logprobs": True})
    return found


async def told(address: Address, asked: dict[str, Any], pause: float = 0.0) -> Any:
    """All that an answer says: at once, or as it comes with a pause between reads. A malformed answer's error is what it says."""
    answer = await post(address, PATH, asked)
    try:
        if not asked.get("stream"):
            return _said(await answer.json())
        whole: dict[str, Any] = {"content": "", "reasoning": "", "tokens": [], "finish": None}
        async for event in answer.events():
            if "error" in event:
                return event["error"]["message"]
            if answer.status != 200:
                return event
            choice = event["choices"][0]
            for name in ("content", "reasoning"):
                whole[name] += choice["delta"].get(name) or ""
            whole["tokens"] += _tokens(choice)
            whole["finish"] = choice["finish_reason"] or whole["finish"]
            if pause:
                await asyncio.sleep(pause)
        return whole
    finally:
        answer.close()


def _said(answer: dict[str, Any]) -> Any:
    if "error" in answer:
        return answer["error"]["message"]
    choice = answer["choices"][0]
    message = choice["message"]
    texts = {name: message.get(name) or "" for name in ("content", "reasoning")}
    return {**texts, "tokens": _tokens(choice), "finish": choice["finish_reason"]}


def _tokens(choice: dict[str, Any]) -> list[Any]:
    return [(token["token"], token["logprob"]) for token in (choice["logprobs"] or {}).get("content") or ()]


class Load:
    """Clients at work.

    Attributes:
        done: how often each kind of request came out as it must.
        wrong: what did not.
    """

    def __init__(self, address: Address, asked: list[dict[str, Any]], expected: list[Any], seconds: float) -> None:
        self._address, self._asked, self._expected = address, asked, expected
        self._ends = time.monotonic() + seconds
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def client(self, number: int) -> None:
        chance = random.Random(number)
        kinds: dict[str, Callable[[random.Random], Awaitable[None]]] = {
            "at once": self._at_once,
            "streamed": self._streamed,
            "slow reader": self._slow,
            "left in mid-stream": self._left,
            "left while waiting": self._left_early,
            "malformed": self._malformed,
            "oversized": self._oversized,
            "broken off": self._broken_off,
        }
        weights = [6, 6, 2, 3, 2, 2, 1, 1]
        while time.monotonic() < self._ends:
            kind = chance.choices(list(kinds), weights)[0]
            try:
                await asyncio.wait_for(kinds[kind](chance), 120)
            except Exception as error:  # whatever it is, it is what is looked for
                self.wrong.append(f"{kind}: {type(error).__name__}: {error}"[:300])
            else:
                self.done[kind] += 1

    async def _compare(self, chance: random.Random, pause: float = 0.0, **more: Any) -> None:
        number = chance.randrange(len(self._asked))
        found = await told(self._address, {**self._asked[number], **more}, pause)
        if found != self._expected[number]:
            raise ValueError(f"question {number}: {found!r:.100} is not {self._expected[number]!r:.100}")

    async def _at_once(self, chance: random.Random) -> None:
        await self._compare(chance)

    async def _streamed(self, chance: random.Random) -> None:
        await self._compare(chance, stream=True)

    async def _slow(self, chance: random.Random) -> None:
        await self._compare(chance, SLOW, stream=True)

    async def _left(self, chance: random.Random) -> None:
        answer = await post(self._address, PATH, {**chance.choice(self._asked), "stream": True})
        try:
            left = chance.randrange(1, 20)
            async for _ in answer.events():
                left -= 1
                if not left:
                    return
        finally:
            answer.writer.transport.abort()

    async def _left_early(self, chance: random.Random) -> None:
        waiting = asyncio.ensure_future(post(self._address, PATH, chance.choice(self._asked)))
        await asyncio.sleep(chance.random() / 10)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    async def _malformed(self, chance: random.Random) -> None:
        body = chance.choice([b"{", b"[]", b"\xff", b'{"messages": 5}', b'{"messages": [], "n": "x"}', b"[" * 10_000])
        await self._refused(body, 400)

    async def _oversized(self, chance: random.Random) -> None:
        await self._refused(b" " * 1000, 413, OVERSIZED)

    async def _broken_off(self, chance: random.Random) -> None:
        """Promises more than it sends, and goes."""
        _, writer = await asyncio.open_connection(self._address.host, self._address.port)
        writer.write(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n".encode() + b'{"messages"')
        await writer.drain()
        await asyncio.sleep(chance.random() / 10)
        writer.transport.abort()

    async def _refused(self, body: bytes, status: int, claimed: int | None = None) -> None:
        answer = await post(self._address, PATH, body, claimed)
        try:
            if answer.status != status:
                raise ValueError(f"status {answer.status}, not {status}")
        finally:
            answer.close()


async def load(address: Address, process: int, clients: int, seconds: float, tokens: int) -> dict[str, Any]:
    """The record of clients that do so for some seconds."""
    asked = questions(1, tokens)
    expected = [await told(address, one) for one in asked]  # alone
    at_first = resident_bytes(process)
    most = at_first
    work = Load(address, asked, expected, seconds)

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, resident_bytes(process))
            await asyncio.sleep(0.5)

    watching = asyncio.ensure_future(watch())
    await asyncio.gather(*(work.client(number) for number in range(clients)))
    watching.cancel()
    again = [await told(address, one) for one in asked]
    return {
        "clients": clients,
        "seconds": seconds,
        "requests": dict(sorted(work.done.items())),
        "wrong": work.wrong[:20],
        "wrong_count": len(work.wrong),
        "same_answers_afterwards": again == expected,
        "resident_bytes": {"before": at_first, "most": most, "after": resident_bytes(process)},
    }
