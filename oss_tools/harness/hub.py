"""The Hugging Face hub as a place of data sets: asked once whether it answers, so that without a network nobody waits."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 10.0  # seconds that it has to answer at all
ERRNO = re.compile(r"\[Errno -?\d+\]\s*")


@functools.cache
def answers(endpoint: str) -> bool:
    """Whether the hub answers, whatever it says; tried once."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=PATIENCE)
    except Exception:  # of any HTTP library that huggingface_hub uses
        return False
    return True


@contextmanager
def hub_mode() -> Iterator[bool]:
    """Whether the hub answers. Within it, where it does not, Hugging Face's libraries look into their cache only."""
    import datasets
    from huggingface_hub import constants

    online = not constants.HF_HUB_OFFLINE and answers(constants.ENDPOINT)
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not online:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield online
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def why_not(error: Exception, online: bool) -> str:
    """Why a set cannot be had, in a few words."""
    if not online:
        from huggingface_hub import constants

        return f"it is not in the cache, and {constants.ENDPOINT} does not answer; is there a network?"
    return ERRNO.sub("", (str(error).splitlines() or [type(error).__name__])[0])
