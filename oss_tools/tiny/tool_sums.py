"""Sums for the calculator among the tools: an expression, a question for it, and its value."""

from __future__ import annotations

import random
import re

from oss_tools.tiny.items import Split, split_of


def drawn_sum(rng: random.Random, split: Split) -> tuple[str, str, str]:
    """An expression of this split, a question for it, and its value as text."""
    while split_of(_sum_key(expression := _expression(rng))) != split:
        pass
    spoken = expression
    if rng.random() < 0.2 and "(" not in expression:
        for sign, word in (("+", "plus"), ("-", "minus"), ("*", "times"), ("/", "divided by")):
            spoken = spoken.replace(f" {sign} ", f" {word} ")
    form = rng.choice(
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
    use = rng.choice(("", " Use the calculator.", " Use the calculator."))
    return expression, form.format(spoken) + use, _evaluated(expression, rng.choice((2, 4, 6, 10)))


def _expression(rng: random.Random) -> str:
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
