"""Arithmetic without eval: an expression is parsed, and only numbers, operators and a few functions are carried out."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from oss_tools.chat.tools.base import Tool, ToolError
from oss_tools.chat.written_calls import syntax_of

MAX_LENGTH = 400  # characters
MAX_BITS = 4096  # of an integer
MAX_DIGITS = 300  # to round to
SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "^": "**"})

Number = int | float

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
CONSTANTS: dict[str, Number] = {"pi": math.pi, "e": math.e}
REAL = ("sqrt", "exp", "log", "log2", "log10", "sin", "cos", "tan", "floor", "ceil")
FUNCTIONS: dict[str, Callable[..., Any]] = {name: getattr(math, name) for name in REAL}
FUNCTIONS |= {"abs": abs, "min": min, "max": max, "round": lambda value, digits=0: _rounded(value, digits)}


class Calculator(Tool):
    """The tool `calculator`."""

    schema: Mapping[str, Any] = {
        "name": "calculator",
        "description": "Evaluates an arithmetic expression",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "Arithmetic expression"}},
            "required": ["expression"],
        },
    }

    def run(self, arguments: Mapping[str, Any]) -> str:
        return written(evaluate(arguments["expression"]))


def evaluate(expression: str) -> Number:
    """The value of an expression such as `2 * (3 + 4) ** 2`. Raises ToolError, saying what is wrong with it."""
    if len(expression) > MAX_LENGTH:
        raise ToolError(f"the expression has {len(expression)} characters, at most {MAX_LENGTH} are allowed")
    text = expression.translate(SPELLINGS).strip()
    try:
        return _value(syntax_of(text))
    except (SyntaxError, RecursionError, MemoryError):
        raise ToolError(f"{expression!r} is no arithmetic expression") from None
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except OverflowError:
        raise ToolError("the result is too large") from None
    except (ValueError, TypeError) as error:
        raise ToolError(str(error)) from None


def _value(node: ast.AST) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _checked(value)
        case ast.BinOp(left, op, right) if type(op) in BINARY:
            return _binary(type(op), _value(left), _value(right))
        case ast.UnaryOp(op, operand) if type(op) in UNARY:
            return _checked(UNARY[type(op)](_value(operand)))
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return _checked(FUNCTIONS[name](*map(_value, args)))
    raise ToolError(f"{ast.unparse(node)[:60]!r} is not allowed; known are + - * / // % **, {', '.join(FUNCTIONS)}, pi, e")


def _binary(op: type[ast.operator], left: Number, right: Number) -> Number:
    if op is ast.Pow and isinstance(left, int) and isinstance(right, int):
        if right > 0 and left.bit_length() * right > MAX_BITS + right:
            raise OverflowError
        if right < -MAX_BITS:
            raise ToolError("the exponent is too small")
    return _checked(BINARY[op](left, right))


def _checked(value: Any) -> Number:
    if isinstance(value, complex):
        raise ToolError("the result is not a real number")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise OverflowError
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError
    return value


def _rounded(value: Number, digits: Number) -> Number:
    if not isinstance(digits, int) or abs(digits) > MAX_DIGITS:  # Python would compute 10 ** digits
        raise ToolError(f"round to between -{MAX_DIGITS} and {MAX_DIGITS} digits")
    return round(value, digits) if digits else round(value)


def written(value: Number) -> str:
    """The number with at most 12 significant digits; integers in full."""
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:.12g}"
    return str(int(value))
