"""The servers that tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

from scripted_engine import scripted_engine
from serving import Running, running

from oss_tools.engine.engine import Engine
from oss_tools.resources import resource
from oss_tools.serve.settings import Settings


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """The embedded model, under the name `tiny`."""
    with running({"tiny": Engine.load(Path(resource("tiny/checkpoint")), threads=2)}) as found:
        yield found


@pytest.fixture
def scripted() -> Iterator[Callable[..., Running]]:
    """Starts servers whose model, `scripted`, says what it is told to: `scripted(answer, …, settings=None)`."""
    with ExitStack() as stack:

        def start(*answers: str | list[int], settings: Settings | None = None) -> Running:
            return stack.enter_context(running({"scripted": scripted_engine(*answers)}, settings))

        yield start
