"""Arithmetic without eval."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.chat.tools.base import ToolError
from oss_tools.chat.tools.calculator import Calculator, evaluate
from oss_tools.tiny.tool_use import CALCULATOR

NUMBERS = st.integers(0, 999).map(str) | st.floats(0.01, 999).map(lambda x: f"{x:.2f}")
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.builds("({}{}{})".format, inner, st.sampled_from("+-*/"), inner) | inner.map("-{}".format),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("47 + 38", "85"),
        ("6 × 7 − 2", "40"),
        ("84 ÷ 4", "21"),
        ("0.1 + 0.2", "0.3"),
        ("2 ^ 10", "1024"),
        ("2 ** -1", "0.5"),
        ("7 // 2 + 7 % 2", "4"),
        ("sqrt(2)", "1.41421356237"),
        ("round(2.675, 1) + max(1, 2, abs(-3))", "5.7"),
        ("2 * pi", "6.28318530718"),
        ("10 ** 20", "100000000000000000000"),
    ],
)
def test_results(expression: str, result: str) -> None:
    assert Calculator().call({"expression": expression}) == result


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "(1).__class__",
        "[1][0]",
        "1 if True else 2",
        "lambda: 1",
        "x",
        "sqrt",
        "sqrt(x=4)",
        "'a' * 9",
        "True + 1",
        "1j",
        "",
        "2 +",
        "1; 2",
        "\0",
        "(" * 300 + "1",
        "-" * 399 + "1",
        "9" * 500,
        "2 ** 99999",
        "9 ** 9 ** 9",
        "2 ** -99999999",
        "round(5, -1000000000)",
        "9.0 ** 999",
        "1e999",
        "(-8) ** 0.5",
        "sqrt(-1)",
        "1 / 0",
        "min(1)",
        "log(0)",
    ],
)
def test_everything_else_is_an_error(expression: str) -> None:
    if expression.startswith("-" * 9):
        assert evaluate(expression) == -1
        return
    with pytest.raises(ToolError):
        evaluate(expression)


def test_it_is_the_calculator_that_the_embedded_model_has_learnt() -> None:
    assert Calculator.schema == CALCULATOR


@settings(deadline=None, max_examples=300)
@given(EXPRESSIONS)
def test_results_are_python_s(expression: str) -> None:
    try:
        expected = eval(expression)
    except ZeroDivisionError:
        with pytest.raises(ToolError, match="division by zero"):
            evaluate(expression)
    else:
        assert math.isclose(evaluate(expression), expected, rel_tol=1e-12)


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from("0123456789+-*/%^().,e sqrtabpi!\n'"), max_size=40))
def test_any_text_is_a_result_or_an_error(expression: str) -> None:
    assert isinstance(Calculator().call({"expression": expression}), str)


def test_python_says_nothing_of_what_a_model_writes(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ToolError):
        evaluate("1if 2else 3")
    assert not recwarn.list
