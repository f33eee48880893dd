"""A checkpoint's own chat template (Jinja), rendered in a sandbox: it is a stranger's program."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from oss_tools.checkpoints import Metadata
from oss_tools.engine.text import token_text
from oss_tools.errors import BadCheckpoint

MAX_CHARACTERS = 10_000_000  # of a rendered conversation


def render(
    metadata: Metadata, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **variables: Any
) -> str:
    """The conversation as the model expects it, ready for its answer.

    Args:
        metadata: the checkpoint's, with a `chat_template`.
        messages: objects with `role` and `content`.
        tools: function schemas, for templates that take them.
        variables: further names that the template may use (`reasoning_effort`, …).

    Raises BadCheckpoint if there is no template, or the template fails. Source of the names that templates may use:
    https://huggingface.co/docs/transformers/chat_templating.
    """
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    if not metadata.chat_template:
        raise BadCheckpoint("the checkpoint has no chat template")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    config = metadata.tokenizer_config
    special = {
        key: token_text(config[key]) for key in ("bos_token", "eos_token", "unk_token", "pad_token") if config.get(key)
    }
    pieces, size = [], 0
    try:
        template = environment.from_string(metadata.chat_template)
        for piece in template.generate(messages=messages, tools=tools, add_generation_prompt=True, **special, **variables):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_CHARACTERS:
                raise BadCheckpoint("the checkpoint's chat template makes an endless text")
    except (TemplateError, SecurityError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise BadCheckpoint(f"the checkpoint's chat template cannot be rendered: {error}") from None
    return "".join(pieces)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **{k: v for k, v in options.items() if k in ("indent", "sort_keys")})


def _refuse(message: str) -> None:
    raise ValueError(message)
