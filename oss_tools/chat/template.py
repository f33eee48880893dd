"""A checkpoint's own chat template (Jinja), rendered in a sandbox: it is a stranger's program.

It finds what transformers gives it (`transformers.utils.chat_template_utils`), and renders what transformers renders.
`template_process` keeps it within limits of time and memory.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from oss_tools.chat.template_process import SHARED
from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.templates import DEFAULT, by_name
from oss_tools.engine.text import token_text
from oss_tools.errors import BadCheckpoint

TOOL_USE = "tool_use"  # the template that is taken where tools are offered, if a checkpoint has it
SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))

Message = dict[str, Any]
Schema = dict[str, Any]


def source_of(metadata: Metadata, with_tools: bool) -> str:
    """The template that such a conversation is written with, by transformers' rule. Raises BadCheckpoint if there is none."""
    named = by_name(metadata)
    if with_tools and TOOL_USE in named:
        return named[TOOL_USE]
    if DEFAULT not in named:
        others = f" for this conversation, only {', '.join(sorted(named))}" if named else ""
        raise BadCheckpoint(f"the checkpoint has no chat template{others}")
    return named[DEFAULT]


def render(
    metadata: Metadata,
    messages: list[Message],
    tools: list[Schema] | None = None,
    *,
    now: Callable[[], datetime] = datetime.now,
    **variables: Any,
) -> str:
    """The conversation as the model expects it, ready for its answer.

    Args:
        metadata: the checkpoint's, with a chat template.
        messages: objects with `role` and `content`, in values of JSON.
        tools: function schemas, for templates that take them.
        now: the moment that `strftime_now` writes.
        variables: further names that the template may use (`reasoning_effort`, …).

    Raises BadCheckpoint if there is no template, or the template fails or goes beyond the limits of time, memory and length that
    `template_worker` states. Source of the names that templates may use:
    https://huggingface.co/docs/transformers/chat_templating.
    """
    source = source_of(metadata, tools is not None)
    config = metadata.tokenizer_config
    special = {key: token_text(config[key]) for key in SPECIAL if config.get(key)}
    given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": True}
    return SHARED.render(source, _described(now()), given | special | variables)


def _described(moment: datetime) -> dict[str, Any]:
    """A moment in values of JSON."""
    offset = moment.utcoffset()
    return {
        "iso": moment.isoformat(),
        "zone": moment.tzname(),
        "offset": None if offset is None else offset.total_seconds(),
    }
