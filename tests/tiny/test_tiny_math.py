"""The questions about numbers: right, worked in steps that hold, and split by their numbers."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from oss_tools.tiny import math
from oss_tools.tiny.items import Split, split_of

STEP = re.compile(r"(\d+(?: [+*-] \d+)+) = (-?\d+)")


def sample(split: Split, count: int = 3000) -> list[math.Item]:
    return list(itertools.islice(math.items(random.Random(7), split), count))


@pytest.mark.parametrize("effort", math.EFFORTS)
def test_every_written_step_holds(effort):
    rng = random.Random(effort)
    for _ in range(2000):
        operator = rng.choice("+-*")
        a, b = sorted((rng.randint(0, 9999), rng.randint(0, 9999)), reverse=True)
        if operator == "*":
            a, b = a % 100, b % 100
        text, result = math.work(operator, a, b, effort)
        assert result == eval(f"{a} {operator} {b}")
        steps = STEP.findall(text)
        assert steps
        for left, right in steps:
            assert eval(left) == int(right), text


def test_the_answer_follows_from_the_question():
    """Bare sums by their operator; stories by the one operation that their key names."""
    for item in sample("train"):
        question = item.conversation.messages[0].content
        a, b = (int(n) for n in re.findall(r"\d+", question))
        _, operator, low, high = item.key.split("/")
        assert sorted((a, b)) == [int(low), int(high)]
        value = {"+": a + b, "-": abs(a - b), "*": a * b}[operator]
        assert re.match(r"\d+", item.answer)[0] == str(value), (question, item.answer)
        assert item.conversation.messages[-1].content == item.answer


def test_stories_have_as_many_wordings_as_operations_and_no_bare_numbers():
    stories = [item for item in sample("train") if item.kind == "story"]
    assert {item.key.split("/")[1] for item in stories} == {"+", "-", "*"}
    assert all(re.fullmatch(r"\d+ [a-z]+", item.answer) for item in stories)


def test_no_pair_of_numbers_is_in_both_splits():
    train, test = ({item.key for item in sample(split)} for split in ("train", "test"))
    assert not train & test
    assert {split_of(key) for key in train} == {"train"}
    assert {split_of(key) for key in test} == {"test"}


def test_high_effort_writes_more_than_low():
    lengths: dict[str, list[int]] = {effort: [] for effort in math.EFFORTS}
    for item in sample("train"):
        lengths[item.conversation.effort].append(len(item.conversation.messages[1].content))
    means = [sum(lengths[effort]) / len(lengths[effort]) for effort in math.EFFORTS]
    assert means[0] * 1.3 < means[1] < means[2]


def test_the_same_state_gives_the_same_questions():
    assert sample("train", 50) == sample("train", 50)
