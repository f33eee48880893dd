"""Questions about numbers: sums, differences and products worked out column by column, and short stories about them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from oss_tools.chat.messages import Conversation, Effort, Message
from oss_tools.tiny.items import Item, Split, split_of

EFFORTS: dict[Effort, int] = {"low": 15, "medium": 65, "high": 20}  # shares
KINDS = {"addition": 28, "subtraction": 24, "multiplication": 22, "story": 26}  # shares

ASK = {
    "+": ("What is {a} + {b}?", "{a} + {b} = ?", "Calculate {a} + {b}.", "Add {a} and {b}.", "What is {a} plus {b}?",
          "What is the sum of {a} and {b}?", "How much is {a} + {b}?"),
    "-": ("What is {a} - {b}?", "{a} - {b} = ?", "Calculate {a} - {b}.", "Subtract {b} from {a}.", "What is {a} minus {b}?",
          "What is the difference of {a} and {b}?", "How much is {a} - {b}?"),
    "*": ("What is {a} * {b}?", "{a} * {b} = ?", "Calculate {a} * {b}.", "Multiply {a} by {b}.", "What is {a} times {b}?",
          "What is the product of {a} and {b}?", "How much is {a} * {b}?"),
}  # fmt: skip
PLACES = ("Ones", "Tens", "Hundreds", "Thousands")


@cache
def _words() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("math_words.yaml").read_text("utf-8"))


def items(rng: random.Random, split: Split) -> Iterator[Item]:
    """Endless questions of that split; the same for the same state of `rng`."""
    makers: dict[str, Callable[[random.Random], tuple[str, str, int, int, str]]] = {
        "addition": _addition,
        "subtraction": _subtraction,
        "multiplication": _multiplication,
        "story": _story,
    }
    while True:
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        question, operator, a, b, unit = makers[kind](rng)
        effort = rng.choices(list(EFFORTS), list(EFFORTS.values()))[0]
        key = f"math/{operator}/{min(a, b)}/{max(a, b)}"  # the wording does not matter: what is new is the pair of numbers
        if split_of(key) == split:
            worked, result = work(operator, a, b, effort)
            yield _item(kind, key, question, worked, f"{result} {unit}".strip(), effort)


def _item(kind: str, key: str, question: str, analysis: str, answer: str, effort: Effort) -> Item:
    messages = (
        Message("user", question),
        Message("assistant", analysis, channel="analysis"),
        Message("assistant", answer, channel="final"),
    )
    return Item("math", kind, key, Conversation(messages, effort=effort), answer)


def _number(rng: random.Random, most: int = 4) -> int:
    """Numbers of one to `most` digits, each length as often as the others."""
    digits = rng.randint(1, most)
    return rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def _asked(rng: random.Random, operator: str, a: int, b: int) -> str:
    return rng.choice(ASK[operator]).format(a=a, b=b)


def _addition(rng: random.Random) -> tuple[str, str, int, int, str]:
    a, b = _number(rng), _number(rng)
    return _asked(rng, "+", a, b), "+", a, b, ""


def _subtraction(rng: random.Random) -> tuple[str, str, int, int, str]:
    b, a = sorted((_number(rng), _number(rng)))
    return _asked(rng, "-", a, b), "-", a, b, ""


def _multiplication(rng: random.Random) -> tuple[str, str, int, int, str]:
    longer, shorter = rng.choices(((1, 1), (2, 1), (3, 1), (2, 2)), (3, 4, 2, 2))[0]
    a, b = _number(rng, longer), _number(rng, shorter)
    if rng.random() < 0.5:
        a, b = b, a
    return _asked(rng, "*", a, b), "*", a, b, ""


def _story(rng: random.Random) -> tuple[str, str, int, int, str]:
    words = _words()
    operator = rng.choice("+-*")
    template = rng.choice(words["stories"][operator])
    thing, name, other = rng.choice(words["things"]), *rng.sample(words["names"], 2)
    a, b = (rng.randint(2, 12), rng.randint(2, 12)) if operator == "*" else (rng.randint(2, 99), rng.randint(2, 99))
    if operator == "-":
        b, a = sorted((a, b + 1))
    return template.format(a=a, b=b, things=thing, name=name, other=other), operator, a, b, thing


# ---- the worked answer ---------------------------------------------------------------------------------------------------


def work(operator: str, a: int, b: int, effort: Effort) -> tuple[str, int]:
    """The steps as text, and the result. Numbers of at most four digits; `a` ≥ `b` for a difference."""
    steps = {"+": _add, "-": _subtract, "*": _multiply}[operator](a, b, effort)
    result = {"+": a + b, "-": a - b, "*": a * b}[operator]
    if effort == "low":
        return " ".join(steps), result
    named = {"+": "sum", "-": "difference", "*": "product"}[operator]
    start = [f"The question is {a} {operator} {b}."] if effort == "high" else []
    between = "\n" if effort == "high" else " "
    return between.join([*start, *steps, f"The {named} is {result}."]), result


def _add(a: int, b: int, effort: Effort) -> list[str]:
    """Columns from the ones on, the carry as third summand: `Ones: 7 + 8 + 0 = 15, write 5, carry 1.`"""
    steps, carry = [f"{a:04d} + {b:04d}."], 0
    for place, (x, y) in enumerate(_columns(a, b)):
        total = x + y + carry
        steps.append(_written(f"{x} + {y} + {carry} = {total}", place, total % 10, f"carry {total // 10}", effort))
        carry = total // 10
    return steps


def _subtract(a: int, b: int, effort: Effort) -> list[str]:
    """Columns from the ones on, ten borrowed where the rest is negative: `Ones: 2 - 8 - 0 = -6, write 4, borrow 1.`"""
    steps, borrow = [f"{a:04d} - {b:04d}."], 0
    for place, (x, y) in enumerate(_columns(a, b)):
        rest = x - y - borrow
        steps.append(_written(f"{x} - {y} - {borrow} = {rest}", place, rest % 10, f"borrow {int(rest < 0)}", effort))
        borrow = int(rest < 0)
    return steps


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """The digits of both, from the ones on, as many as the longer one has."""
    width = max(len(str(a)), len(str(b)))
    upper, lower = (f"{n:0{width}d}" for n in (a, b))
    return [(int(x), int(y)) for x, y in zip(reversed(upper), reversed(lower), strict=True)]


def _written(shown: str, place: int, digit: int, over: str, effort: Effort) -> str:
    if effort == "low":
        return f"{shown}."
    return f"{PLACES[place]}: {shown}, write {digit}, {over}."


def _multiply(a: int, b: int, effort: Effort) -> list[str]:
    """The longer factor (the larger one if both are as long) times each digit of the other, then the products summed."""
    a, b = max(a, b), min(a, b)
    if a < 10:
        return [f"{a} * {b} = {a * b}."]
    if b < 10:
        return _by_digit(a, b, effort)
    tens, ones = divmod(b, 10)
    return [
        *_by_digit(a, ones, effort),
        f"{a} * {ones} = {a * ones}.",
        *_by_digit(a, tens, effort),
        f"{a} * {tens * 10} = {a * tens * 10}.",
        *_add(a * tens * 10, a * ones, effort),
    ]


def _by_digit(a: int, digit: int, effort: Effort) -> list[str]:
    """a · digit, by columns from the ones on: `Ones: 7 * 8 = 56, 56 + 0 = 56, write 6, carry 5.`"""
    steps, carry = [f"{a:04d} * {digit}."], 0
    for place, x in enumerate(map(int, reversed(str(a)))):
        product, total = x * digit, x * digit + carry
        shown = f"{x} * {digit} = {product}, {product} + {carry} = {total}"
        steps.append(_written(shown, place, total % 10, f"carry {total // 10}", effort))
        carry = total // 10
    return steps
