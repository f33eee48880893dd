"""Mathematical expressions: their values, and whether two are equal.

Equality needs no computer algebra: numbers are exact fractions as long as the operations allow it, and expressions with
variables, roots or functions are compared by their values at a few points, which two different expressions practically never
share (Schwartz–Zippel, https://doi.org/10.1145/322217.322225).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

LARGEST_POWER_BITS = 4096  # of an exact power; what is larger becomes a float


TOLERANCE = 1e-9  # relative, where values are floats


POINTS = 4


class NotMathematics(ValueError):
    """The text is no expression that this module reads."""


@dataclass(frozen=True)
class Expression:
    """A number, a symbol, or an operation on expressions.

    Attributes:
        name: "number", "symbol", or the operation: add, multiply, divide, power, negate, factorial, percent, root, or a
            function's name.
        arguments: of the operation.
        value: of a number.
        symbol: of a symbol, with its subscript.
    """

    name: str
    arguments: tuple[Expression, ...] = ()
    value: Fraction = Fraction(0)
    symbol: str = ""


Value = Fraction | complex


CONSTANTS: Mapping[str, complex] = {"pi": math.pi, "e": math.e, "i": 1j, "infty": math.inf}


def free_symbols(expression: Expression) -> set[str]:
    """The variables' names, subscripts included."""
    if expression.name == "symbol":
        return set() if expression.symbol in CONSTANTS else {expression.symbol}
    return set().union(*(free_symbols(argument) for argument in expression.arguments))


def same_value(first: Expression, second: Expression) -> bool:
    """Whether both are equal for all values of their variables."""
    names = sorted(free_symbols(first) | free_symbols(second))
    return all(_close(evaluate(first, point), evaluate(second, point)) for point in _points(names))


def same_up_to_factor(first: Expression, second: Expression) -> bool:
    """Whether one is a constant multiple of the other, none being zero: so equations with zero on one side say the same."""
    names = sorted(free_symbols(first) | free_symbols(second))
    pairs = [(complex(evaluate(first, point)), complex(evaluate(second, point))) for point in _points(names)]
    if any(abs(a) < TOLERANCE or abs(b) < TOLERANCE for a, b in pairs):
        return False
    return all(_close(a / b, pairs[0][0] / pairs[0][1]) for a, b in pairs)


def _points(names: list[str]) -> Iterator[dict[str, Value]]:
    """Points that are the same in every run; one is enough where there are no variables."""
    for point in range(POINTS if names else 1):
        yield {
            name: Fraction(7 + (37 * i + 11 * point * point + 23 * point) % 97, 13 + 4 * point)
            for i, name in enumerate(names)
        }


def _close(first: Value, second: Value) -> bool:
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first == second
    first, second = _complex(first), _complex(second)
    if cmath.isnan(first) or cmath.isnan(second):
        return False
    if cmath.isinf(first) or cmath.isinf(second):
        return first == second
    return abs(first - second) <= TOLERANCE * max(1.0, abs(first), abs(second)) and (
        abs(first) > 1e-6 or abs(first - second) < 1e-15
    )


def _complex(value: Value) -> complex:
    try:
        return complex(value)
    except OverflowError:
        return complex(math.inf if value.real > 0 else -math.inf)


def evaluate(expression: Expression, point: Mapping[str, Value]) -> Value:
    """The value at a point: a fraction where every step is exact, otherwise a complex number.

    Raises NotMathematics where there is no value (division by zero, the logarithm of zero, a symbol that the point lacks).
    """
    if expression.name == "number":
        return expression.value
    if expression.name == "symbol":
        if expression.symbol in point:
            return point[expression.symbol]
        if expression.symbol in CONSTANTS:
            return CONSTANTS[expression.symbol]
        raise NotMathematics(f"no value for {expression.symbol}")
    values = [evaluate(argument, point) for argument in expression.arguments]
    try:
        return OPERATIONS[expression.name](*values)
    except (ValueError, OverflowError, ZeroDivisionError, TypeError) as failure:
        raise NotMathematics(f"{expression.name}: {failure}") from failure


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent.numerator) <= LARGEST_POWER_BITS:
            return base**exponent.numerator
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and base > 0:
        exact = _exact_root(base, exponent.denominator)
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exact is not None and bits * abs(exponent.numerator) <= LARGEST_POWER_BITS:
            return exact**exponent.numerator
    return complex(base) ** complex(exponent)


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The positive root if it is a fraction."""
    if not 1 <= degree <= 64 or max(value.numerator.bit_length(), value.denominator.bit_length()) > LARGEST_POWER_BITS:
        return None
    top, bottom = _integer_root(value.numerator, degree), _integer_root(value.denominator, degree)
    return Fraction(top, bottom) if top**degree == value.numerator and bottom**degree == value.denominator else None


def _integer_root(value: int, degree: int) -> int:
    """floor(value ** (1 / degree)), exactly, by Newton's method."""
    if value < 2 or degree == 1:
        return value
    guess = 1 << -(-value.bit_length() // degree)
    while True:
        better = ((degree - 1) * guess + value // guess ** (degree - 1)) // degree
        if better >= guess:
            return guess
        guess = better


def _root(value: Value, degree: Value = Fraction(2)) -> Value:
    """The principal root, but the real one of a negative number where the degree is odd, as schools teach it."""
    whole = isinstance(degree, Fraction) and degree.denominator == 1 and degree > 0
    if whole and isinstance(value, Fraction) and (value >= 0 or degree.real % 2):
        exact = _exact_root(abs(value), int(degree.real))
        if exact is not None:
            return exact if value >= 0 else -exact
        return complex(math.copysign(float(abs(value)) ** (1 / int(degree.real)), value))
    return cmath.sqrt(complex(value)) if degree == 2 else complex(value) ** (1 / complex(degree))


def _factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 500:
        raise ValueError("a factorial of this")
    return Fraction(math.factorial(value.numerator))


def _binomial(above: Value, below: Value) -> Value:
    whole = isinstance(above, Fraction) and isinstance(below, Fraction) and above.denominator == below.denominator == 1
    if not whole or not 0 <= below.real <= above.real <= 2000:
        raise ValueError("binomial coefficient of these")
    return Fraction(math.comb(int(above.real), int(below.real)))


def _logarithm(value: Value, base: Value = Fraction(10)) -> Value:
    return cmath.log(complex(value)) / cmath.log(complex(base))


def _real(function: Callable[..., int | Fraction]) -> Callable[..., Value]:
    def on_fractions(*values: Value) -> Value:
        if not all(isinstance(value, Fraction) or value.imag == 0 for value in values):
            raise ValueError("of a complex number")
        return Fraction(function(*(value if isinstance(value, Fraction) else Fraction(value.real) for value in values)))

    return on_fractions


def _of_integers(function: Callable[..., int]) -> Callable[..., Value]:
    def on_fractions(*values: Value) -> Value:
        if not all(isinstance(value, Fraction) and value.denominator == 1 for value in values):
            raise ValueError("of what is no integer")
        return Fraction(function(*(int(value.real) for value in values)))

    return on_fractions


def _on_complex(function: Callable[[complex], complex]) -> Callable[[Value], Value]:
    return lambda value: function(complex(value))


def _add(*values: Value) -> Value:
    total: Value = Fraction(0)
    for value in values:
        total = (
            total + value if isinstance(total, Fraction) == isinstance(value, Fraction) else complex(total) + complex(value)
        )
    return total


def _multiply(*values: Value) -> Value:
    product: Value = Fraction(1)
    for value in values:
        same = isinstance(product, Fraction) == isinstance(value, Fraction)
        product = product * value if same else complex(product) * complex(value)
    return product


def _divide(above: Value, below: Value) -> Value:
    if isinstance(above, Fraction) and isinstance(below, Fraction):
        return above / below
    return complex(above) / complex(below)


OPERATIONS: dict[str, Callable[..., Value]] = {
    "add": _add,
    "multiply": _multiply,
    "divide": _divide,
    "negate": lambda value: -value,
    "power": _power,
    "root": _root,
    "sqrt": _root,
    "cbrt": lambda value: _root(value, Fraction(3)),
    "factorial": _factorial,
    "binomial": _binomial,
    "percent": lambda value: _divide(value, Fraction(100)),
    "degrees": lambda value: value,
    "abs": lambda value: abs(value) if isinstance(value, Fraction) else complex(abs(value)),
    "floor": _real(math.floor),
    "ceil": _real(math.ceil),
    "min": _real(min),
    "max": _real(max),
    "gcd": _of_integers(math.gcd),
    "lcm": _of_integers(math.lcm),
    "log": _logarithm,
    "lg": _logarithm,
    "ln": _on_complex(cmath.log),
    "exp": _on_complex(cmath.exp),
    "sin": _on_complex(cmath.sin),
    "cos": _on_complex(cmath.cos),
    "tan": _on_complex(cmath.tan),
    "cot": _on_complex(lambda value: 1 / cmath.tan(value)),
    "sec": _on_complex(lambda value: 1 / cmath.cos(value)),
    "csc": _on_complex(lambda value: 1 / cmath.sin(value)),
    "arcsin": _on_complex(cmath.asin),
    "arccos": _on_complex(cmath.acos),
    "arctan": _on_complex(cmath.atan),
    "sinh": _on_complex(cmath.sinh),
    "cosh": _on_complex(cmath.cosh),
    "tanh": _on_complex(cmath.tanh),
}
