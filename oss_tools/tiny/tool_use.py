"""Questions about tools: choose the right one of a few, or none, and fill its arguments from the request."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from oss_tools.chat.messages import Conversation, Effort, Message
from oss_tools.tiny.items import Item, Split, split_of

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
TYPES = ("string", "integer", "number", "boolean", "enum", "list")
# What an item is, and how often. The call's arguments may make a mixed call of any other kind.
SHARES = {
    "string": 17, "integer": 8, "number": 8, "boolean": 7, "enum": 8, "list": 9, "mixed": 17,
    "abstain": 17, "after_result": 7, "calculator": 6,
}  # fmt: skip
MADE_UP = 0.35  # of tools: a noun that is no word, so that a tool is found by matching and not by heart
SPLICED = 0.6  # of made-up words: pieces of other words
GIVEN = 0.7  # of these pieces: from the list that `items` was given
ARITHMETIC = "for a calculation"  # what a request wants, as the analysis says it
PEOPLE_WRITE = 0.35  # of the other tools: a tool from the list in tool_words.yaml, the rest get random parameters


@cache
def _words() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("tool_words.yaml").read_text("utf-8"))


@dataclass(frozen=True)
class Parameter:
    """A parameter of a tool; `say` are the ways in which a request may state a value, {v}."""

    name: str
    kind: str  # one of TYPES
    about: str
    say: tuple[str, ...]
    values: str = "word"  # which strings, integers or list elements
    options: tuple[str, ...] = ()  # of an enum
    required: bool = True

    def schema(self) -> dict[str, Any]:
        """The parameter as JSON schema."""
        if self.kind == "enum":
            return {"type": "string", "description": self.about, "enum": list(self.options)}
        if self.kind == "list":
            element = "integer" if self.values == "integer" else "string"
            return {"type": "array", "description": self.about, "items": {"type": element}}
        return {"type": self.kind, "description": self.about}


@dataclass(frozen=True)
class Tool:
    """A function: a verb and a noun, and parameters."""

    verb: str
    noun: str
    name: str
    description: str
    parameters: tuple[Parameter, ...]

    def schema(self) -> dict[str, Any]:
        """The function as conversations carry it."""
        return {
            "name": self.name,
            "description": self.description,
            "parameters": {
                "type": "object",
                "properties": {p.name: p.schema() for p in self.parameters},
                "required": [p.name for p in self.parameters if p.required],
            },
        }


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


class _Maker:
    """Draws words, tools, requests and items of one split from one random generator."""

    def __init__(self, rng: random.Random, split: Split, pieces: Sequence[str] = ()) -> None:
        self.rng, self.split, self.pieces = rng, split, pieces
        words = _words()
        kept = {
            key: [w for w in dict.fromkeys(words[key]) if split_of(w.lower()) == split]
            for key in ("places", "people", "families", "foods", "words", "booleans", "nouns")
        }
        self.words: dict[str, list[str]] = kept
        self.letters = [w.lower() for words_of_kind in kept.values() for w in words_of_kind if w.isalpha()]
        self.known = [key for key in words["tools"] if split_of(key.split()[1]) == split]
        self.taken = (
            set(words["verbs"]) | set(words["sentence"]) | {w for key in kept for w in words[key]} | {"with", "without"}
        )

    # ---- values

    def held(self, draw: Callable[[], str]) -> str:
        """The first value drawn that belongs to this split."""
        while split_of((value := draw()).lower()) != self.split:
            pass
        return value

    def made_up(self) -> str:
        """A word that is none: up to three syllables, or pieces of words, in which every piece of a word comes up."""

        def draw() -> str:
            if self.rng.random() < SPLICED:
                pieces = self.rng.choices((1, 2, 3), (1, 4, 2))[0]
                return "".join(self._piece() for _ in range(pieces))
            syllables = self.rng.choices((1, 2, 3), (2, 10, 5))[0]
            word = "".join(self.rng.choice(ONSETS) + self.rng.choice(VOWELS) for _ in range(syllables))
            return word + self.rng.choice(CODAS)

        while (word := self.held(draw)) in self.taken or len(word) < 3:
            pass
        return word

    def _piece(self) -> str:
        """One of the given pieces, or two to five letters of a word of this split."""
        if self.pieces and self.rng.random() < GIVEN:
            return self.rng.choice(self.pieces)
        word = self.rng.choice(self.letters)
        length = min(len(word), self.rng.randint(2, 5))
        start = self.rng.randint(0, len(word) - length)
        return word[start : start + length]

    def word(self) -> str:
        return self.rng.choice(self.words["words"]) if self.rng.random() < 0.7 else self.made_up()

    def listed(self, key: str, share: float = 0.75) -> str:
        return self.rng.choice(self.words[key]) if self.rng.random() < share else self.made_up().capitalize()

    def text(self) -> str:
        """A few words that need not make sense, whole in this split; one may be made up."""
        vocabulary = _words()["sentence"]

        def draw() -> str:
            chosen = [self.rng.choice(vocabulary) for _ in range(self.rng.randint(2, 6))]
            if self.rng.random() < 0.2:
                chosen[self.rng.randrange(len(chosen))] = self.made_up()
            return " ".join(chosen)

        text = self.held(draw)
        return text[0].upper() + text[1:] if self.rng.random() < 0.5 else text

    def title(self) -> str:
        def draw() -> str:
            words = [self.word().capitalize() for _ in range(self.rng.choice((1, 2, 2, 3)))]
            return ("The " if self.rng.random() < 0.15 else "") + " ".join(words)

        return self.held(draw)

    def person(self) -> str:
        def draw() -> str:
            first = self.listed("people")
            return first if self.rng.random() < 0.4 else f"{first} {self.listed('families')}"

        return self.held(draw)

    def digits(self, low: int, high: int) -> str:
        return "".join(self.rng.choice("0123456789") for _ in range(self.rng.randint(low, high)))

    def string(self, values: str) -> str:
        rng = self.rng
        if values == "text":
            return self.text()
        if values == "title":
            return self.title()
        if values == "person":
            return self.person()
        if values == "place":
            return self.listed("places")
        if values == "food":
            return self.listed("foods").lower()
        if values == "word":
            return self.word()
        if values == "code":
            letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
            return self.held(
                lambda: "".join(rng.choices(letters, k=rng.randint(1, 3))) + rng.choice(("-", "")) + self.digits(2, 5)
            )
        if values == "phone":
            return self.held(lambda: f"{self.digits(3, 4)}-{self.digits(3, 5)}")
        if values == "time":
            return self.held(lambda: f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}")
        if values == "date":
            return self.held(self._date)
        if values == "file":
            return self.held(lambda: f"{self.word()}.{rng.choice(('txt', 'pdf', 'csv', 'png', 'md', 'json'))}")
        assert values == "address", values
        return self.held(
            lambda: f"{rng.randint(1, 250)} {self.word().capitalize()} {rng.choice(('Street', 'Road', 'Lane'))}"
        )

    def _date(self) -> str:
        year, month, day = self.rng.randint(2019, 2035), self.rng.randint(1, 12), self.rng.randint(1, 28)
        return f"{year}-{month:02}-{day:02}" if self.rng.random() < 0.6 else f"{MONTHS[month - 1]} {day}"

    def integer(self, values: str = "") -> int:
        def draw() -> str:
            if values == "year":
                return str(self.rng.randint(1900, 2060))
            most = self.rng.choice((12, 40, 150) if values == "small" else (40, 300, 9999))
            return str(self.rng.randint(1, most))

        return int(self.held(draw))

    def number(self) -> float:
        """A decimal that JSON writes as the request does: 12.5, never 12.50."""

        def draw() -> str:
            whole = self.rng.choice((self.rng.randint(0, 40), self.rng.randint(10, 999), self.rng.randint(100, 9999)))
            return f"{whole}.{self.rng.randint(0, 9) if self.rng.random() < 0.3 else ''}{self.rng.randint(1, 9)}"

        if self.rng.random() < 0.2:
            return self.integer()
        return float(self.held(draw))

    def value(self, parameter: Parameter) -> Any:
        """A value for a parameter."""
        rng = self.rng
        match parameter.kind:
            case "integer":
                return self.integer(parameter.values)
            case "number":
                return self.number()
            case "boolean":
                return rng.random() < 0.5
            case "enum":
                return rng.choice(parameter.options)
            case "list":
                length = rng.choices((1, 2, 3, 4), (1, 5, 5, 2))[0]
                draw = self.integer if parameter.values == "integer" else lambda: self.string(parameter.values)
                return list(dict.fromkeys(draw() for _ in range(length)))
        return self.string(parameter.values)

    # ---- tools

    def parameter(self, role: str, required: bool = True) -> Parameter:
        """A parameter of a role from tool_words.yaml."""
        about = _words()["roles"][role]
        name, kind = about.get("name", role), about["type"]
        if kind == "boolean":
            return self._boolean(name if split_of(name) == self.split else None, required)
        say, options = tuple(about["say"]), self.options() if kind == "enum" else ()
        return Parameter(name, kind, about["about"], say, about.get("values", "small"), options, required)

    def options(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.word() for _ in range(self.rng.randint(2, 4))))

    def _boolean(self, word: str | None, required: bool) -> Parameter:
        word = word or (self.rng.choice(self.words["booleans"]) if self.rng.random() < 0.7 else self.made_up())
        return Parameter(word, "boolean", f"With or without {word}", (f"with {word}", f"without {word}"), required=required)

    def any_parameter(self, kind: str, required: bool = True) -> Parameter:
        """A parameter of a type: one that people use, or one with a name that is no word."""
        rng = self.rng
        if kind == "boolean":
            return self._boolean(None, required)
        if rng.random() < 0.75:
            fitting = [role for role, about in _words()["roles"].items() if about["type"] == kind]
            return self.parameter(rng.choice(fitting), required)
        word = self.made_up()
        values = rng.choice(("word", "word", "title", "person", "place", "code", "text"))
        if kind == "list":
            values = rng.choice(("word", "food", "person", "place", "integer"))
        form = '"{v}"' if values == "text" else "{v}"
        say = tuple(
            f.replace("X", word) + " " + form for f in ("with X", "with the X", "with a X of", "for the X", "where the X is")
        )
        about = rng.choice(("The {}", "{}", "Value of {}", "{} to use")).format(word)
        return Parameter(
            word, kind, about[0].upper() + about[1:], say, values, self.options() if kind == "enum" else (), required
        )

    def tool(self, kinds: tuple[str, ...] | None = None, verb: str = "", noun: str = "") -> Tool:
        """A tool whose required parameters have the given types (any, where None)."""
        rng = self.rng
        if kinds is None and not noun and self.known and rng.random() < PEOPLE_WRITE:
            known = rng.choice(self.known)
            verb, noun = known.split()
            chosen = [self.parameter(role.rstrip("?"), not role.endswith("?")) for role in _words()["tools"][known].split()]
        else:
            kinds = kinds or tuple(rng.choices(TYPES, (6, 3, 3, 2, 3, 3), k=rng.choices((1, 2, 3), (6, 3, 1))[0]))
            verb = verb or rng.choice(list(_words()["verbs"]))
            noun = noun or self.noun()
            chosen = [self.any_parameter(kind) for kind in kinds]
            if rng.random() < 0.25:
                chosen.append(self.any_parameter(rng.choice(TYPES), required=False))
        parameters = tuple({p.name: p for p in reversed(chosen) if p.name != noun}.values())[::-1]
        return Tool(verb, noun, self._name(verb, noun), self._description(verb, noun, parameters), parameters)

    def noun(self) -> str:
        if self.rng.random() < MADE_UP:
            first = self.made_up()
            return f"{first} {self.made_up()}" if self.rng.random() < 0.08 else first
        return self.rng.choice(self.words["nouns"])

    def _name(self, verb: str, noun: str) -> str:
        parts = [verb, *noun.split()]
        style = self.rng.random()
        if style < 0.08:
            return parts[0] + "".join(part.capitalize() for part in parts[1:])
        return "_".join(parts)

    def _description(self, verb: str, noun: str, parameters: tuple[Parameter, ...]) -> str:
        rng = self.rng
        third, article = _words()["verbs"][verb]
        text = f"{third if rng.random() < 0.75 else verb.capitalize()} {_article(article, noun)} {noun}"
        if parameters and rng.random() < 0.2 and parameters[0].kind == "string":
            text += f" for a {parameters[0].name}"
        return text

    def distractors(self, tool: Tool, request: str, count: int, verb_differs: bool) -> list[Tool]:
        """Tools that the request for `tool` does not mean: with other nouns, or, one of them, with a verb that contradicts."""
        rng, chosen = self.rng, list[Tool]()
        opposite = _words()["opposite"]
        if verb_differs and tool.verb in opposite and count:
            verb = rng.choice([v for v in opposite if v != tool.verb])
            chosen.append(self.tool(verb=verb, noun=tool.noun))
        while len(chosen) < count:
            other = self.tool()
            used = {word for t in (tool, *chosen) for word in t.noun.split()} | set(re.findall(r"\w+", request.lower()))
            if used.isdisjoint(other.noun.split()):
                chosen.append(other)
        return chosen

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
        article = _article(_words()["verbs"][tool.verb][1], tool.noun)
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
        if tool.verb in _words()["asking"] and not say_verb:
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
            request, wanted = self._sum()[1], ARITHMETIC
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
        field = tool.noun if tool.verb in _words()["asking"] else rng.choice(("id", "status", "number", "code", "total"))
        value = rng.choice((self.word, self.integer, self.number, self.title, lambda: self.string("code")))()
        start = "" if tool.verb in _words()["asking"] else "Done. "
        result = json.dumps({field: value}, ensure_ascii=False) if rng.random() < 0.5 else f"{field}: {value}"
        return result, f"{start}The {field} is {value}."

    def calculator(self, effort: Effort, after: bool) -> Item:
        """A sum for the calculator, with its result or up to the call."""
        rng = self.rng
        expression, request, result = self._sum()
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

    def _sum(self) -> tuple[str, str, str]:
        """An expression of this split, a question for it, and its value as text."""
        while split_of(_sum_key(expression := self._expression())) != self.split:
            pass
        spoken = expression
        if self.rng.random() < 0.2 and "(" not in expression:
            for sign, word in (("+", "plus"), ("-", "minus"), ("*", "times"), ("/", "divided by")):
                spoken = spoken.replace(f" {sign} ", f" {word} ")
        form = self.rng.choice(
            (
                "What is {}?",
                "What is {}?",
                "What is {}?",
                "Calculate {}.",
                "Compute {}.",
                "How much is {}?",
                "{}",
                "Evaluate {}.",
            )
        )
        use = self.rng.choice(("", " Use the calculator.", " Use the calculator."))
        return expression, form.format(spoken) + use, _evaluated(expression, self.rng.choice((2, 4, 6, 10)))

    def _expression(self) -> str:
        rng = self.rng

        def operand() -> str:
            top = rng.choice((10, 100, 100, 1000, 10000))
            return str(rng.randint(1, top)) if rng.random() < 0.88 else f"{rng.randint(0, top)}.{rng.randint(1, 9)}"

        count = rng.choices((2, 3, 4), (14, 4, 1))[0]
        parts = [operand()]
        for _ in range(count - 1):
            parts += [rng.choice("+-*/"), operand()]
        if count > 2 and rng.random() < 0.5:
            start = rng.choice(range(0, len(parts) - 2, 2))
            if start == 0 or parts[start - 1] != "/":  # so that nothing is divided by zero
                parts[start], parts[start + 2] = "(" + parts[start], parts[start + 2] + ")"
        return " ".join(parts)


ONSETS = (*"bcdfghjklmnprstvwyz", "", *["br", "ch", "cl", "dr", "fl", "gr", "kl", "pl", "qu", "sh", "sk", "st", "th", "tr"])
VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ea", "ei", "io", "oo", "ou", "y")
CODAS = ("", "", "", "l", "n", "r", "s", "t", "k", "m", "x", "nd", "nt", "rt", "ck", "ng", "lo", "ra", "sh")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


def _article(article: str, noun: str) -> str:
    if article == "the" or (noun.endswith("s") and not noun.endswith(("ss", "us"))):
        return "the"
    return "an" if noun[0] in "aeiou" else "a"


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


def _sum_key(expression: str) -> str:
    """What decides an expression's split: for two integers the key of oss_tools.tiny.math, so that no result leaks."""
    if pair := re.fullmatch(r"(\d+) ([-+*]) (\d+)", expression):
        low, high = sorted((int(pair[1]), int(pair[3])))
        return f"math/{pair[2]}/{low}/{high}"
    return expression


def _evaluated(expression: str, decimals: int) -> str:
    """The value of an expression made by this module, as calculators print it: 85, 2.5, 3.3333."""
    value = eval(expression, {"__builtins__": {}})  # noqa: S307 (figures and operators that stand above)
    text = f"{value:.{decimals}f}"
    return "0" if float(text) == 0 else text.rstrip("0").rstrip(".")
