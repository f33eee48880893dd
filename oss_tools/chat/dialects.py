"""Between which marks a model without harmony reasons and calls tools: found in its template and its vocabulary.

A family is never known by its name. Its marks stand in its chat template, which teaches the model what to write, or are tokens
of their own. Some are written by so many models that every answer is read for them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

THOUGHTS = (  # what opens reasoning, and what closes it
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, GLM-4.5 and many more
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi-VL
)
THINK = THOUGHTS[0][0]

TOOL, PYTHON_TAG, TOOL_CALLS = "<tool_call>", "<|python_tag|>", "[TOOL_CALLS]"
DEEPSEEK, KIMI, FUNCTION = "<\uff5ctool\u2581calls\u2581begin\uff5c>", "<|tool_calls_section_begin|>", "<function="
CALLS = {  # what opens calls -> what closes them; None: the end of the text, or other calls
    TOOL: "</tool_call>",  # Qwen, Hermes, GLM
    PYTHON_TAG: None,  # Llama 3
    TOOL_CALLS: None,  # Mistral
    DEEPSEEK: "<\uff5ctool\u2581calls\u2581end\uff5c>",  # DeepSeek-V3, R1, V3.1
    KIMI: "<|tool_calls_section_end|>",  # Kimi-K2
    "<|python_start|>": "<|python_end|>",  # Llama 4
    "<seed:tool_call>": "</seed:tool_call>",  # Seed-OSS
    FUNCTION: "</function>",  # Qwen3-Coder, which often leaves <tool_call> out
}
EVERYBODY_S = (THINK, TOOL, PYTHON_TAG, TOOL_CALLS)
ARG_KEY = "<arg_key>"  # GLM
INSIDE = {  # marks inside of calls
    TOOL: (ARG_KEY, "</arg_key>", "<arg_value>", "</arg_value>"),
    TOOL_CALLS: ("[ARGS]", "[CALL_ID]"),
    DEEPSEEK: (
        "<\uff5ctool\u2581call\u2581begin\uff5c>",
        "<\uff5ctool\u2581sep\uff5c>",
        "<\uff5ctool\u2581call\u2581end\uff5c>",
    ),
    KIMI: ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
}


@dataclass(frozen=True)
class Dialect:
    """The marks of a model.

    Attributes:
        thoughts: what opens reasoning -> what closes it.
        calls: what opens calls -> what closes them, or None.
        reasons: whether the template speaks of reasoning, so that an answer may begin inside of it.
        keyed: whether calls are written with GLM's <arg_key>, where a call without arguments is a bare name.
    """

    thoughts: Mapping[str, str]
    calls: Mapping[str, str | None]
    reasons: bool = False
    keyed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All marks, those inside of calls too."""
        inside = [mark for opened in self.calls for mark in INSIDE.get(opened, ())]
        closing = [mark for mark in self.calls.values() if mark]
        return (*self.thoughts, *self.thoughts.values(), *self.calls, *closing, *inside)


def dialect(templates: Iterable[str] = (), tokens: Collection[str] = ()) -> Dialect:
    """The marks of a model with these chat templates and these added tokens."""
    sources = list(templates)

    def known(mark: str) -> bool:
        return mark in EVERYBODY_S or mark in tokens or any(mark in source for source in sources)

    return Dialect(
        {opens: closes for opens, closes in THOUGHTS if known(opens)},
        {opens: closes for opens, closes in CALLS.items() if known(opens)},
        any(mark in source for source in sources for pair in THOUGHTS for mark in pair),
        any(ARG_KEY in source for source in sources),
    )
