"""Several answers at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")
WAITING = 64  # events that nobody has taken yet


async def merged(answers: list[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """The events of several answers as they come, each with its answer's number. Closing it closes them all."""
    if len(answers) == 1:
        async with aclosing(answers[0]) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue(WAITING)

    async def pass_on(index: int) -> None:
        try:
            async with aclosing(answers[index]) as events:
                async for event in events:
                    await queue.put((index, event))
            await queue.put(None)
        except Exception as error:  # whatever it is, it is raised where the answers are awaited
            await queue.put(error)

    tasks = [asyncio.ensure_future(pass_on(index)) for index in range(len(answers))]
    try:
        left = len(tasks)
        while left:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
