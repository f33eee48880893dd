"""Short names of published models, with the repository, revision, size and licence of each: the `hub` part of configs/models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from oss_tools.download.layout import COMMIT
from oss_tools.errors import BadCheckpoint
from oss_tools.resources import resource


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        name: its short name.
        repo: on the hub, `owner/name`.
        revision: the commit that is fetched unless another is asked for; "" for the newest.
        nbytes: of its tensors in Hugging Face's layout.
        licence: as SPDX names it, or the publisher's name for it.
    """

    name: str
    repo: str
    revision: str
    nbytes: int
    licence: str


def published() -> dict[str, Published]:
    """Every published model by short name. Raises BadCheckpoint for a damaged file."""
    found = {}
    for path in sorted(resource("configs/models").glob("*.yaml")):
        content = yaml.safe_load(path.read_text("utf-8"))
        if content.get("hub"):
            found[path.stem] = _parse(path.stem, content["hub"], str(path))
    return found


def _parse(name: str, hub: Any, where: str) -> Published:
    try:
        entry = Published(name, hub["repo"], str(hub.get("revision") or ""), int(hub["bytes"]), hub["licence"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise BadCheckpoint(f"{where}: hub needs repo, bytes and licence: {error!r}") from None
    if entry.revision and not COMMIT.fullmatch(entry.revision):
        raise BadCheckpoint(f"{where}: hub.revision is no commit of 40 hexadecimal digits")
    return entry
