"""What a whole turn of the assistant may be, as a grammar: free reasoning, then the answer or a call.

Harmony's turns are written down here. How a model with a Jinja template writes a call is seen in what its template makes of one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from oss_tools.chat.chat_template import ChatTemplate, HarmonyTemplate, JinjaTemplate
from oss_tools.chat.harmony import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, NAMESPACE, RETURN, START
from oss_tools.chat.messages import Conversation
from oss_tools.chat.probing import KEY, NAME, VALUES, probe
from oss_tools.chat.sections import PYTHON, has_own_section
from oss_tools.engine.constraints import Grammars, Part
from oss_tools.errors import BadCheckpoint, BadRequest

ANSWER = "answer"  # the part that the answer's form is
TEXT = "TEXT: /(?s:.*)/"  # no added token stands in it
SOME = "SOME: /(?s:.+)/"
PLAIN = r"PLAIN: /(?s:[^\s{\[].*)?/"  # the answer, where bare JSON is a call
BLANK = r"BLANK: /[ \n\r\t]{1,4}/"
PROBED = re.compile(rf'\{{\s*"{KEY}"\s*:\s*"{VALUES[0]}"\s*\}}')


@dataclass(frozen=True)
class Calls:
    """The calls that a turn may have.

    Attributes:
        held: names of tools -> the schema of their arguments, None for any.
        required: whether there must be one, and no answer.
        parallel: whether there may be several.
    """

    held: Mapping[str, Any]
    required: bool = False
    parallel: bool = True


def turn(
    template: ChatTemplate, grammars: Grammars, conversation: Conversation, answer: Part | None, calls: Calls
) -> list[Part]:
    """The grammar of the assistant's next turn. `answer`: the part ANSWER that the answer is held to; None for any text.
    Raises BadRequest if a call's arguments cannot be held to a schema."""
    if isinstance(template, HarmonyTemplate):
        return _harmony(template, grammars, conversation, answer, calls)
    assert isinstance(template, JinjaTemplate)
    return _jinja(template, grammars, conversation, answer, calls)


def can_hold_calls(template: ChatTemplate) -> bool:
    """Whether a call's arguments can be held to a schema."""
    return not isinstance(template, JinjaTemplate) or _written_call(template) is not None


def _arguments(calls: Calls) -> tuple[dict[str, str], list[Part]]:
    """By tool, how its arguments are written in a rule, and the parts of which that speaks."""
    held = [(name, schema) for name, schema in calls.held.items() if schema is not None]
    parts = [Part(f"arguments_{i}", schema=schema) for i, (_, schema) in enumerate(held)]
    rules = {name: f"@{part.name}" for (name, _), part in zip(held, parts, strict=True)}
    return {name: rules.get(name, "TEXT") for name in calls.held}, parts


def _lark(rules: Mapping[str, str], *terminals: str) -> Part:
    return Part("turn", lark="\n".join([*(f"{name}: {body}" for name, body in rules.items()), *terminals]))


# ---- harmony --------------------------------------------------------------------------------------------------------


def _harmony(
    template: HarmonyTemplate, grammars: Grammars, conversation: Conversation, answer: Part | None, calls: Calls
) -> list[Part]:
    t = grammars.token
    again = f'{t(END)} {t(START)} "assistant"'
    kind = f'(" "? {t(CONSTRAIN)} "json")?'
    form = f"@{ANSWER}" if answer else "TEXT"
    arguments, parts = _arguments(calls)
    own = {
        str(tool["name"]) for tool in conversation.tools if template.preamble.own_sections and has_own_section(tool)
    }  # called by their own names, as code, in their reasoning
    rules = {
        "start": "(thought | preamble)* last" if calls.held else "thought* last",
        "thought": f'{t(CHANNEL)} "analysis" {t(MESSAGE)} TEXT {again}',
        "preamble": f'{t(CHANNEL)} "commentary" {t(MESSAGE)} TEXT {again}',
        "final": f'{t(CHANNEL)} "final" {kind if answer else ""} {t(MESSAGE)} {form} {t(RETURN)}',
    }
    names = []
    for i, (name, body) in enumerate(arguments.items()):
        names.append(f"call_{i}")
        to = f" to={name}" if name in own else f" to={NAMESPACE}{name}"
        channels = ["analysis", "commentary"] if name in own else ["commentary"]
        ends = f'({kind} | " json" | " code")' if name in own else f'({kind} | " json")'
        body = "TEXT" if name in own and name == PYTHON else body
        heads = [f"{json.dumps(to)} {t(CHANNEL)} {json.dumps(channel)}" for channel in channels]
        heads += [f"{t(CHANNEL)} {json.dumps(channel + to)}" for channel in channels]
        rules[names[-1]] = f"({' | '.join(heads)}) {ends} {t(MESSAGE)} {body} {t(CALL)}"
    rules["last"] = " | ".join(names if calls.required else ["final", *names])
    used = parts + ([answer] if answer and not calls.required else [])
    if calls.required:
        del rules["final"]
    if not calls.held:
        del rules["preamble"]
    return [_lark(rules, TEXT), *used]


# ---- templates ------------------------------------------------------------------------------------------------------


def _jinja(
    template: JinjaTemplate, grammars: Grammars, conversation: Conversation, answer: Part | None, calls: Calls
) -> list[Part]:
    arguments, parts = _arguments(calls)
    written = _written_call(template) if calls.held else None
    if written is None and calls.required:
        raise BadRequest(
            "calls cannot be held to a schema: this model's chat template does not write a call's arguments as JSON"
        )
    rules = {"start": "thought blank last", "blank": "BLANK?", **_thought(template, grammars, conversation)}
    names = []
    for i, (name, body) in enumerate(arguments.items() if written else ()):
        names.append(f"call_{i}")
        head, tail = (grammars.literal(text.replace(NAME, name)) for text in written or ())
        rules[names[-1]] = f"{head} {'@object' if body == 'TEXT' else body} {tail}"
    bare = written is not None and not grammars.literal(written[0]).startswith("<[")
    rules["final"] = f"@{ANSWER}" if answer else "PLAIN" if bare else "TEXT"
    calling = f"({' | '.join(names)})"
    repeated = f"{calling} (blank {calling})*" if calls.parallel else calling
    rules["last"] = calling if calls.required else f"final | {repeated}" if names else "final"
    if calls.held and not names:
        rules["last"] += " | free"
        rules["free"] = _free_calls(template, grammars)
    if calls.required:
        del rules["final"]
    terminals = [TEXT, SOME, BLANK] + ([PLAIN] if rules.get("final") == "PLAIN" else [])
    used = [*parts, *([answer] if answer and not calls.required else [])]
    if names and "TEXT" in arguments.values():
        used.append(Part("object", schema={"type": "object"}))
    return [_lark(rules, *terminals), *used]


def _free_calls(template: JinjaTemplate, grammars: Grammars) -> str:
    """Calls that are not looked into: a mark of the model's that begins them, then texts and its marks."""
    begin = [grammars.literal(mark) for mark in template.marks.calls]
    inside = [grammars.token(mark) for mark in template.marks.names if mark in grammars.names]
    return f"({' | '.join(begin)}) ({' | '.join(dict.fromkeys(['SOME', *inside]))})*"


def _thought(template: JinjaTemplate, grammars: Grammars, conversation: Conversation) -> dict[str, str]:
    """Reasoning at the beginning of a turn, as the rule `thought`: what is left of it, if the prompt ends inside of it; nothing,
    if the model has none."""
    end = template.render(conversation).rstrip()
    thoughts = template.marks.thoughts
    opened = next((mark for mark in thoughts if end.endswith(mark)), None)
    known = [opened] if opened else [mark for mark in thoughts if mark in grammars.names or template.marks.reasons]
    rules: dict[str, str] = {}
    ways = []
    for i, mark in enumerate(known):
        closes = thoughts[mark]
        if closes in grammars.names:
            until = f"TEXT {grammars.token(closes)}"
        else:
            until = f"thought_{i}"
            rules[f"{until}[suffix={json.dumps(closes)}]"] = "/(?s:.*)/"
        ways.append(until if opened else f"{grammars.literal(mark)} {until}")
    whole = f"({' | '.join(ways)})" if ways else '""'
    return {"thought": whole if opened else f"{whole}?" if ways else whole, **rules}


def _written_call(template: JinjaTemplate) -> tuple[str, str] | None:
    """How the template writes a call: what stands before its arguments, with NAME in it, and behind them. None if arguments are
    not written as JSON."""
    asked = probe(1)
    try:
        before = template.render(replace(asked, messages=asked.messages[:1])).rstrip()
        text = template.render(asked)
    except BadCheckpoint:
        return None
    for mark, closes in template.marks.thoughts.items():  # what a template opens, or writes an empty one of
        before = before.removesuffix(closes).rstrip().removesuffix(mark).rstrip()
    if not text.startswith(before):
        return None
    text = text[len(before) :]
    found = PROBED.search(text)
    if found is None or NAME not in text[: found.start()]:
        return None
    head = text[: found.start()].lstrip()
    for mark, closes in template.marks.thoughts.items():
        if head.startswith(mark):
            head = head.partition(closes)[2].lstrip()
    ends = [name for name, number in template.text.special.items() if number in template.text.stop_tokens]
    tail = text[found.end() :]
    cut = min((at for name in ends if (at := tail.find(name)) >= 0), default=-1)
    return (head, tail[:cut].rstrip()) if cut >= 0 else None
