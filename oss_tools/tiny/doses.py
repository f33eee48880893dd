"""Dose arithmetic with whole numbers, worked so that every step is one that a very small model can do."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from oss_tools.chat.messages import Effort


@dataclass(frozen=True)
class Calculation:
    """One operation: its result, the shortest line that shows it, and the same in single steps."""

    result: int
    line: str
    steps: str


@dataclass(frozen=True)
class Problem:
    """A question with its numbers, the plan in words, the calculations in order, and the unit of the answer."""

    kind: str
    numbers: str  # what decides the split: every number (and unit) of the question
    question: str
    plan: str
    calculations: tuple[Calculation, ...]
    unit: str

    @property
    def answer(self) -> str:
        """The last result with its unit."""
        return f"{self.calculations[-1].result} {self.unit}"

    def analysis(self, effort: Effort) -> str:
        """The lines alone (low), with the answer (medium), or the plan, single steps and the answer (high)."""
        if effort == "low":
            return " ".join(done.line for done in self.calculations)
        if effort == "medium":
            return " ".join([*(done.line for done in self.calculations), f"So {self.answer}."])
        return " ".join([self.plan, *(done.steps for done in self.calculations), f"So {self.answer}."])


def multiply(a: int, b: int) -> Calculation:
    """a * b by the places of the longer number; the shorter is one digit or a power of ten."""
    short, long = (a, b) if len(str(a)) <= len(str(b)) else (b, a)
    places = [int(digit) * 10**power for power, digit in zip(range(len(str(long)) - 1, -1, -1), str(long), strict=True)]
    parts = [place for place in places if place]
    if len(parts) < 2 or short in (1, 10, 100, 1000):
        line = f"{a} * {b} = {a * b}."
        return Calculation(a * b, line, line)
    products = " + ".join(str(short * part) for part in parts)
    steps = " ".join(f"{short} * {part} = {short * part}." for part in parts)
    return Calculation(a * b, f"{a} * {b} = {products} = {a * b}.", f"{a} * {b}: {steps} {products} = {a * b}.")


def add(a: int, b: int) -> Calculation:
    """a + b of two digits: the tens first."""
    tens, ones = b // 10 * 10, b % 10
    line = f"{a} + {tens} = {a + tens}, {a + tens} + {ones} = {a + b}."
    return Calculation(a + b, line, line)


def subtract(a: int, b: int) -> Calculation:
    """a - b of two digits, not below zero: the tens first."""
    tens, ones = b // 10 * 10, b % 10
    line = f"{a} - {tens} = {a - tens}, {a - tens} - {ones} = {a - b}."
    return Calculation(a - b, line, line)


def divide(a: int, b: int) -> Calculation:
    """a / b without rest: zeros struck off both, then the tables, long division by one digit, or multiples counted up."""
    start, n, d = f"{a} / {b}", a, b
    while n % 10 == 0 and d % 10 == 0:
        n, d = n // 10, d // 10
    chain = start if n == a or d == 1 else f"{start} = {n} / {d}"
    if d == 1 or (d < 10 and n // d < 10):
        line = f"{chain} = {n // d}."
        return Calculation(n // d, line, line)
    work = _long_division(n, d) if d < 10 else [f"{times} * {d} = {times * d}" for times in range(1, n // d + 1)]
    head = "" if n == a else f"{chain}. "
    line = f"{head}{', '.join(work)}, so {n} / {d} = {n // d}."
    return Calculation(n // d, line, f"{head}{'. '.join(work)}. So {n} / {d} = {n // d}.")


def _long_division(n: int, d: int) -> list[str]:
    lines, rest, begun = [], 0, False
    for digit in str(n):
        rest = rest * 10 + int(digit)
        if begun or rest >= d:
            begun = True
            lines.append(f"{rest} / {d} = {rest // d}" + (f" rest {rest % d}" if rest % d else ""))
            rest %= d
    return lines


def by_weight(rng: random.Random) -> Problem:
    """mg per kg times the weight."""
    dose, weight = rng.randint(2, 9), rng.choice((rng.randint(3, 30), 5 * rng.randint(7, 19)))
    if rng.random() < 0.2:
        dose = 10
    question = rng.choice(
        [
            f"A dose is {dose} mg per kg. The patient weighs {weight} kg. How many mg?",
            f"A patient weighs {weight} kg. The dose is {dose} mg per kg. How many mg is the dose?",
            f"Give {dose} mg per kg to a child of {weight} kg. How many mg is that?",
        ]
    )
    return Problem(
        "dose_weight",
        f"{dose}-{weight}",
        question,
        "Multiply the dose per kg by the weight.",
        (multiply(dose, weight),),
        "mg",
    )


def _most(strength: int) -> int:
    """The largest quotient by this strength: small where its multiples have to be counted up."""
    return 9 if len(str(strength).rstrip("0")) == 1 else 5


def tablets(rng: random.Random) -> Problem:
    """Number of tablets for a dose."""
    strength = rng.choice([2, 5, 10, 20, 25, 40, 50, 75, 100, 125, 150, 200, 250, 300, 400, 500])
    number = rng.randint(2, _most(strength))
    dose = strength * number
    question = rng.choice(
        [
            f"A tablet has {strength} mg. The dose is {dose} mg. How many tablets?",
            f"The dose is {dose} mg. Each tablet has {strength} mg. How many tablets are needed?",
            f"How many tablets of {strength} mg make {dose} mg?",
        ]
    )
    plan = "Divide the dose by the mg in one tablet."
    return Problem("dose_tablets", f"{strength}-{dose}", question, plan, (divide(dose, strength),), "tablets")


def syrup(rng: random.Random) -> Problem:
    """Volume of a liquid medicine for a dose."""
    strength, volume = rng.choice([5, 10, 20, 25, 40, 50, 100, 120, 125, 200, 250]), rng.choice([1, 2, 5, 10])
    number = rng.randint(2, _most(strength))
    dose = strength * number
    question = rng.choice(
        [
            f"A syrup has {strength} mg per {volume} ml. How many ml give {dose} mg?",
            f"A syrup has {strength} mg in {volume} ml. The dose is {dose} mg. How many ml?",
            f"The dose is {dose} mg. The syrup has {strength} mg per {volume} ml. How many ml are needed?",
        ]
    )
    plan = f"Divide by {strength} mg, then multiply by {volume} ml."
    steps = (divide(dose, strength), multiply(number, volume))
    return Problem("dose_syrup", f"{strength}-{volume}-{dose}", question, plan, steps, "ml")


def per_day(rng: random.Random) -> Problem:
    """Tablets times strength times how often."""
    number, times = rng.randint(1, 3), rng.randint(2, 3)
    strength = rng.choice([5, 10, 20, 25, 40, 50, 75, 80, 100, 150, 200, 250, 300, 400, 500, 600])
    noun = "tablet" if number == 1 else "tablets"
    question = rng.choice(
        [
            f"Take {number} {noun} of {strength} mg {times} times a day. How many mg per day?",
            f"A patient takes {number} {noun} of {strength} mg {times} times a day. How many mg is that in a day?",
            f"{number} {noun} of {strength} mg, {times} times a day. How many mg a day?",
        ]
    )
    plan = "First the tablets per day, then the mg."
    steps = (multiply(number, times), multiply(number * times, strength))
    return Problem("dose_per_day", f"{number}-{strength}-{times}", question, plan, steps, "mg")


def split_dose(rng: random.Random) -> Problem:
    """A daily dose in equal parts."""
    times, dose = rng.choice([2, 3, 4, 5, 6]), rng.choice([5, 10]) * rng.randint(2, 30)
    total = times * dose
    question = rng.choice(
        [
            f"The daily dose is {total} mg in {times} equal doses. How many mg per dose?",
            f"A patient gets {total} mg per day in {times} equal doses. How many mg is each dose?",
            f"{total} mg a day is split into {times} equal doses. How many mg is one dose?",
        ]
    )
    plan = "Divide the daily dose by the number of doses."
    return Problem("dose_split", f"{total}-{times}", question, plan, (divide(total, times),), "mg")


def every_hours(rng: random.Random) -> Problem:
    """Number of doses in some days, one every so many hours."""
    hours, days = rng.choice([2, 3, 4, 6, 8, 12]), rng.randint(2, 30)
    question = rng.choice(
        [
            f"A drug is given every {hours} hours for {days} days. How many doses?",
            f"One dose is given every {hours} hours. How many doses in {days} days?",
            f"For {days} days a patient gets a dose every {hours} hours. How many doses is that?",
        ]
    )
    first = divide(24, hours) if hours < 12 else Calculation(2, "24 / 12 = 2.", "24 / 12 = 2.")
    second = multiply(first.result, days) if first.result < 10 else multiply(days, first.result)
    if first.result > 9 and days > 9:
        return every_hours(rng)
    plan = "A day has 24 hours. First the doses per day."
    return Problem("dose_hours", f"{hours}-{days}", question, plan, (first, second), "doses")


def supply(rng: random.Random) -> Problem:
    """Days that a bottle lasts."""
    number, times, days = rng.randint(1, 3), rng.randint(2, 3), rng.randint(2, 40)
    total, noun = number * times * days, "tablet" if number == 1 else "tablets"
    question = rng.choice(
        [
            f"A bottle has {total} tablets. Take {number} {noun} {times} times a day. How many days does it last?",
            f"A patient takes {number} {noun} {times} times a day. For how many days do {total} tablets last?",
        ]
    )
    plan = "First the tablets per day, then divide."
    steps = (multiply(number, times), divide(total, number * times))
    return Problem("dose_supply", f"{total}-{number}-{times}", question, plan, steps, "days")


def infusion(rng: random.Random) -> Problem:
    """ml per hour of an infusion."""
    hours, rate = rng.choice([2, 3, 4, 5, 6, 8]), 10 * rng.randint(2, 25)
    total = hours * rate
    question = rng.choice(
        [
            f"An infusion of {total} ml runs for {hours} hours. How many ml per hour?",
            f"Give {total} ml in {hours} hours. How many ml per hour?",
            f"A bag of {total} ml runs over {hours} hours. What is the rate in ml per hour?",
        ]
    )
    plan = "Divide the ml by the hours."
    return Problem("dose_infusion", f"{total}-{hours}", question, plan, (divide(total, hours),), "ml per hour")


def drops(rng: random.Random) -> Problem:
    """Drops per minute of a drip set."""
    factor = rng.choice([10, 15, 20])
    share = 60 // factor
    rate = share * rng.randint(4, 40)
    question = rng.choice(
        [
            f"A drip gives {factor} drops per ml. The rate is {rate} ml per hour. How many drops per minute?",
            f"The rate is {rate} ml per hour and the drip set gives {factor} drops per ml. How many drops per minute?",
        ]
    )
    by_set = f"60 / {factor} = {share}."
    plan = f"Divide the rate by 60 / {factor}."
    steps = (Calculation(share, by_set, by_set), divide(rate, share))
    return Problem("dose_drops", f"{factor}-{rate}", question, plan, steps, "drops per minute")


# large unit, small unit, how many of the small one the large one has, the most of the large one in a question
UNITS = [
    ("g", "mg", 1000, 9),
    ("mg", "mcg", 1000, 9),
    ("kg", "g", 1000, 9),
    ("liters", "ml", 1000, 9),
    ("meters", "cm", 100, 99),
    ("cm", "mm", 10, 500),
    ("hours", "minutes", 60, 40),
    ("weeks", "days", 7, 60),
    ("teaspoons", "ml", 5, 60),
    ("tablespoons", "teaspoons", 3, 60),
]


def convert(rng: random.Random) -> Problem:
    """Whole conversions between units, both ways."""
    large, small, factor, most = rng.choice(UNITS)
    number = rng.randint(2, most)
    if factor == 60:
        number = rng.randint(2, 9) if rng.random() < 0.7 else rng.choice([10, 20, 30, 40])
    if rng.random() < 0.5:
        calculation, given, unit, other = multiply(number, factor), number, large, small
        plan = f"{large} to {small}: multiply by {factor}."
    else:
        calculation, given, unit, other = divide(number * factor, factor), number * factor, small, large
        plan = f"{small} to {large}: divide by {factor}."
    question = rng.choice(
        [
            f"How many {other} are {given} {unit}?",
            f"Convert {given} {unit} to {other}.",
            f"{given} {unit} is how many {other}?",
        ]
    )
    return Problem("unit_conversion", f"{given}-{unit}-{other}", question, plan, (calculation,), other)


def temperature(rng: random.Random) -> Problem:
    """Celsius to Fahrenheit and back, where both are whole."""
    fifth = 2 * rng.randint(0, 20) if rng.random() < 0.7 else rng.randint(0, 24)
    celsius, fahrenheit = 5 * fifth, 9 * fifth + 32
    if rng.random() < 0.5:
        question = rng.choice([f"How many degrees F are {celsius} degrees C?", f"Convert {celsius} degrees C to degrees F."])
        steps = (divide(celsius, 5), multiply(fifth, 9), add(9 * fifth, 32))
        return Problem("temperature", f"{celsius}C", question, "Divide by 5, multiply by 9, add 32.", steps, "degrees F")
    question = rng.choice(
        [f"How many degrees C are {fahrenheit} degrees F?", f"Convert {fahrenheit} degrees F to degrees C."]
    )
    steps = (subtract(fahrenheit, 32), divide(9 * fifth, 9), multiply(fifth, 5))
    return Problem("temperature", f"{fahrenheit}F", question, "Subtract 32, divide by 9, multiply by 5.", steps, "degrees C")


PROBLEMS: tuple[Callable[[random.Random], Problem], ...] = (
    by_weight,
    tablets,
    syrup,
    per_day,
    split_dose,
    every_hours,
    supply,
    infusion,
    drops,
    convert,
    temperature,
)
