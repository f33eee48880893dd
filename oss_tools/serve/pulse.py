"""Events with a pulse between them: what keeps a connection alive while a model reads a long prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")

SOON = 2.0  # seconds within which what cannot be asked is refused
PULSE = 15.0  # seconds; proxies and clients give up after 30 and more


async def pulsed(events: AsyncGenerator[T, None], soon: float = SOON, pulse: float = PULSE) -> AsyncIterator[T | None]:
    """The events, and None where none has come for `pulse` seconds, the first time for `soon`. Closing it closes them."""
    async with aclosing(events):
        wait = soon
        while True:
            following = asyncio.ensure_future(anext(events))
            try:
                while not (await asyncio.wait({following}, timeout=wait))[0]:
                    wait = pulse
                    yield None
                event = following.result()
            except StopAsyncIteration:
                return
            finally:
                if not following.done():
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
            wait = pulse
            yield event
