"""The Hugging Face hub as a place of data sets: asked once whether it answers, so that without a network nobody waits.

The requests are huggingface_hub's and datasets' own; the user's token goes with them to the hub's origin only.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

from oss_tools.download.addresses import same_origin, shown, without_addresses

PATIENCE = 10.0  # seconds that it has to answer at all
ERRNO = re.compile(r"\[Errno -?\d+\]\s*")


@functools.cache
def answers(endpoint: str) -> bool:
    """Whether the hub answers, whatever it says; tried once."""
    from oss_tools.download.bodies import in_time
    from oss_tools.download.library import get_session

    try:
        in_time(lambda: get_session().head(endpoint, timeout=PATIENCE), 2 * PATIENCE)
    except Exception:  # of any HTTP library that huggingface_hub uses
        return False
    return True


@contextmanager
def hub_mode() -> Iterator[bool]:
    """Whether the hub answers. Within it, where it does not, Hugging Face's libraries look into their cache only."""
    from oss_tools.download.library import constants  # first: it says in a line what is wrong with the environment

    with token_stays():
        import datasets

        online = not constants.HF_HUB_OFFLINE and answers(constants.ENDPOINT)
        before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY
        constants.HF_HUB_DISABLE_TELEMETRY = True  # for which the hub says what to look for in the environment
        if not online:
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        try:
            yield online
        finally:
            constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_TELEMETRY = before


@contextmanager
def token_stays() -> Iterator[None]:
    """Within it huggingface_hub's clients send the token to the hub's own origin only, not to a listing's next page or a
    redirect's target that lies elsewhere."""
    _watch_requests()
    held = _HELD.is_set()
    _HELD.set()
    try:
        yield
    finally:
        if not held:
            _HELD.clear()


_HELD = Event()  # whether the token is; also in the threads that fetch


@functools.cache
def _watch_requests() -> None:
    """From now on huggingface_hub's clients look at `_HELD` before a request: a factory of clients can be set, not asked for."""
    from huggingface_hub import set_client_factory

    from oss_tools.download.library import constants, get_session

    def withhold(request: Any) -> None:
        if _HELD.is_set() and not same_origin(str(request.url), constants.ENDPOINT):
            request.headers.pop("Authorization", None)

    client = get_session()
    hooks = {**client.event_hooks, "request": [*client.event_hooks["request"], withhold]}
    set_client_factory(lambda: type(client)(event_hooks=hooks, follow_redirects=True, timeout=None))


def why_not(error: Exception, online: bool) -> str:
    """Why a set cannot be had, in a few words."""
    if not online:
        from oss_tools.download.library import constants

        return f"it is not in the cache, and {shown(constants.ENDPOINT)} does not answer; is there a network?"
    said = without_addresses((str(error).splitlines() or [type(error).__name__])[0])
    return ERRNO.sub("", said)[:300]
