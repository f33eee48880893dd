"""Grades as models write them: nearly JSON is read as it is meant, and no grade is read out of what is none."""

from __future__ import annotations

import ast
import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oss_tools.harness.grades import Grade, GradeCache, read_grade
from oss_tools.harness.nearly_json import Unreadable, read_value


@pytest.mark.parametrize("met", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        '{"explanation": "It says so.", "criteria_met": MET}',
        '```json\n{"explanation": "It says so.", "criteria_met": MET}\n```',
        '{"explanation": "It says so.", "criteria_met": MET,}',
        "{'explanation': 'It says so.', 'criteria_met': MET}",
        '{explanation: "It says so.", criteria_met: MET}',
        '{"explanation": "It says so.", "criteria_met": "MET"}',
        'Let me think {of it}.\n\n{"explanation": "It says so.", "criteria_met": MET}\n\nI hope that helps.',
        '{"explanation": "It says so.", "criteria_met": MET, "parts": [{"criteria_met": OTHER}, {"criteria_met": OTHER}]}',
        '{"parts": {"criteria_met": OTHER}, "explanation": "It says so.", "criteria_met": MET}',
        "{'parts': {'criteria_met': OTHER}, 'explanation': 'It says so.', 'criteria_met': MET,}",
        '{"criteria_met": OTHER, "explanation": "at first sight"} On a second look: '
        '{"criteria_met": MET, "explanation": "It says so."}',
        '{"grade": {"explanation": "It says so.", "criteria_met": MET}}',
    ],
)
def test_the_grade_is_the_one_that_is_meant(text: str, met: bool) -> None:
    for words in (("true", "false"), ("True", "False")):
        written = text.replace("MET", words[not met]).replace("OTHER", words[met])
        assert read_grade(written) == Grade(met, "It says so.")


def test_line_breaks_and_quotation_marks_inside_of_a_text() -> None:
    text = '{"explanation": "It says "no coffee",\nand it\'s clear: {yes}.", "criteria_met": False}'
    assert read_grade(text) == Grade(False, 'It says "no coffee",\nand it\'s clear: {yes}.')


def test_half_a_surrogate_pair_can_be_kept(tmp_path: Path) -> None:
    grade = read_grade(r'{"explanation": "\ud83d", "criteria_met": true}')
    assert grade
    cache = GradeCache(tmp_path / "grades.jsonl")
    assert (tmp_path / "grades.jsonl").stat().st_mode & 0o777 == 0o600  # it quotes answers
    cache.add("key", grade, "model")
    cache.close()
    assert GradeCache(tmp_path / "grades.jsonl").get("key") == grade == Grade(True, "?")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot help with that.",
        "criteria_met: true",
        '{"criteria_met": null}',
        '{"criteria_met": 1}',
        '{"criteria_met": "maybe"}',
        '{"criteria_met": [true]}',
        '{"explanation": "It says so.", "criteria_met": tr',
        '{"parts": [{"criteria_met": true}], "criteria_met": fal',
        '{"explanation": "As in {"criteria_met": true} it',
        '{"one": {"criteria_met": true}, "two": {"criteria_met": false}}',
        "{'a': " * 3000,
        '{"a": ' * 100_000,
    ],
)
def test_what_is_no_grade_is_none(text: str) -> None:
    assert read_grade(text) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_json_is_read_as_json_reads_it(value: object) -> None:
    text = json.dumps(value)
    assert read_value(text) == (json.loads(text), len(text))


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="'\"\\"), max_size=12)
PYTHON = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(WORDS, PYTHON, max_size=4))
def test_python_s_literals_are_read_as_python_reads_them(value: dict[str, object]) -> None:
    """`repr`, and the same with a comma before each closing bracket's end."""
    text = "{" + "".join(f"{key!r}: {item!r}, " for key, item in value.items()) + "}"
    assert ast.literal_eval(text) == value
    assert read_value(text) == (value, len(text))


@given(st.text(max_size=60) | st.lists(st.sampled_from("{}[]\"':, \n\\trueFalse0-1."), max_size=40).map("".join))
def test_any_text_is_a_value_or_unreadable(text: str) -> None:
    with contextlib.suppress(Unreadable):
        assert 0 < read_value(text)[1] <= len(text)
    assert read_grade(text) is None or "criteria_met" in text
