"""Answers that would end an evaluation: too deep to compare, too long to search, numbers of too many digits."""

import pytest

from oss_tools.harness.bfcl_literals import LONGEST, java_value, javascript_value
from oss_tools.harness.equivalence import equivalent
from oss_tools.harness.extraction import extract_answer, is_correct
from oss_tools.harness.nearly_json import Unreadable, read_value


@pytest.mark.parametrize("piece", ["-", "x", "1!", r"\sqrt", "+-", "a ", "cm^", "−"])
def test_formulas_of_a_thousand_signs_are_wrong_and_no_error(piece: str) -> None:
    long = (piece * 2000)[:2000]
    assert not equivalent(long, "12")
    assert not equivalent(long, long[:-1] + "7")
    assert equivalent(long, long)
    assert not is_correct(rf"The answer is \boxed{{{long[:1900]}}}", "12")


def test_numbers_of_many_digits_are_unreadable() -> None:
    for text in ("9" * 100_000, '{"a": ' + "9" * 100_000 + "}", "{'a': [" + "9" * 100_000 + "]}"):
        with pytest.raises(Unreadable, match="very many digits"):
            read_value(text)
    assert read_value("{'a': " + "9" * 4000 + "}")[0] == {"a": int("9" * 4000)}


@pytest.mark.parametrize("piece", ["new a[]{", "new ArrayList<>() {{ ", "new HashMap<", "[],", "a:1,", "a:,", "9"])
def test_values_of_java_and_javascript_that_are_very_long_stay_text(piece: str) -> None:
    text = piece * (LONGEST // len(piece) + 1)
    for kind in ("Array", "ArrayList", "HashMap", "integer", "long", "double", "any"):
        assert java_value(text, kind) == text
    for kind in ("dict", "array", "integer", "float", "Bigint", "String"):
        assert javascript_value("{" + text + "}", kind) == "{" + text + "}"
    assert java_value("9" * 4001, "integer") == "9" * 4001


def test_an_answer_is_found_in_a_text_of_marks() -> None:
    for mark in (r"\boxed{", "$", "#### ", "the answer is ", "[", "**"):
        extract_answer(mark * 20_000)
    assert extract_answer(r"\boxed{" * 5000 + r" so \boxed{7}") == "7"
