"""A checkpoint's own chat template (Jinja), rendered in a sandbox: it is a stranger's program.

It finds what transformers gives it (`transformers.utils.chat_template_utils`), and renders what transformers renders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.templates import DEFAULT, by_name
from oss_tools.engine.text import token_text
from oss_tools.errors import BadCheckpoint

MAX_CHARACTERS = 10_000_000  # of a rendered conversation
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
        messages: objects with `role` and `content`.
        tools: function schemas, for templates that take them.
        now: the moment that `strftime_now` writes.
        variables: further names that the template may use (`reasoning_effort`, …).

    Raises BadCheckpoint if there is no template, or the template fails. Source of the names that templates may use:
    https://huggingface.co/docs/transformers/chat_templating.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import SecurityError

    source = source_of(metadata, tools is not None)
    environment = _environment(now)
    config = metadata.tokenizer_config
    special = {key: token_text(config[key]) for key in SPECIAL if config.get(key)}
    given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": True}
    pieces, size = [], 0
    try:
        for piece in environment.from_string(source).generate(**given, **special, **variables):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_CHARACTERS:
                raise BadCheckpoint("the checkpoint's chat template makes an endless text")
    except (TemplateError, SecurityError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise BadCheckpoint(f"the checkpoint's chat template cannot be rendered: {error}") from None
    return "".join(pieces)


def _environment(now: Callable[[], datetime]) -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %} … {% endgeneration %}` marks what training learns from. It is a scope; its text is as it is."""

        tags = {"generation"}  # noqa: RUF012 (as the base class has it)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

        def _written(self, caller: Callable[[], str]) -> str:
            return caller()

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: now().strftime(form)}
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes HTML."""
    pair = None if separators is None else (separators[0], separators[1])
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise ValueError(message)
