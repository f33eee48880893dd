"""Questions about tools: choose the right one of a few, or none, and fill its arguments from the request."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oss_tools.chat.messages import Conversation, Effort, Message
from oss_tools.tiny.items import Item, Split
from oss_tools.tiny.tool_sums import drawn_sum
from oss_tools.tiny.tool_values import tool_words
from oss_tools.tiny.tools import TYPES, Parameter, Tool, Tools, article_of

ABSTENTION = "None of the tools can do this."
CALCULATOR: Mapping[str, Any] = {
    "name": "calculator",
    "description": "Evaluates an arithmetic expression",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "Arithmetic expression"}},
        "required": ["expression"],
    },
}
# What an item is, and how often. The call's arguments may make a mixed call of any other kind.
SHARES = {
    "string": 17, "integer": 8, "number": 8, "boolean": 7, "enum": 8, "list": 9, "mixed": 17,
    "abstain": 17, "after_result": 7, "calculator": 6,
}  # fmt: skip  # fmt: skip
ARITHMETIC = "for a calculation"  # what a request wants, as the analysis says it


def items(rng: random.Random, split: Split, pieces: Sequence[str] = ()) -> Iterator[Item]:
    """Endless questions. Nouns, booleans' names and values of one split never occur in the other's. Made-up words are made of
    `pieces` too: in a training, the letters of every token, so that each is copied from a request into a call somewhere.

    What both splits share: verbs, the names of common parameters (city, days), the calculator, and the words of quoted texts.
    A test item is one whose tool and whose every value are held out, so `split_of(item.key)` is not what decides.
    """
    maker = _Maker(rng, split, pieces)
    names, weights = list(SHARES), list(SHARES.values())
    while True:
        yield maker.item(rng.choices(names, weights)[0])


class _Maker(Tools):
    """Draws requests and items of one split from one random generator."""

    # ---- requests

    def arguments(self, tool: Tool) -> dict[str, Any]:
        """Values for what the request will mention, in the schema's order."""
        named = [p for p in tool.parameters if p.required or self.rng.random() < 0.5]
        named = named or [self.rng.choice(tool.parameters)]
        return {p.name: self.value(p) for p in named}

    def request(self, tool: Tool, arguments: Mapping[str, Any], say_verb: bool) -> tuple[str, str]:
        """A sentence that asks for the tool and states every argument literally; and what it wants: to share the tunnel."""
        rng = self.rng
        phrases = self._phrases([p for p in tool.parameters if p.name in arguments], arguments)
        article = article_of(tool_words()["verbs"][tool.verb][1], tool.noun)
        thing = f"{article} {tool.noun}"
        what = f"{tool.verb} {thing}"
        forms = [
            "{W}.",
            "{W}.",
            "Please {w}.",
            "Can you {w}?",
            "Could you {w}?",
            "I want to {w}.",
            "I need you to {w}.",
            "{w}",
        ]
        if tool.verb in tool_words()["asking"] and not say_verb:
            forms += ["What is {t}?", "Tell me {t}.", "Give me {t}.", "I need {t}.", "I want to know {t}."]
        elif not say_verb:
            forms += ["I would like {t}.", "I need {t}."]
        form, tail = rng.choice(forms), " ".join(phrases)
        wanted = f"for {thing}" if "{t}" in form else f"to {what}"
        if phrases and rng.random() < 0.08 and form[0] == "{":
            first, tail = phrases[0], " ".join(phrases[1:])
            form = f"{first[0].upper()}{first[1:]}, {{w}}."
            what, thing = f"{what} {tail}".strip(), thing
        else:
            what, thing = f"{what} {tail}", f"{thing} {tail}"
        return form.replace("{W}", what[0].upper() + what[1:]).replace("{w}", what).replace("{t}", thing), wanted

    def _phrases(self, parameters: list[Parameter], arguments: Mapping[str, Any]) -> list[str]:
        """How the request states each argument; two that begin alike name their parameters."""
        rng, said, begun = self.rng, list[str](), set[str]()
        for parameter in parameters:
            value = arguments[parameter.name]
            if parameter.kind == "boolean":
                said.append(parameter.say[0 if value else 1])
                continue
            say = rng.choice(parameter.say)
            cue = parameter.name.replace("_", " ")
            if (say.split()[0] in begun and cue not in say) or rng.random() < 0.12:
                form = '"{v}"' if parameter.values == "text" else "{v}"
                say = rng.choice(("with {} {}", "with the {} {}", "where the {} is {}")).format(cue, form)
            begun.add(say.split()[0])
            said.append(say.replace("{v}", _spoken(value)))
        if rng.random() < 0.3:
            rng.shuffle(said)
        return said

    # ---- items

    def item(self, share: str) -> Item:
        """One item of a share named in SHARES."""
        effort: Effort = self.rng.choices(("low", "medium", "high"), (15, 65, 20))[0]
        if share == "abstain":
            return self.abstain(effort)
        if share == "calculator":
            return self.calculator(effort, after=self.rng.random() < 0.5)
        if share == "after_result":
            return self.after_result(effort)
        return self.call(effort, share)

    def wanted(self, share: str) -> Tool:
        """A tool for a call of the given type of arguments."""
        rng = self.rng
        if share == "mixed":
            if rng.random() < 0.6:
                return self.tool()
            return self.tool(tuple(rng.sample(TYPES, k=rng.choices((2, 3, 4), (6, 3, 1))[0])))
        return self.tool((share,) * rng.choices((1, 2, 3), (13, 5, 1))[0])

    def call(self, effort: Effort, share: str) -> Item:
        tool = self.wanted(share)
        while not tool.parameters:
            tool = self.wanted(share)
        arguments, tools, request, wanted = self._asked(tool)
        messages = (Message("user", request), *_call_messages(effort, tools, wanted, tool.name, arguments))
        call = {"name": tool.name, "arguments": arguments}
        return Item("tool_use", _kind(tool, arguments), _key(call), _conversation(messages, tools, effort), "", call)

    def _asked(self, tool: Tool) -> tuple[dict[str, Any], list[Mapping[str, Any]], str, str]:
        """Arguments, the tools that are offered, in random order, the request, and what it wants."""
        count = self.rng.choices((0, 1, 2, 3), (25, 30, 25, 20))[0]
        verb_differs = self.rng.random() < 0.15
        arguments = self.arguments(tool)
        request, wanted = self.request(tool, arguments, say_verb=verb_differs)
        tools = [t.schema() for t in (tool, *self.distractors(tool, request, count, verb_differs))]
        if len(tools) > 1 and self.rng.random() < 0.06:
            tools[-1] = dict(CALCULATOR)
        self.rng.shuffle(tools)
        return arguments, list(tools), request, wanted

    def abstain(self, effort: Effort) -> Item:
        """A request that none of the tools fits."""
        rng = self.rng
        count = rng.choices((1, 2, 3, 4), (25, 30, 25, 20))[0]
        tool = self.wanted("mixed")
        while not tool.parameters:
            tool = self.wanted("mixed")
        verb_differs = rng.random() < 0.12
        request, wanted = self.request(tool, self.arguments(tool), say_verb=verb_differs)
        tools = [t.schema() for t in self.distractors(tool, request, count, verb_differs)]
        if rng.random() < 0.1:
            request, wanted = drawn_sum(rng, self.split)[1], ARITHMETIC
        elif rng.random() < 0.1:
            tools[-1] = dict(CALCULATOR)  # a distractor like any other
        rng.shuffle(tools)
        lines = "".join(f"{t['name']} does not fit.\n" for t in tools) if effort == "high" else ""
        messages = (
            Message("user", request),
            Message("assistant", f"{_wanted(wanted, effort)}{lines}No tool fits.", channel="analysis"),
            Message("assistant", ABSTENTION, channel="final"),
        )
        key = f"{'|'.join(t['name'] for t in tools)}: {request}"
        return Item("tool_use", "abstain", key, _conversation(messages, tools, effort), ABSTENTION)

    def after_result(self, effort: Effort) -> Item:
        """The tool has answered: say what it said."""
        tool = self.wanted("mixed")
        while not tool.parameters:
            tool = self.wanted("mixed")
        arguments, tools, request, wanted = self._asked(tool)
        result, final = self._result(tool)
        return _answered(effort, tools, request, wanted, {"name": tool.name, "arguments": arguments}, result, final)

    def _result(self, tool: Tool) -> tuple[str, str]:
        """What a tool returns, and the sentence that tells the user."""
        rng = self.rng
        if rng.random() < 0.12:
            reason = f"{self.word()} not found"
            return json.dumps({"error": reason}), f"The tool failed: {reason}."
        field = tool.noun if tool.verb in tool_words()["asking"] else rng.choice(("id", "status", "number", "code", "total"))
        value = rng.choice((self.word, self.integer, self.number, self.title, lambda: self.string("code")))()
        start = "" if tool.verb in tool_words()["asking"] else "Done. "
        result = json.dumps({field: value}, ensure_ascii=False) if rng.random() < 0.5 else f"{field}: {value}"
        return result, f"{start}The {field} is {value}."

    def calculator(self, effort: Effort, after: bool) -> Item:
        """A sum for the calculator, with its result or up to the call."""
        rng = self.rng
        expression, request, result = drawn_sum(rng, self.split)
        tools: list[Mapping[str, Any]] = [CALCULATOR]
        if rng.random() < 0.3:
            first, count = self.tool(), rng.randint(0, 2)
            tools += [t.schema() for t in (first, *self.distractors(first, request, count, verb_differs=False))]
            rng.shuffle(tools)
        call: dict[str, Any] = {"name": "calculator", "arguments": {"expression": expression}}
        if after:
            return _answered(effort, tools, request, ARITHMETIC, call, result, result)
        messages = (Message("user", request), *_call_messages(effort, tools, ARITHMETIC, "calculator", call["arguments"]))
        return Item("tool_use", "call_string", _key(call), _conversation(messages, tools, effort), "", call)


def _spoken(value: Any) -> str:
    """A value as a sentence says it: lists with commas and an `and`."""
    if isinstance(value, list):
        parts = [str(v) for v in value]
        return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return str(value)


def _kind(tool: Tool, arguments: Mapping[str, Any]) -> str:
    kinds = {p.kind for p in tool.parameters if p.name in arguments}
    return f"call_{kinds.pop()}" if len(kinds) == 1 else "call_mixed"


def _key(call: Mapping[str, Any]) -> str:
    return f"{call['name']}: {json.dumps(call['arguments'], ensure_ascii=False)}"


def _written(value: Any) -> str:
    """A value as the analysis writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(str(v) for v in value) if isinstance(value, list) else str(value)


def _call_messages(
    effort: Effort, tools: Sequence[Mapping[str, Any]], wanted: str, name: str, arguments: Mapping[str, Any]
) -> tuple[Message, Message]:
    """The analysis, longer with more effort, and the call. What the request wants is said before the tool is named: the
    noun, just said, is what finds the tool."""
    values = ", ".join(f"{key} is {_written(value)}" for key, value in arguments.items())
    analysis = {
        "low": f"{name} fits.",
        "medium": f"{name} fits: {values}.",
        "high": "".join(f"{t['name']} {'fits' if t['name'] == name else 'does not fit'}.\n" for t in tools) + f"{values}.",
    }[effort]
    text = json.dumps(arguments, ensure_ascii=False)
    return (
        Message("assistant", f"{_wanted(wanted, effort)}{analysis}", channel="analysis"),
        Message("assistant", text, channel="commentary", recipient=f"functions.{name}", content_type="json"),
    )


def _wanted(wanted: str, effort: Effort) -> str:
    end = "\n" if effort == "high" else " "
    return f"Asked {wanted}.{end}"


def _conversation(messages: tuple[Message, ...], tools: Sequence[Mapping[str, Any]], effort: Effort) -> Conversation:
    return Conversation(messages, tuple(tools), effort)


def _answered(
    effort: Effort,
    tools: Sequence[Mapping[str, Any]],
    request: str,
    wanted: str,
    call: Mapping[str, Any],
    result: str,
    final: str,
) -> Item:
    """A conversation in which the tool has answered."""
    messages = (
        Message("user", request),
        *_call_messages(effort, tools, wanted, call["name"], call["arguments"]),
        Message("tool", result, name=f"functions.{call['name']}"),
        Message("assistant", "The tool has answered.", channel="analysis"),
        Message("assistant", final, channel="final"),
    )
    return Item("tool_use", "after_result", f"{_key(call)} -> {result}", _conversation(messages, tools, effort), final)
