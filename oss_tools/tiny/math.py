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

EFFORTS: tuple[Effort, ...] = ("low", "medium", "high")
KINDS = {"addition": 28, "subtraction": 24, "multiplication": 22, "story": 26}  # shares

ASK = {
    "+": ("What is {a} + {b}?", "{a} + {b} = ?", "Calculate {a} + {b}.", "Add {a} and {b}.", "What is {a} plus {b}?",
          "What is the sum of {a} and {b}?", "How much is {a} + {b}?"),
    "-": ("What is {a} - {b}?", "{a} - {b} = ?", "Calculate {a} - {b}.", "Subtract {b} from {a}.", "What is {a} minus {b}?",
          "What is the difference of {a} and {b}?", "How much is {a} - {b}?"),
    "*": ("What is {a} * {b}?", "{a} * {b} = ?", "Calculate {a} * {b}.", "Multiply {a} by {b}.", "What is {a} times {b}?",
          "What is the product of {a} and {b}?", "How much is {a} * {b}?"),
}  # fmt: skip
PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands")


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
        effort = rng.choice(EFFORTS)
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
    a, b = rng.choice(
        [(_number(rng, 1), _number(rng, 1)), (_number(rng, 3), _number(rng, 1)), (_number(rng, 2), _number(rng, 2))]
    )
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
    """The steps as text, and the result. `a` ≥ `b` for a difference."""
    steps, result = {"+": _add, "-": _subtract, "*": _multiply}[operator](a, b, effort)
    if effort == "low":
        return " ".join(steps), result
    named = {"+": "sum", "-": "difference", "*": "product"}[operator]
    start = [f"The question is {a} {operator} {b}."] if effort == "high" else []
    between = "\n" if effort == "high" else " "
    return between.join([*start, *steps, f"The {named} is {result}."]), result


def _add(a: int, b: int, effort: Effort) -> tuple[list[str], int]:
    """Columns from the ones on: `7 + 8 = 15, 5.` and the carry named as a third summand of the next column."""
    steps, carry = [], 0
    for place, (x, y) in enumerate(_columns(a, b)):
        total = x + y + carry
        shown = f"{x} + {y} + 1 = {total}" if carry else f"{x} + {y} = {total}"
        carry = total // 10
        steps.append(_written(shown, place, total % 10, carry, "carry 1", effort))
    return steps, a + b


def _subtract(a: int, b: int, effort: Effort) -> tuple[list[str], int]:
    """Columns from the ones on, ten borrowed where the upper digit is too small."""
    steps, borrowed = [], 0
    for place, (x, y) in enumerate(_columns(a, b)):
        rest = x - y - borrowed
        borrow = rest < 0
        digit = rest + 10 if borrow else rest
        upper = x + 10 if borrow else x
        shown = f"{upper} - {y} - 1 = {digit}" if borrowed else f"{upper} - {y} = {digit}"
        borrowed = int(borrow)
        steps.append(_written(shown, place, digit, borrowed, "borrow 1", effort))
    return steps, a - b


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """The digits of both, from the ones on, as many as the longer one has."""
    width = max(len(str(a)), len(str(b)))
    upper, lower = (f"{n:0{width}d}" for n in (a, b))
    return [(int(x), int(y)) for x, y in zip(reversed(upper), reversed(lower), strict=True)]


def _written(shown: str, place: int, digit: int, over: int, what: str, effort: Effort) -> str:
    if effort == "low":
        return f"{shown}."
    rest = f", {what}" if over else ""
    if effort == "medium":
        return f"{shown}, write {digit}{rest}."
    return f"{PLACES[place].capitalize()}: {shown}, write {digit}{rest}."


def _multiply(a: int, b: int, effort: Effort) -> tuple[list[str], int]:
    """Each place of the longer factor (by the larger one if both are as long) times the other, then the products summed."""
    if len(str(b)) > len(str(a)):
        a, b = b, a
    if a < 10:
        return [f"{a} * {b} = {a * b}."], a * b
    if b < 10:
        return _by_digit(a, b), a * b
    tens, ones = b // 10 * 10, b % 10
    steps = [f"{b} = {tens} + {ones}."] if effort != "low" else []
    steps += [*_by_digit(a, tens // 10), f"{a} * {tens} = {a * tens}.", *_by_digit(a, ones)]
    sums, _ = _add(a * tens, a * ones, "low")
    return [*steps, f"{a * tens} + {a * ones}:", *sums, f"{a * b}."], a * b


def _by_digit(a: int, digit: int) -> list[str]:
    """a · digit, from the left: `47 * 8: 40 * 8 = 320. 7 * 8 = 56. 320 + 56 = 376.`"""
    text = str(a)
    parts = [int(d) * 10 ** (len(text) - 1 - i) for i, d in enumerate(text)]
    parts = [part for part in parts if part] or [0]
    steps, total = [f"{a} * {digit}:"], 0
    for i, part in enumerate(parts):
        product = part * digit
        steps.append(f"{part} * {digit} = {product}.")
        if i:
            steps.append(f"{total} + {product} = {total + product}.")
        total += product
    return steps
