"""The shape of a mathematical answer: a value, a list, a tuple, an interval, a set, a union, a matrix, a relation, or text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from oss_tools.harness.expressions import Expression, NotMathematics
from oss_tools.harness.latex import parse_expression
from oss_tools.harness.normalization import tidy

MOST_PARTS = 200
RELATIONS = (
    r"\le",
    r"\leq",
    r"\leqslant",
    r"\ge",
    r"\geq",
    r"\geqslant",
    r"\lt",
    r"\gt",
    r"\neq",
    r"\ne",
    "<=",
    ">=",
    "<",
    ">",
    "=",
)
RELATION = re.compile("|".join(re.escape(sign) + ("(?![A-Za-z])" if sign[0] == "\\" else "") for sign in RELATIONS))
CANONICAL = {
    r"\le": "<=",
    r"\leq": "<=",
    r"\leqslant": "<=",
    r"\ge": ">=",
    r"\geq": ">=",
    r"\geqslant": ">=",
    r"\lt": "<",
    r"\gt": ">",
}
MATRIX = re.compile(r"^\\begin\{([pbvV]?matrix|array)\}(?:\{[^}]*\})?(.*)\\end\{\1\}$", re.DOTALL)


@dataclass(frozen=True)
class Parsed:
    """An answer with its shape.

    Attributes:
        kind: value, text, list, set, union, matrix, row, equation, not equal, or a pair of brackets: "()", "[]", "(]", "[)".
        parts: in order.
        expression: of a value.
        text: of the whole.
    """

    kind: str
    text: str
    parts: tuple[Parsed, ...] = ()
    expression: Expression | None = None


def read_answer(text: str) -> Parsed:
    """An answer's shape and parts. What cannot be read is text."""
    text = tidy(text)
    for reader in (_as_value, _as_matrix, _as_list, _as_plus_minus, _as_union, _as_bracketed, _as_relation, _as_based):
        try:
            found = reader(text)
        except NotMathematics:
            continue
        if found is not None:
            return found
    return Parsed("text", text)


def _as_value(text: str) -> Parsed | None:
    mixed = re.fullmatch(r"(-?)\s*(\d+)(?:\s+|\s+and\s+)(\d+)\s*/\s*(\d+)", text)
    if mixed and int(mixed[3]) < int(mixed[4]):
        text = f"{mixed[1]}({mixed[2]}+{mixed[3]}/{mixed[4]})"
    return Parsed("value", text, expression=parse_expression(text))


def _as_matrix(text: str) -> Parsed | None:
    found = MATRIX.match(text)
    if not found:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", found[2]) if row.strip()]
    parsed = [Parsed("row", row, tuple(read_answer(cell) for cell in row.split("&"))) for row in rows[:MOST_PARTS]]
    return Parsed("matrix", text, tuple(parsed))


def _as_list(text: str) -> Parsed | None:
    parts = split_top(text, (",", ";", " and ", " or ", r"\text{ and }", r"\text{ or }", r"\text{and}", r"\text{or}"))
    parts = [part for part in parts if part.strip()]
    return Parsed("list", text, tuple(_without_name(part) for part in parts)) if 1 < len(parts) <= MOST_PARTS else None


def _without_name(text: str) -> Parsed:
    """In a list of solutions "x = 2, x = 3" the name says nothing."""
    found = read_answer(text)
    return found.parts[1] if found.kind == "equation" and is_name(found.parts[0]) else found


def is_name(part: Parsed) -> bool:
    """x, x_1, f(x), or a phrase; not an expression."""
    if part.kind == "text":
        return True
    if part.kind == "()":
        return all(is_name(inside) for inside in part.parts)
    return bool(re.fullmatch(r"\\?[A-Za-z]+'?(?:_\{?\w+\}?)?(?:\([a-z](?:, ?[a-z])*\))?", part.text.replace(" ", "")))


def _as_plus_minus(text: str) -> Parsed | None:
    if len(re.findall(r"\\pm(?![A-Za-z])|\\mp(?![A-Za-z])|\+/-|\+-", text)) != 1:
        return None
    pair = [re.sub(r"\\pm(?![A-Za-z])|\\mp(?![A-Za-z])|\+/-|\+-", sign, text) for sign in ("+", "-")]
    return Parsed("list", text, tuple(_without_name(part) for part in pair))


def _as_union(text: str) -> Parsed | None:
    parts = split_top(text, (r"\cup", " U "))
    return Parsed("union", text, tuple(read_answer(part) for part in parts)) if 1 < len(parts) <= MOST_PARTS else None


def _as_bracketed(text: str) -> Parsed | None:
    """A tuple, an interval or a set; the name in "x \\in [1, 2]" says nothing."""
    text = re.sub(r"^[A-Za-z]\s*\\in(?![A-Za-z])\s*", "", text)
    braces = re.fullmatch(r"\\\{(.*)\\\}|\{(.*)\}", text, re.DOTALL)
    if braces:
        inside = braces[1] if braces[1] is not None else braces[2]
        parts = [part for part in split_top(inside, (",", ";")) if part.strip()]
        return Parsed("set", text, tuple(read_answer(part) for part in parts[:MOST_PARTS]))
    found = re.fullmatch(r"([(\[])(.*)([)\]])", text, re.DOTALL)
    parts = split_top(found[2], (",", ";")) if found else []
    if found and _encloses(found[2]) and 1 < len(parts) <= MOST_PARTS:
        return Parsed(found[1] + found[3], text, tuple(read_answer(part) for part in parts))
    return None


def _encloses(inside: str) -> bool:
    """Whether the brackets around this text belong to each other."""
    depth = 0
    for character in inside:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return False
    return True


def _as_relation(text: str) -> Parsed | None:
    """An equation, or an inequality as the interval that it says."""
    signs = [CANONICAL.get(sign, sign) for sign in RELATION.findall(text)]
    parts = [part.strip() for part in RELATION.split(text)]
    if not signs or not all(parts):
        return None
    sides = tuple(read_answer(part) for part in parts)
    if set(signs) == {"="}:
        return Parsed("equation", text, (sides[0], sides[-1]))
    if len(signs) == 1 and signs[0] in (r"\ne", r"\neq"):
        return Parsed("not equal", text, sides)
    return _interval(text, signs, sides)


def _interval(text: str, signs: list[str], sides: tuple[Parsed, ...]) -> Parsed | None:
    if all(sign[0] == ">" for sign in signs):
        signs, sides = ["<" + sign[1:] for sign in reversed(signs)], tuple(reversed(sides))
    if any(sign[0] != "<" for sign in signs) or len(signs) > 2:
        return None
    low, high = _infinite("-"), _infinite("")
    if len(signs) == 2 and is_name(sides[1]):
        low, high = sides[0], sides[2]
        kind = ("[" if signs[0] == "<=" else "(") + ("]" if signs[1] == "<=" else ")")
    elif len(signs) == 1 and is_name(sides[0]):
        high, kind = sides[1], "(" + ("]" if signs[0] == "<=" else ")")
    elif len(signs) == 1 and is_name(sides[1]):
        low, kind = sides[0], ("[" if signs[0] == "<=" else "(") + ")"
    else:
        return None
    return Parsed(kind, text, (low, high))


def _infinite(sign: str) -> Parsed:
    return Parsed("value", sign + r"\infty", expression=parse_expression(sign + r"\infty"))


def _as_based(text: str) -> Parsed | None:
    """1011_2: digits and their base, as text."""
    found = re.fullmatch(r"([0-9A-Za-z]+)_\{?(\d+)\}?|([0-9A-Za-z]+)_\{\\(?:text|mathrm)\{\w+\}\}", text.replace(" ", ""))
    return Parsed("based", found[1] or found[3], (Parsed("text", found[2] or ""),)) if found else None


def split_top(text: str, separators: Sequence[str]) -> list[str]:
    """Splits where a separator stands outside all brackets. Commas between groups of three digits separate no parts."""
    parts, start, depth, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        found = next((sign for sign in separators if text.startswith(sign, position)), None) if depth == 0 else None
        if found and not (
            found.isalpha() or (found[0] == "\\" and text[position + len(found) : position + len(found) + 1].isalpha())
        ):
            parts.append(text[start:position])
            position += len(found)
            start = position
        else:
            position += 2 if character == "\\" and text[position + 1 : position + 2] not in "{}([" else 1
    return [*parts, text[start:]]
