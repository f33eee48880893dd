"""One question with its worked answer, and the split that keeps test questions out of training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from oss_tools.chat.messages import Conversation

Split = Literal["train", "test"]
HELD_OUT_SHARE = 8  # one key in so many is kept for tests


@dataclass(frozen=True)
class Item:
    """A conversation that ends with the assistant's messages: analysis, then a final answer or a tool call."""

    suite: str  # math, health, tool_use
    kind: str  # addition, vitamins, choose_tool, …: what scores are broken down by
    key: str  # the content that decides the split: the operands, the fact and its wording, the tool and its values
    conversation: Conversation
    answer: str  # what the final channel must say; empty where a call is wanted
    call: Mapping[str, Any] | None = None  # the call that is wanted: name, arguments


def split_of(key: str) -> Split:
    """The split that an item belongs to, by a hash of its content: the same in every run and on every machine."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "little") % HELD_OUT_SHARE == 0 else "train"
