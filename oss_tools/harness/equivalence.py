r"""Whether two answers to a mathematical question say the same.

An answer is a value, a list of values in any order, a tuple, an interval, a set, a union, a matrix, an equation, an
inequality, or text. What a key leaves open is left open here, as is customary with these data sets: units and currency signs are
not compared, "50%" is 50 as well as 1/2, a list's order does not matter while a tuple's does, and a decimal stands for a value
that it rounds to at six places or more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from oss_tools.harness.expressions import (
    Expression,
    NotMathematics,
    evaluate,
    free_symbols,
    same_up_to_factor,
    same_value,
)
from oss_tools.harness.latex import LONGEST
from oss_tools.harness.normalization import as_text, tidy, without_unit
from oss_tools.harness.parsed_answers import Parsed, is_name, read_answer

ROUNDED_PLACES = 6  # of a decimal that stands for an irrational number or a fraction
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


def equivalent(answer: str, reference: str) -> bool:
    """Whether `answer` says what `reference` says. What cannot be read as mathematics is compared as text."""
    if max(len(answer), len(reference)) > LONGEST:
        return answer.strip() == reference.strip()
    first, second = tidy(answer), tidy(reference)
    if as_text(first) == as_text(second):
        return bool(as_text(first))
    readings = [(first, second), (without_unit(first), without_unit(second))]
    try:
        return any(_same(read_answer(a), read_answer(b)) for a, b in dict.fromkeys(readings) if a and b)
    except RecursionError:  # hundreds of signs or factors in a row: no answer, and not the same text
        return False


def _same(first: Parsed, second: Parsed) -> bool:
    if second.kind == "equation" and first.kind == "equation":
        return _same_equation(first, second)
    if first.kind == "equation" and is_name(first.parts[0]):
        return _same(first.parts[1], second)
    if second.kind == "equation" and is_name(second.parts[0]):
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
    return as_text(first.text) == as_text(second.text)


def _is_empty(answer: Parsed) -> bool:
    return (answer.kind == "set" and not answer.parts) or as_text(answer.text).strip("\\") in EMPTY


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
    if all(is_name(answer.parts[0]) for answer in (first, second)) and _same(first.parts[1], second.parts[1]):
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
