"""Answers are found in outputs, and what says the same is found to be the same."""

import random
import re
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_answers import DIFFERENT, SAME
from model_outputs import CHOICES, LABELS, OUTPUTS

from oss_tools.harness.equivalence import equivalent
from oss_tools.harness.expressions import NotMathematics, evaluate
from oss_tools.harness.extraction import extract_answer, extract_choice, extract_label, is_correct
from oss_tools.harness.latex import parse_expression

DRUGS = {"A": "Acarbose", "B": "Metformin", "C": "Glipizide", "D": "Insulin glargine"}
PIECES = re.findall(
    r"\S+",
    r"\frac \sqrt \boxed { } ( ) [ ] ^ _ 1 2 x y + - * / , . = < | ! % $ \text \cup \{ \} \pm answer is",
)
numbers = st.fractions(min_value=-10_000, max_value=10_000, max_denominator=999)
integers = st.integers(-(10**12), 10**12)


@pytest.mark.parametrize(("answer", "key"), SAME)
def test_the_same(answer: str, key: str) -> None:
    assert equivalent(answer, key)
    assert equivalent(key, answer)


@pytest.mark.parametrize(("answer", "key"), DIFFERENT)
def test_different(answer: str, key: str) -> None:
    assert not equivalent(answer, key)
    assert not equivalent(key, answer)


@pytest.mark.parametrize(("output", "key", "right"), OUTPUTS)
def test_outputs(output: str, key: str, right: bool) -> None:
    assert is_correct(output, key) is right


@pytest.mark.parametrize(("output", "letter"), CHOICES)
def test_choices(output: str, letter: str | None) -> None:
    assert extract_choice(output, DRUGS) == letter


@pytest.mark.parametrize(("output", "label"), LABELS)
def test_labels(output: str, label: str | None) -> None:
    assert extract_label(output, ("yes", "no", "maybe")) == label


def test_choices_without_their_texts() -> None:
    assert extract_choice("The answer is (E).", "ABCDE") == "E"
    assert extract_choice("The answer is (E).", "ABCD") is None


def written(value: Fraction, way: int) -> str:
    """A fraction as one of many people might write it."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    whole, rest = divmod(size, 1)
    plain = f"{sign}{size.numerator}/{size.denominator}"
    mixed = f"{sign}{whole}\\frac{{{rest.numerator}}}{{{rest.denominator}}}" if whole and rest else plain
    return [
        plain,
        f"{sign}\\frac{{{size.numerator}}}{{{size.denominator}}}",
        f"\\dfrac{{{value.numerator}}}{{{size.denominator}}}",
        mixed,
        f"$x = {plain}$",
        f"\\left({plain}\\right)",
        f"{plain} \\text{{ cm}}^2",
        f"{sign}\\frac{{{3 * size.numerator}}}{{{3 * size.denominator}}}",
        f"{100 * value.numerator}/{value.denominator}\\%",
    ][way]


@given(numbers, st.integers(0, 8), st.integers(0, 7))
@settings(deadline=None, max_examples=300)
def test_ways_to_write_a_fraction(value: Fraction, way: int, other: int) -> None:
    assert equivalent(written(value, way), written(value, other))
    assert is_correct(
        f"Some steps with 3 and 4.\n\nThe answer is $\\boxed{{{written(value, way)}}}$.", written(value, other)
    )


@given(numbers, numbers, st.integers(0, 7), st.integers(0, 7))
@settings(deadline=None, max_examples=300)
def test_other_fractions_are_other_answers(value: Fraction, wrong: Fraction, way: int, other: int) -> None:
    assert equivalent(written(value, way), written(wrong, other)) is (value == wrong)


@given(integers, st.sampled_from(["{:d}", "{:,}", "${:,}", "${:,}.00", "**{:,}**", "{:d}.0", "{:,} apples", "{:d}%"]))
@settings(deadline=None, max_examples=200)
def test_ways_to_write_an_integer(value: int, form: str) -> None:
    text = form.format(value)
    for output in (f"The answer is {text}", f"The answer is {text}.", f"#### {text}", f"Answer: {text}", f"So it is {text}"):
        assert is_correct(output, str(value)), output
        assert not is_correct(output, str(value + 1)), output


@given(
    st.lists(
        st.sampled_from(PIECES),
        max_size=40,
    )
)
@settings(deadline=None, max_examples=400)
def test_whatever_is_written_nothing_breaks(pieces: list[str]) -> None:
    text = " ".join(pieces)
    assert equivalent(text, "7") in (True, False)
    assert extract_answer(text) is None or isinstance(extract_answer(text), str)
    assert extract_choice(text, DRUGS) in (*DRUGS, None)


@given(st.text(max_size=200))
@settings(deadline=None, max_examples=200)
def test_any_text_is_the_same_as_itself_or_empty(text: str) -> None:
    assert equivalent(text, text) in (True, False)
    is_correct(text, text)


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 5000,
        r"\( " * 20000,
        "$$ $ " * 10000,
        "the answer is " * 5000,
        "#### " * 20000,
        "\nQ: " * 20000,
        "((((" * 400 + "1",
        "9^" * 400 + "9",
        "1" * 1900 + "^" + "9" * 50,
        r"\frac{" * 300,
        "1," * 900,
        "**" * 10000,
        "100!" + "!" * 100,
        r"\text{" * 300 + "x" + "}" * 300,
    ],
)
def test_degenerate_outputs_take_no_time(text: str) -> None:
    began = time.process_time()
    is_correct(text, "7")
    equivalent(text, r"\frac{7}{3}")
    extract_choice(text, DRUGS)
    assert time.process_time() - began < 2


def test_expressions_are_exact_where_they_can_be() -> None:
    generator = random.Random(0)
    for _ in range(200):
        a, b, c = (generator.randint(1, 10**6) for _ in range(3))
        assert (
            evaluate(parse_expression(f"\\frac{{{a}}}{{{b}}} + {c} \\cdot {a}^2 - {b}"), {}) == Fraction(a, b) + c * a**2 - b
        )


@pytest.mark.parametrize("text", ["hello world", "3 4", "1 +", "(1", r"\unknown{3}", "", "x =", "2..3", "&"])
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(NotMathematics):
        parse_expression(text)


@pytest.mark.parametrize("text", ["1/0", r"\ln 0", "1/(2-2)", "(-1)!", "x"])
def test_what_has_no_value(text: str) -> None:
    with pytest.raises(NotMathematics):
        evaluate(parse_expression(text), {})
