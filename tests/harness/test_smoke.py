"""The smoke tests' questions are what the code writes, none was trained on, and answers are scored as they should be."""

import importlib
import json
import random
from itertools import islice
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from oss_tools.harness import smoke
from oss_tools.harness.answers import Answer, Call, Details
from oss_tools.resources import resource
from oss_tools.tiny import smoke as making
from oss_tools.tiny.items import Item, split_of

SCORES = {"math": smoke.score_math, "health": smoke.score_health, "tool_use": smoke.score_tool_use}


def drawn(suite: str, split: str, count: int) -> list[Item]:
    return list(islice(importlib.import_module(f"oss_tools.tiny.{suite}").items(random.Random(7), split), count))


def held(suite: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in resource(f"evals/{suite}/smoke.jsonl").read_text().splitlines()]


def test_the_files_are_what_the_code_writes() -> None:
    for name, content in making.files().items():
        path = resource(f"evals/{name}")
        assert path.read_text(encoding="utf-8") == content, f"{path} is out of date: python -m oss_tools.tiny.smoke"


@pytest.mark.parametrize("suite", making.SUITES)
def test_no_question_was_trained_on(suite: str) -> None:
    docs = held(suite)
    assert len(docs) == making.COUNT
    keys = {doc["key"] for doc in docs}
    assert len(keys) == len(docs)
    if suite != "tool_use":  # there every noun and every value is held out, not only their combination
        assert {split_of(key) for key in keys} == {"test"}
    trained = drawn(suite, "train", 4000)
    assert not keys & {item.key for item in trained}
    questions = {item.conversation.messages[0].content for item in trained}
    assert not questions & {doc["question"] for doc in docs}
    kinds = [doc["kind"] for doc in docs]
    assert max(map(kinds.count, kinds)) <= 2 * min(map(kinds.count, kinds))


def the_answer(item: Item) -> Answer:
    """What a perfect model says."""
    last = item.conversation.messages[-1]
    if item.call is not None:
        return Answer("", Details((Call(item.call["name"], item.call["arguments"], last.content),)))
    return Answer(last.content)


@pytest.mark.parametrize("suite", making.SUITES)
def test_the_worked_answer_is_right_and_anothers_is_not(suite: str) -> None:
    items = drawn(suite, "test", 400)
    wrong = 0
    for item, other in zip(items, items[1:] + items[:1], strict=True):
        doc = making.document(item)
        scores = SCORES[suite](doc, [the_answer(item)])
        assert set(scores.values()) == {1.0}, (item, scores)
        assert SCORES[suite](doc, [Answer("", Details(problems=("no_final",)))])["correct"] == 0
        same = (item.answer, item.call) == (other.answer, other.call) or (item.kind == "abstain" and not other.call)
        wrong += SCORES[suite](doc, [the_answer(other)])["correct"] == 0 or same
    assert wrong > 0.97 * len(items)  # two questions may have one answer in different words


def test_documents_do_not_hold_the_answer() -> None:
    for suite in making.SUITES:
        for item in drawn(suite, "test", 200):
            asked = making.document(item).get("conversation", {}).get("messages", [])
            assert not asked or asked[-1]["role"] != "assistant"


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("1,204", "1204", True),
        ("The sum is 1204.", "1204", True),
        ("3 + 4 = 7", "7", True),
        ("7, since 3 + 4", "7", False),
        ("82 stones", "82 stones", True),
        ("-5", "-5", True),
        ("−5", "-5", True),
        ("5", "-5", False),
        ("12.50", "12.5", True),
        ("about", "3", False),
        ("", "3", False),
        ("10-5", "5", True),
    ],
)
def test_numbers(text: str, answer: str, right: bool) -> None:
    assert smoke.score_math({"answer": answer}, [text]) == {"correct": float(right)}


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("B", "B", True),
        ("The answer is (B).", "B", True),
        ("C", "B", False),
        ("490 mg", "490 mg", True),
        ("The dose is 490 mg.", "490 mg", True),
        ("490 g", "490 mg", False),
        ("490", "490 mg", True),
        ("49 mg", "490 mg", False),
        ("Vitamin D", "vitamin D", True),
        ("It is vitamin D.", "vitamin D", True),
        ("vitamin D3", "vitamin D", False),
        ("white cells, the", "the white cells", True),
        ("vitamin A or B or C or D or E or K or iron or zinc or iodine or copper or selenium " * 2, "iron", False),
    ],
)
def test_health_answers(text: str, answer: str, right: bool) -> None:
    assert smoke.score_health({"answer": answer}, [text]) == {"correct": float(right)}


def calling(*calls: Call, text: str = "", problems: tuple[str, ...] = ()) -> Answer:
    return Answer(text, Details(calls, problems=problems))


def test_each_part_of_a_call_has_its_score() -> None:
    doc = {"call": {"name": "f", "arguments": {"n": 2, "on": True, "who": ["a"]}}, "answer": "", "kind": "call_mixed"}
    good = Call("f", {"n": 2.0, "on": True, "who": ["a "]}, "{}")
    parts = ("correct", "right_function", "right_arguments", "valid_json", "well_formed")

    def scored(answer: Answer) -> tuple[float | None, ...]:
        found = smoke.score_tool_use(doc, [answer])
        assert "right_abstention" not in found
        return tuple(found.get(part) for part in parts)

    assert scored(calling(good)) == (1, 1, 1, 1, 1)
    assert scored(calling(Call("f", {"n": 2, "on": 1, "who": ["a"]}, "{}"))) == (0, 1, 0, 1, 1)  # 1 is not true
    assert scored(calling(Call("g", good.arguments, "{}"))) == (0, 0, 0, 1, 1)
    assert scored(calling(Call("f", None, "{"), problems=("cut_json",))) == (0, 1, 0, 0, 0)
    assert scored(calling(good, good)) == (0, 0, 0, 1, 1)
    assert scored(calling(text="I cannot.")) == (0, 0, 0, None, 1)


def test_abstaining_is_right_only_where_it_is_wanted() -> None:
    doc = {"call": None, "answer": "None of the tools can do this.", "kind": "abstain"}
    abstained = smoke.score_tool_use(doc, [Answer("No tool does that.")])
    assert abstained == {"correct": 1, "right_abstention": 1, "well_formed": 1}
    called = smoke.score_tool_use(doc, [calling(Call("f", {}, "{}"))])
    assert (called["correct"], called["right_abstention"]) == (0, 0)
    silent = smoke.score_tool_use(doc, [calling(problems=("no_final", "no_answer"))])
    assert (silent["correct"], silent["right_abstention"], silent["well_formed"]) == (0, 0, 0)
    after = {"call": None, "answer": "7427.7", "kind": "after_result"}
    assert smoke.score_tool_use(after, [Answer("It is 7427.7.")])["correct"] == 1
    assert smoke.score_tool_use(after, [Answer("It is 7427.")])["correct"] == 0
