"""Composes mathematics.txt, health.txt and chats.jsonl beside it: `python -m oss_tools.calibration.mixture.compose`.

Facts, phrases and tools are in `facts.yaml`; numbers and choices are drawn, the same at every run.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import comb, gcd, isqrt
from pathlib import Path
from typing import Any

from oss_tools.checkpoints.yaml_files import read_yaml

HERE = Path(__file__).parent
BYTES = {"mathematics.txt": 80_000, "health.txt": 80_000, "chats.jsonl": 110_000}
SEED = 20250101


def main() -> None:
    facts = read_yaml(HERE / "facts.yaml")
    for name, pieces in (("mathematics.txt", mathematics), ("health.txt", health), ("chats.jsonl", chats)):
        rng, text = random.Random(SEED), ""
        for piece in pieces(rng, facts):
            if len((text + piece).encode()) > BYTES[name]:
                break
            text += piece
        (HERE / name).write_text(text, encoding="utf-8")


# ---- mathematics ----------------------------------------------------------------------------------------------------


def mathematics(rng: random.Random, facts: Any) -> Iterator[str]:
    """Worked problems, and now and then a theorem with its proof."""
    makers = [linear, quadratic, derivative, euclid, percentage, binomial, series, triangle, system, rate, integral, modular]
    theorems = list(facts["theorems"])
    while True:
        rng.shuffle(makers)
        for number, make in enumerate(makers):
            if number % 4 == 0 and theorems:
                yield theorems.pop(0).strip() + "\n\n"
            yield f"{make(rng, facts)}\n\n"


def linear(rng: random.Random, facts: Any) -> str:
    a, c = rng.sample(range(2, 14), 2)
    x = rng.randint(-12, 15)
    b, d = rng.randint(-30, 30), 0
    d = (a - c) * x + b
    opening = rng.choice(facts["phrases"]["solve"]).format(
        f"{a}x {b:+d} = {c}x {d:+d}".replace("+", "+ ").replace("-", "- ")
    )
    return (
        f"{opening}\n\nCollect the terms in x on the left and the constants on the right: {a}x - {c}x = {d} - ({b}), "
        f"which is "
        f"{a - c}x = {d - b}. Divide both sides by {a - c}. So x = {x}. Check: the left side is {a} · ({x}) + ({b}) = "
        f"{a * x + b}, and "
        f"the right side is {c} · ({x}) + ({d}) = {c * x + d}."
    )


def quadratic(rng: random.Random, facts: Any) -> str:
    p, q = rng.sample([n for n in range(-9, 10) if n], 2)
    b, c = -(p + q), p * q
    disc = b * b - 4 * c
    return (
        f"{rng.choice(facts['phrases']['roots']).format(f'x^2 + ({b})x + ({c}) = 0')}\n\n"
        f"The discriminant is $({b})^2 - 4 \\cdot ({c}) = {disc}$, whose square root is {isqrt(disc)}. The quadratic "
        f"formula gives\n"
        f"$$x = \\frac{{{-b} \\pm {isqrt(disc)}}}{{2}},$$\nhence the two solutions are $x_1 = {max(p, q)}$ and $x_2 = "
        f"{min(p, q)}$. "
        f"By Vieta's relations their sum must be {-b} and their product {c}, and indeed ${p} + ({q}) = {p + q}$, "
        f"${p} \\cdot ({q}) = {p * q}$."
    )


def derivative(rng: random.Random, facts: Any) -> str:
    n, a, b = rng.randint(2, 6), rng.randint(2, 9), rng.randint(2, 7)
    at = rng.randint(1, 3)
    return (
        f"Let $f(x) = {a}x^{{{n}}} + {b}\\sin x$. {rng.choice(facts['phrases']['derive'])}\n\n"
        f"The power rule gives $\\frac{{d}}{{dx}} {a}x^{{{n}}} = {a * n}x^{{{n - 1}}}$, and the derivative of the sine "
        f"is the cosine, so\n"
        f"\\[ f'(x) = {a * n}x^{{{n - 1}}} + {b}\\cos x. \\]\nAt $x = {at}$ the first term is {a * n * at ** (n - 1)}; "
        f"a second "
        f"differentiation gives $f''(x) = {a * n * (n - 1)}x^{{{n - 2}}} - {b}\\sin x$."
    )


def euclid(rng: random.Random, facts: Any) -> str:
    g = rng.randint(2, 24)
    a, b = g * rng.randint(11, 60), g * rng.randint(5, 40)
    steps, x, y = [], max(a, b), min(a, b)
    while y:
        steps.append(f"{x} = {x // y} · {y} + {x % y}")
        x, y = y, x % y
    return (
        f"{rng.choice(facts['phrases']['divisor']).format(a, b)}\n\nEuclid's algorithm divides with remainder until "
        f"nothing is left:\n"
        + "\n".join(steps)
        + f"\nThe last remainder that is not zero is {x}, so gcd({a}, {b}) = {x} and lcm({a}, {b}) = {a * b // gcd(a, b)}."
    )


def percentage(rng: random.Random, facts: Any) -> str:
    thing, price, off = rng.choice(facts["things"]), rng.randint(20, 900), rng.choice([5, 10, 12, 15, 20, 25, 30, 40])
    then = rng.choice([4, 8, 10, 16, 19, 21])
    lower = Fraction(price * (100 - off), 100)
    total = lower * Fraction(100 + then, 100)
    return (
        f"A {thing} is priced at ${price}. The shop takes {off}% off, and then {then}% tax is added. "
        f"{rng.choice(facts['phrases']['pay'])}\n\nAfter the discount {100 - off}% of the price remains: "
        f"0.{100 - off:02d} × {price} = "
        f"{float(lower):.2f} dollars. Tax multiplies this by {1 + then / 100:.2f}, which makes {float(total):.2f} "
        f"dollars. Note that the "
        f"order does not matter, because multiplication commutes; only the sum {then} - {off} would be the wrong shortcut."
    )


def binomial(rng: random.Random, facts: Any) -> str:
    n, k = rng.randint(4, 9), rng.randint(1, 4)
    k = min(k, n - 1)
    p = Fraction(1, rng.choice([2, 3, 4, 6]))
    chance = comb(n, k) * p**k * (1 - p) ** (n - k)
    return (
        f"An experiment succeeds with probability {p}, independently each time. It is done {n} times. "
        f"{rng.choice(facts['phrases']['chance']).format(k)}\n\nThere are C({n}, {k}) = {comb(n, k)} ways to place the "
        f"successes, each of "
        f"probability ({p})^{k} · ({1 - p})^{n - k}. The product is {chance} ≈ {float(chance):.4f}. The expected number "
        f"of successes is "
        f"{n * p}, with variance {n * p * (1 - p)}."
    )


def series(rng: random.Random, facts: Any) -> str:
    first, step, n = rng.randint(1, 20), rng.randint(2, 9), rng.randint(8, 40)
    last = first + (n - 1) * step
    return (
        f"Compute the sum of the arithmetic progression {first}, {first + step}, {first + 2 * step}, …, {last}.\n\nThe "
        f"common difference "
        f"is {step}, so the number of terms is ({last} - {first}) / {step} + 1 = {n}. Write the sum forwards and "
        f"backwards and add: each of "
        f"the {n} columns gives {first} + {last} = {first + last}. Therefore 2S = {n} · {first + last} = "
        f"{n * (first + last)}, and "
        f"S = {n * (first + last) // 2}."
    )


def triangle(rng: random.Random, facts: Any) -> str:
    m, n = sorted(rng.sample(range(1, 9), 2), reverse=True)
    a, b, c = m * m - n * n, 2 * m * n, m * m + n * n
    return (
        f"In a right triangle the legs measure {a} cm and {b} cm. {rng.choice(facts['phrases']['triangle'])}\n\nBy the "
        f"theorem of "
        f"Pythagoras the hypotenuse satisfies c² = {a}² + {b}² = {a * a} + {b * b} = {c * c}, so c = {c} cm. The area "
        f"is half the product of "
        f"the legs, {a * b / 2:g} cm², and the perimeter {a + b + c} cm. The sine of the angle opposite the first leg "
        f"is {Fraction(a, c)}."
    )


def system(rng: random.Random, facts: Any) -> str:
    x, y = rng.randint(-6, 9), rng.randint(-6, 9)
    a, b, c, d = 1, 0, 1, 0
    while a * d == b * c:
        a, b, c, d = (rng.randint(1, 7) for _ in range(4))
    return (
        f"Find x and y with\n  {a}x + {b}y = {a * x + b * y}\n  {c}x + {d}y = {c * x + d * y}\n\nMultiply the first "
        f"equation by {d} and the "
        f"second by {b}, then subtract. The unknown y cancels: ({a * d} - {b * c})x = {d * (a * x + b * y)} - "
        f"{b * (c * x + d * y)}, that is "
        f"{a * d - b * c}x = {(a * d - b * c) * x}. Thus x = {x}, and substituting back gives y = {y}. The determinant "
        f"{a * d - b * c} is not "
        f"zero, so there is no other solution."
    )


def rate(rng: random.Random, facts: Any) -> str:
    u, v, t = rng.randint(40, 80), rng.randint(82, 130), rng.randint(1, 3)
    meet = Fraction(u * t, v - u)
    return (
        f"{rng.choice(facts['phrases']['trains']).format(u, v, t)}\n\nWhen the second one starts, the first is {u} · "
        f"{t} = {u * t} km ahead. "
        f"The gap shrinks by {v} - {u} = {v - u} km every hour, so it closes after {u * t}/{v - u} = {meet} h, about "
        f"{float(meet) * 60:.0f} minutes. Both are then {float(meet * v):.1f} km from the start."
    )


def integral(rng: random.Random, facts: Any) -> str:
    n, a, top = rng.randint(1, 5), rng.randint(1, 9), rng.randint(2, 5)
    value = Fraction(a * top ** (n + 1), n + 1)
    return (
        f"Evaluate $\\int_0^{{{top}}} {a}x^{{{n}}}\\,dx$.\n\nAn antiderivative of ${a}x^{{{n}}}$ is "
        f"$\\frac{{{a}}}{{{n + 1}}}x^{{{n + 1}}}$. "
        f"By the fundamental theorem of calculus the integral equals its value at {top} less its value at 0, which is "
        f"$\\frac{{{a} \\cdot {top ** (n + 1)}}}{{{n + 1}}} = {value}$."
    )


def modular(rng: random.Random, facts: Any) -> str:
    p, a = rng.choice([7, 11, 13, 17, 19, 23]), rng.randint(2, 6)
    e = rng.randint(20, 200)
    small = e % (p - 1)
    return (
        f"What is the remainder of {a}^{e} on division by {p}?\n\nSince {p} is prime and does not divide {a}, Fermat's "
        f"little theorem says "
        f"{a}^{p - 1} ≡ 1 (mod {p}). Now {e} = {e // (p - 1)} · {p - 1} + {small}, so {a}^{e} ≡ {a}^{small} (mod {p}). "
        f"The answer is "
        f"{pow(a, e, p)}."
    )


# ---- health ---------------------------------------------------------------------------------------------------------


def health(rng: random.Random, facts: Any) -> Iterator[str]:
    """Questions of patients with answers, case vignettes with choices, and short notes of clinicians."""
    conditions = facts["conditions"]
    makers: list[Callable[[random.Random, Any, Any], str]] = [asked, vignette, note, leaflet]
    while True:
        for condition in rng.sample(conditions, len(conditions)):
            yield makers[rng.randrange(len(makers))](rng, facts, condition) + "\n\n"


def asked(rng: random.Random, facts: Any, c: Any) -> str:
    phrases = facts["phrases"]
    return (
        f"Question: {rng.choice(phrases['worried']).format(rng.choice(c['signs']), rng.choice(facts['spans']), c['name'])}\n"
        f"Answer: {rng.choice(phrases['reply'])} {c['about']} {c['care']} {rng.choice(phrases['seek'])} {c['alarm']}"
    )


def vignette(rng: random.Random, facts: Any, c: Any) -> str:
    wrong = rng.sample([other["name"] for other in facts["conditions"] if other["name"] != c["name"]], 3)
    options = [c["name"], *wrong]
    rng.shuffle(options)
    letters = "ABCD"
    listed = "\n".join(f"({letter}) {option.capitalize()}" for letter, option in zip(letters, options, strict=True))
    first, second = rng.sample(c["signs"], 2)
    pulse, pressure = rng.randint(58, 118), rng.randint(102, 164)
    return (
        f"A {rng.randint(19, 84)}-year-old {rng.choice(facts['people'])} presents with {first}, noticed "
        f"{rng.choice(facts['spans'])}. There "
        f"is also {second}. Pulse {pulse}/min, blood pressure {pressure}/{pressure - rng.randint(35, 62)} mmHg, temperature "
        f"{rng.randint(363, 391) / 10} °C. {rng.choice(facts['phrases']['likely'])}\n{listed}\n\nThe answer is "
        f"({letters[options.index(c['name'])]}). {c['about']} "
        f"{rng.choice(facts['phrases']['against']).format(wrong[0], wrong[1])}"
    )


def note(rng: random.Random, facts: Any, c: Any) -> str:
    signs = ", ".join(rng.sample(c["signs"], 2))
    return (
        f"Clinic note. {rng.choice(facts['people']).capitalize()}, {rng.randint(21, 80)} y. S: {signs} for "
        f"{rng.choice(facts['spans'])}. "
        f"O: alert, weight {rng.randint(52, 104)} kg, oxygen saturation {rng.randint(94, 99)}%, creatinine "
        f"{rng.randint(55, 112)} µmol/L. A: probable {c['name']}. P: {c['care']} Review in {rng.randint(2, 12)} weeks; "
        f"told to return "
        f"early: {c['alarm']}"
    )


def leaflet(rng: random.Random, facts: Any, c: Any) -> str:
    signs = "\n".join(f"- {sign}" for sign in c["signs"])
    return (
        f"## {c['name'].capitalize()}\n\n{c['about']}\n\n**What people notice**\n{signs}\n\n**What helps.** {c['care']}\n\n"
        f"**When to get help.** {c['alarm']}"
    )


# ---- conversations --------------------------------------------------------------------------------------------------


def chats(rng: random.Random, facts: Any) -> Iterator[str]:
    """Conversations as JSON Lines, most of them with tools."""
    plain = list(facts["dialogues"])
    while True:
        for _ in range(3):
            yield json.dumps(tool_chat(rng, facts), ensure_ascii=False) + "\n"
        if plain:
            yield json.dumps({"messages": plain.pop(0)}, ensure_ascii=False) + "\n"
        else:
            yield json.dumps(health_chat(rng, facts), ensure_ascii=False) + "\n"


def tool_chat(rng: random.Random, facts: Any) -> dict[str, Any]:
    """Two or three requests that tools answer, and thanks at the end."""
    offered = rng.sample(facts["tools"], rng.randint(2, 4))
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": rng.choice(facts["instructions"])})
    for number, tool in enumerate(rng.sample(offered, min(len(offered), rng.randint(1, 3)))):
        values = {key: rng.choice(choices) for key, choices in tool["values"].items()}
        call = {"id": f"call_{number}", "type": "function", "function": {"name": tool["name"], "arguments": values}}
        thought = rng.choice(facts["phrases"]["thought"]).format(tool["name"], ", ".join(values))
        messages += [
            {"role": "user", "content": rng.choice(tool["asks"]).format(**values)},
            {"role": "assistant", "content": "", "reasoning_content": thought, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": rng.choice(tool["results"]).format(**values)},
            {"role": "assistant", "content": rng.choice(tool["answers"]).format(**values)},
        ]
    tools = [{"type": "function", "function": _schema(tool)} for tool in offered]
    return {"messages": messages, "tools": tools}


def _schema(tool: Any) -> dict[str, Any]:
    properties = {key: {"type": kind, "description": about} for key, (kind, about) in tool["parameters"].items()}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"name": tool["name"], "description": tool["description"], "parameters": parameters}


def health_chat(rng: random.Random, facts: Any) -> dict[str, Any]:
    c = rng.choice(facts["conditions"])
    phrases = facts["phrases"]
    question = rng.choice(phrases["worried"]).format(rng.choice(c["signs"]), rng.choice(facts["spans"]), c["name"])
    return {
        "messages": [
            {"role": "user", "content": question},
            {
                "role": "assistant",
                "content": f"{rng.choice(phrases['reply'])} {c['about']} {c['care']}",
                "reasoning_content": rng.choice(phrases["weighing"]).format(c["name"]),
            },
            {"role": "user", "content": rng.choice(phrases["follow"])},
            {"role": "assistant", "content": f"{rng.choice(phrases['seek'])} {c['alarm']}"},
        ]
    }


if __name__ == "__main__":
    main()
