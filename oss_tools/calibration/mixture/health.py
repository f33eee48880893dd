"""Texts on health, for their words and their form: questions with answers, case vignettes, notes and leaflets."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any


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
