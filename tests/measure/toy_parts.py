"""Parts of a run on hardware that end in every way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from oss_tools.errors import BadRequest, NoRoom


def good() -> Iterator[dict[str, Any]]:
    yield {"a": 1}
    yield {"summary": "fine"}


def wrong() -> Iterator[dict[str, Any]]:
    yield {"passed": False, "summary": "off"}


def too_large() -> Iterator[dict[str, Any]]:
    yield {"a": 1}
    raise NoRoom("it needs 9 GB, 8 GB are free")


def bad() -> Iterator[dict[str, Any]]:
    yield {"a": 1}
    raise BadRequest("no such thing")


def broken() -> Iterator[dict[str, Any]]:
    yield {"a": 1}
    raise ZeroDivisionError("a defect")


def slow() -> Iterator[dict[str, Any]]:
    yield {"a": 1}
    time.sleep(60)
