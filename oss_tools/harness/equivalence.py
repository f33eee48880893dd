r"""Whether two answers to a mathematical question say the same.

An answer is a value, a list of values in any order, a tuple, an interval, a set, a union, a matrix, an equation, an
inequality, or text. What a key leaves open is left open here, as is customary with these data sets: units and currency signs are
not compared, "50%" is 50 as well as 1/2, a list's order does not matter while a tuple's does, and a decimal stands for a value
that it rounds to at six places or more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from oss_tools.harness.expressions import (
    Expression,
    NotMathematics,
    evaluate,
    free_symbols,
    same_up_to_factor,
    same_value,
)
from oss_tools.harness.latex import LONGEST, parse_expression, plain_latex

ROUNDED_PLACES = 6  # of a decimal that stands for an irrational number or a fraction
MOST_PARTS = 200
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
ALONE = {"m", "g", "s", "h", "l", "n", "j", "k", "c", "f", "v", "w", "a"}  # units of one letter
EMPTY = {
    "emptyset",
    "varnothing",
    "nosolution",
    "nosolutions",
    "norealsolution",
    "norealsolutions",
    "none",
    "\\emptyset",
    "\\varnothing",
    "{}",
}
WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathbb|emph|operatorname)\*?\s*\{"
)
OUTER = (
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("`", "`"),
    ('"', '"'),
    ("“", "”"),
)
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
UNIT_COMMAND = re.compile(
    r"\\(?:text|textrm|mathrm|mbox|textit|mathit)\s*\{[^{}]*\}(?:\s*\^\s*\{?-?\d+\}?)?(?:\s*/\s*\\(?:text|mathrm)\{[^{}]*\})?$"
)
UNIT_WORDS = re.compile(
    r"^(?P<value>[-+]?[\d.,/ ]*\d(?:\s*%|\s*percent\b)?)(?P<gap>\s*-?\s*)(?P<unit>[A-Za-zµΩ][\wµΩ/^{}.\-' ()]*)$"
)  # "18 eggs per day", "5cm^2", "30-minute"


TRAILING = re.compile(r"(?:\\[,;:! ]|\^\s*\{?\s*\\circ\s*\}?\s*[CFK]?|~|\s)+$")  # spaces, degrees


def equivalent(answer: str, reference: str) -> bool:
    """Whether `answer` says what `reference` says. What cannot be read as mathematics is compared as text."""
    if max(len(answer), len(reference)) > LONGEST:
        return answer.strip() == reference.strip()
    first, second = tidy(answer), tidy(reference)
    if _as_text(first) == _as_text(second):
        return bool(_as_text(first))
    readings = [(first, second), (without_unit(first), without_unit(second))]
    try:
        return any(_same(read_answer(a), read_answer(b)) for a, b in dict.fromkeys(readings) if a and b)
    except RecursionError:  # hundreds of signs or factors in a row: no answer, and not the same text
        return False


def tidy(text: str) -> str:
    r"""The answer without dollar signs, markdown, \boxed and \text around it, closing full stop, and words that lead up to it."""
    text = re.sub(r"(?<=[\w)}])\*\*(?=[\w({-])(?!\d+\*\*)", "^", plain_latex(text).strip())
    text = re.sub(r"\b(?:negative|minus)\s+(?=[\d.$\\])", "-", text, flags=re.IGNORECASE)
    before = None
    while before != text:
        before = text
        text = _without_wrapper(text.strip())
        text = re.sub(r"(?<!\\left)(?<!\\right)[.,;:!]$", "", text) if not re.search(r"\d!$", text) else text
        for opening, closing in OUTER:
            inside = text[len(opening) : len(text) - len(closing)]
            if (
                text.startswith(opening)
                and text.endswith(closing)
                and len(text) > len(opening + closing)
                and opening not in inside
            ):
                text = inside
        text = re.sub(
            r"^(?:approximately|about|roughly|exactly|only|just|\\approx|\\sim)\s*(?=[-\d\\$(.])", "", text, flags=re.I
        )
    text = re.sub(r"\\(?:\$|pounds|euro)|[$€£¥₹]|^(?:USD|EUR|GBP|Rs\.?)\s*(?=\d)", "", text)
    return re.sub(r"\s+", " ", text.replace("**", "")).strip()


def _without_wrapper(text: str) -> str:
    """What stands in one \\text{…} or \\boxed{…} that is all of the text."""
    found = re.match(WRAPPERS.pattern + r"|\\boxed\s*\{|\\fbox\s*\{", text)
    if found and _closing(text, found.end() - 1) == len(text) - 1:
        return text[found.end() : -1]
    return text


def _closing(text: str, opening: int) -> int:
    """Where the brace at `opening` is closed, or -1."""
    depth = 0
    for position in range(opening, len(text)):
        if text[position] in "{}" and text[position - 1 : position] != "\\":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return position
    return -1


def _as_text(text: str) -> str:
    """For comparison as text: without spaces, wrappers and capitals; "(B)" is "b"."""
    text = WRAPPERS.sub("{", text)
    plain = re.sub(r"\\[,;:! ]|(?<!\d)\s|\s(?!\d)|[{}~$]|\\quad", "", text).lower()
    return plain[1:-1] if re.fullmatch(r"\([a-z]\)", plain) else plain.strip(".")


def without_unit(text: str) -> str:
    """A quantity without its unit, words like "million" as a factor; anything else as it is."""
    before = None
    while before != text:
        before = text
        text = TRAILING.sub("", text)
        stripped = TRAILING.sub("", UNIT_COMMAND.sub("", text))
        if stripped and stripped[-1] not in "+-*/^_=<>({[,|&\\" and not stripped.endswith(("\\frac", "\\sqrt")):
            text = _scaled(stripped, text[len(stripped) :])
    found = UNIT_WORDS.match(text)
    if not found:
        return text
    value, unit = found["value"].strip(), found["unit"]
    words = re.findall(r"[A-Za-zµΩ]+", unit)
    spaced = bool(found["gap"].strip(" ")) or found["gap"].startswith(" ")
    if any(len(word) == 1 and word.lower() not in ALONE for word in words[:1]) or (len(words[0]) == 1 and not spaced):
        return text
    return _scaled(value.replace("percent", "%"), unit)


def _scaled(value: str, unit: str) -> str:
    factor = next(
        (SCALES[word] for word in re.findall(r"[a-z]+", WRAPPERS.sub("", unit).lower())[:1] if word in SCALES), None
    )
    return f"({value})*{factor}" if factor else value


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
    return found.parts[1] if found.kind == "equation" and _is_name(found.parts[0]) else found


def _is_name(part: Parsed) -> bool:
    """x, x_1, f(x), or a phrase; not an expression."""
    if part.kind == "text":
        return True
    if part.kind == "()":
        return all(_is_name(inside) for inside in part.parts)
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
    if len(signs) == 2 and _is_name(sides[1]):
        low, high = sides[0], sides[2]
        kind = ("[" if signs[0] == "<=" else "(") + ("]" if signs[1] == "<=" else ")")
    elif len(signs) == 1 and _is_name(sides[0]):
        high, kind = sides[1], "(" + ("]" if signs[0] == "<=" else ")")
    elif len(signs) == 1 and _is_name(sides[1]):
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


def _same(first: Parsed, second: Parsed) -> bool:
    if second.kind == "equation" and first.kind == "equation":
        return _same_equation(first, second)
    if first.kind == "equation" and _is_name(first.parts[0]):
        return _same(first.parts[1], second)
    if second.kind == "equation" and _is_name(second.parts[0]):
        return _same(first, second.parts[1])
    if first.kind == second.kind == "value":
        return _same_number(first, second)
    if "based" in (first.kind, second.kind):
        return _same_digits(first, second)
    if _is_empty(first) or _is_empty(second):
        return _is_empty(first) and _is_empty(second)
    if {first.kind, second.kind} <= {"list", "set", "union", "value"} and len(first.parts) + len(second.parts):
        return _same_unordered(first.parts or (first,), second.parts or (second,))
    if first.kind == second.kind and first.kind != "text":
        return len(first.parts) == len(second.parts) and all(map(_same, first.parts, second.parts))
    return _as_text(first.text) == _as_text(second.text)


def _is_empty(answer: Parsed) -> bool:
    return (answer.kind == "set" and not answer.parts) or _as_text(answer.text).strip("\\") in EMPTY


def _same_digits(first: Parsed, second: Parsed) -> bool:
    """A base that only one of them names is taken for the other."""
    bases = {part.text for answer in (first, second) for part in answer.parts if part.text}
    return first.text.lower().replace(" ", "") == second.text.lower().replace(" ", "") and len(bases) <= 1


def _same_unordered(first: Sequence[Parsed], second: Sequence[Parsed]) -> bool:
    left = list(second)
    for part in first:
        match = next((i for i, other in enumerate(left) if _same(part, other)), None)
        if match is None:
            return False
        del left[match]
    return not left


def _same_equation(first: Parsed, second: Parsed) -> bool:
    """Equal sides, or one equation a multiple of the other."""
    if all(map(_same, first.parts, second.parts)) or all(map(_same, first.parts, reversed(second.parts))):
        return True
    if all(_is_name(answer.parts[0]) for answer in (first, second)) and _same(first.parts[1], second.parts[1]):
        return first.parts[0].kind == "text" or second.parts[0].kind == "text"
    a, b = _difference(first), _difference(second)
    return a is not None and b is not None and _attempt(same_up_to_factor, a, b)


def _difference(equation: Parsed) -> Expression | None:
    left, right = (part.expression for part in equation.parts)
    return Expression("add", (left, Expression("negate", (right,)))) if left and right else None


def _same_number(first: Parsed, second: Parsed) -> bool:
    assert first.expression is not None
    assert second.expression is not None
    pairs = [(first.expression, second.expression)]
    for a, b in ((first.expression, second.expression), (second.expression, first.expression)):
        if a.name == "percent":
            pairs.append((a.arguments[0], b))
    return (
        any(_attempt(same_value, a, b) for a, b in pairs)
        or _rounds_to(first, second.expression)
        or _rounds_to(second, first.expression)
    )


def _rounds_to(decimal: Parsed, exact: Expression) -> bool:
    """Whether a decimal is a constant, rounded or cut at ROUNDED_PLACES or more, as in 0.333333 for 1/3."""
    found = re.fullmatch(r"-?\d*\.(\d+)", decimal.text.replace(" ", ""))
    if not found or len(found[1]) < ROUNDED_PLACES or free_symbols(exact) or exact.name == "number":
        return False
    try:
        value = complex(evaluate(exact, {}))
    except (NotMathematics, OverflowError):
        return False
    return value.imag == 0 and abs(value.real - float(Fraction(decimal.text.replace(" ", "")))) < 10.0 ** -len(found[1])


def _attempt(compare: Callable[[Expression, Expression], bool], first: Expression, second: Expression) -> bool:
    try:
        return compare(first, second)
    except (NotMathematics, OverflowError):
        return False
