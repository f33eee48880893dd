"""Tools that are made up: a verb and a noun, with parameters that people use or that have names of no meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from oss_tools.tiny.items import split_of
from oss_tools.tiny.tool_values import Values, tool_words

TYPES = ("string", "integer", "number", "boolean", "enum", "list")
MADE_UP = 0.35  # of tools: a noun that is no word, so that a tool is found by matching and not by heart
PEOPLE_WRITE = 0.35  # of the other tools: a tool from the list in tool_words.yaml, the rest get random parameters


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


class Tools(Values):
    """Draws tools, and values for their parameters."""

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

    def parameter(self, role: str, required: bool = True) -> Parameter:
        """A parameter of a role from tool_words.yaml."""
        about = tool_words()["roles"][role]
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
            fitting = [role for role, about in tool_words()["roles"].items() if about["type"] == kind]
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
            chosen = [
                self.parameter(role.rstrip("?"), not role.endswith("?")) for role in tool_words()["tools"][known].split()
            ]
        else:
            kinds = kinds or tuple(rng.choices(TYPES, (6, 3, 3, 2, 3, 3), k=rng.choices((1, 2, 3), (6, 3, 1))[0]))
            verb = verb or rng.choice(list(tool_words()["verbs"]))
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
        third, article = tool_words()["verbs"][verb]
        text = f"{third if rng.random() < 0.75 else verb.capitalize()} {article_of(article, noun)} {noun}"
        if parameters and rng.random() < 0.2 and parameters[0].kind == "string":
            text += f" for a {parameters[0].name}"
        return text

    def distractors(self, tool: Tool, request: str, count: int, verb_differs: bool) -> list[Tool]:
        """Tools that the request for `tool` does not mean: with other nouns, or, one of them, with a verb that contradicts."""
        rng, chosen = self.rng, list[Tool]()
        opposite = tool_words()["opposite"]
        if verb_differs and tool.verb in opposite and count:
            verb = rng.choice([v for v in opposite if v != tool.verb])
            chosen.append(self.tool(verb=verb, noun=tool.noun))
        while len(chosen) < count:
            other = self.tool()
            used = {word for t in (tool, *chosen) for word in t.noun.split()} | set(re.findall(r"\w+", request.lower()))
            if used.isdisjoint(other.noun.split()):
                chosen.append(other)
        return chosen


def article_of(article: str, noun: str) -> str:
    if article == "the" or (noun.endswith("s") and not noun.endswith(("ss", "us"))):
        return "the"
    return "an" if noun[0] in "aeiou" else "a"
