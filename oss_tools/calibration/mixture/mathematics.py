"""Worked problems with drawn numbers, and theorems with their proofs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from math import comb, gcd, isqrt
from typing import Any


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
