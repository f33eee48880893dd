"""A hub on loopback that answers otherwise than hubs do, and what was asked of it."""

from collections.abc import Callable
from typing import Any

from hub_server import Handler, Hub

from oss_tools.download.names import understand
from oss_tools.download.sources import Source, look_up
from oss_tools.download.web import Web

REPO = "someone/model"
TOKEN = "hf_secret"
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(8192)}


def listed(hub: Hub) -> Source:
    return look_up(understand(REPO, "", hub.url), Web(hub.url))


def instead(hub: Hub, part: str, answer: Callable[[Handler], object]) -> None:
    """Has requests answered otherwise whose path contains a part."""

    def special(handler: Handler) -> bool:
        return part in handler.path and answer(handler) is not False

    hub.instead = special
    hub.add(REPO, FILES)


def raw(*lines: str, body: bytes = b"") -> Callable[[Handler], None]:
    """An answer to the byte, after which the connection is closed."""

    def answer(handler: Handler) -> None:
        handler.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        handler.close_connection = True

    return answer


def tokens(requests: list[Any], server: str) -> set[str | None]:
    return {{k.lower(): v for k, v in r.headers.items()}.get("authorization") for r in requests if r.server == server}
