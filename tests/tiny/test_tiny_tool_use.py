"""Tool-use questions: calls fit their schemas, values stand in the request, and train and test share no names or values."""

import ast
import itertools
import json
import operator
import random
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from oss_tools.tiny.items import Item, Split, split_of
from oss_tools.tiny.tool_use import ABSTENTION, CALCULATOR, items

NUMBER = 3000
SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def draw(split: Split, number: int = NUMBER, seed: int = 5) -> list[Item]:
    return list(itertools.islice(items(random.Random(seed), split), number))


@pytest.fixture(scope="module")
def drawn() -> dict[Split, list[Item]]:
    return {"train": draw("train"), "test": draw("test")}


def calls(item: Item) -> list[dict[str, Any]]:
    """The calls that an item's conversation makes."""
    return [
        {"name": (m.recipient or "").removeprefix("functions."), "arguments": json.loads(m.content)}
        for m in item.conversation.messages
        if m.channel == "commentary"
    ]


def request(item: Item) -> str:
    return item.conversation.messages[0].content


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    match schema["type"]:
        case "string":
            return isinstance(value, str) and value in schema.get("enum", [value])
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
    assert schema["type"] == "array"
    return isinstance(value, list) and bool(value) and all(fits(v, schema["items"]) for v in value)


def leaves(value: Any) -> list[Any]:
    return [leaf for v in value for leaf in leaves(v)] if isinstance(value, list) else [value]


def split_name(name: str) -> list[str]:
    return re.sub(r"([A-Z])", r"_\1", name).lower().split("_")


def evaluate(node: ast.AST) -> float:
    """Arithmetic by the syntax tree: another way than the one that made the results."""
    if isinstance(node, ast.BinOp):
        return SIGNS[type(node.op)](evaluate(node.left), evaluate(node.right))
    assert isinstance(node, ast.Constant)
    return node.value


@pytest.mark.parametrize("split", ["train", "test"])
def test_calls_are_valid_against_the_schema(drawn, split):
    for item in drawn[split]:
        schemas = {tool["name"]: tool["parameters"] for tool in item.conversation.tools}
        assert 1 <= len(item.conversation.tools) == len(schemas) <= 4
        for call in calls(item):
            parameters = schemas[call["name"]]
            given = list(call["arguments"])
            assert set(parameters["required"]) <= set(given)
            assert given == [name for name in parameters["properties"] if name in given], "in the schema's order"
            assert all(fits(v, parameters["properties"][name]) for name, v in call["arguments"].items()), item
        if item.call is not None:
            assert calls(item) == [item.call]
            assert item.conversation.messages[-1].content == json.dumps(item.call["arguments"], ensure_ascii=False)
        assert (item.answer == "") == (item.call is not None)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_value_stands_in_the_request(drawn, split):
    for item in drawn[split]:
        for call in calls(item):
            if call["name"] == "calculator":
                continue
            for name, value in call["arguments"].items():
                if isinstance(value, bool):
                    assert f"{'with' if value else 'without'} {name}" in request(item).lower()
                else:
                    for leaf in leaves(value):
                        assert re.search(rf"(?<!\w){re.escape(str(leaf))}(?!\w)", request(item)), (request(item), leaf)


@pytest.mark.parametrize("split", ["train", "test"])
def test_optional_arguments_that_are_not_mentioned_are_left_out(drawn, split):
    left_out = 0
    for item in drawn[split]:
        for call in calls(item):
            schema = next(t for t in item.conversation.tools if t["name"] == call["name"])["parameters"]
            left_out += len(schema["properties"]) - len(call["arguments"])
    assert left_out > NUMBER / 20


def test_splits_share_no_tool_and_no_value(drawn):
    def names(split: Split) -> set[str]:
        every = {tool["name"] for item in drawn[split] for tool in item.conversation.tools} - {"calculator"}
        return {" ".join(split_name(name)[1:]) for name in every}

    def values(split: Split) -> set[str]:
        found = [leaves(v) for item in drawn[split] for call in calls(item) for v in call["arguments"].values()]
        return {str(leaf).lower() for leaf in itertools.chain(*found) if not isinstance(leaf, bool)}

    def options(split: Split) -> set[str]:
        every = [t["parameters"]["properties"].values() for i in drawn[split] for t in i.conversation.tools]
        return {option for p in itertools.chain(*every) for option in p.get("enum", [])}

    for kind in (names, values, options):
        assert len(kind("train")) > 500 < len(kind("test"))
        assert not kind("train") & kind("test"), kind.__name__
    assert not {item.key for item in drawn["train"]} & {item.key for item in drawn["test"]}
    assert not {request(item) for item in drawn["train"]} & {request(item) for item in drawn["test"]}


def test_sums_that_math_keeps_for_its_test_are_not_shown(drawn):
    for split in ("train", "test"):
        keys = set()
        for item in drawn[split]:
            if pair := re.search(r'"expression": "(\d+) ([-+*]) (\d+)"', item.key):
                low, high = sorted((int(pair[1]), int(pair[3])))
                keys.add(f"math/{pair[2]}/{low}/{high}")
        assert len(keys) > 50
        assert {split_of(key) for key in keys} == {split}


def test_nouns_in_names_do_not_cross_the_splits_in_requests_either(drawn):
    nouns = {w for i in drawn["test"] for t in i.conversation.tools if t != CALCULATOR for w in split_name(t["name"])[1:]}
    for item in drawn["train"]:
        for tool in item.conversation.tools:
            assert tool == CALCULATOR or not nouns & set(split_name(tool["name"])[1:])


@pytest.mark.parametrize("split", ["train", "test"])
def test_nothing_fits_where_the_answer_abstains(drawn, split):
    abstained = [item for item in drawn[split] if item.kind == "abstain"]
    for item in abstained:
        assert item.answer == ABSTENTION == item.conversation.messages[-1].content
        assert not calls(item)
        asked = set(re.findall(r"[a-z]+", request(item).lower()))
        for tool in item.conversation.tools:
            if tool["name"] == "calculator":
                assert not re.search(r"\d [-+*/] |\b(plus|minus|times|divided)\b", request(item))
            else:
                assert not set(split_name(tool["name"])) <= asked, (request(item), tool["name"])
    assert 0.14 < len(abstained) / NUMBER < 0.21


@pytest.mark.parametrize("split", ["train", "test"])
def test_only_the_called_tool_fits(drawn, split):
    for item in drawn[split]:
        for call in calls(item):
            others = [t["name"] for t in item.conversation.tools if t["name"] not in (call["name"], "calculator")]
            asked = set(re.findall(r"[a-z]+", request(item).lower()))
            assert not [name for name in others if set(split_name(name)) <= asked], request(item)


def test_after_a_result_the_answer_uses_it(drawn):
    sums = 0
    for item in drawn["train"]:
        if item.kind != "after_result":
            continue
        user, _, call, result, analysis, final = item.conversation.messages
        assert (user.role, result.role, result.name, analysis.channel) == ("user", "tool", call.recipient, "analysis")
        assert item.answer == final.content
        try:
            told = json.loads(result.content, parse_float=str)
        except json.JSONDecodeError:
            told = {"": result.content.split(": ")[-1]}
        told = told if isinstance(told, dict) else {"": told}
        assert all(str(value) in final.content for value in told.values()), (result, final)
        if call.recipient == "functions.calculator":
            sums += 1
            expected = evaluate(ast.parse(json.loads(call.content)["expression"], mode="eval").body)
            assert float(final.content) == pytest.approx(expected, abs=0.006)
            assert not final.content.endswith((".", ".0"))
    assert sums > NUMBER * 0.02


def test_shares(drawn):
    for split in ("train", "test"):
        kinds = Counter(item.kind for item in drawn[split])
        types = {f"call_{name}" for name in ("string", "integer", "number", "boolean", "enum", "list", "mixed")}
        assert set(kinds) == types | {"abstain", "after_result"}
        assert min(kinds.values()) > NUMBER * 0.04
        assert 0.07 < kinds["after_result"] / NUMBER < 0.14
        offered = Counter(len(item.conversation.tools) for item in drawn[split])
        assert all(offered[n] > NUMBER * 0.15 for n in (1, 2, 3, 4))
        assert {item.conversation.effort for item in drawn[split]} == {"low", "medium", "high"}


def test_what_a_request_wants_is_said_before_a_tool_is_named(drawn):
    """The verb and the noun as the request has them, or the noun alone; then the tool, or that there is none."""
    verbs = 0
    for item in drawn["train"]:
        analysis = next(m for m in item.conversation.messages if m.channel == "analysis").content
        wanted, _, rest = analysis.removeprefix("Asked ").partition(".")
        assert analysis.startswith("Asked ")
        named = [call["name"] for call in calls(item)] or ["No tool"]
        assert any(f"{name} fits" in rest for name in named)
        if wanted != "for a calculation":
            said = wanted.partition(" ")[2]
            assert said in request(item) or said in request(item)[0].lower() + request(item)[1:], (wanted, request(item))
            verbs += wanted.startswith("to ")
    assert NUMBER / 2 < verbs < NUMBER


def test_made_up_words_are_made_of_the_pieces_that_are_given():
    def words(pieces: tuple[str, ...]) -> str:
        drawn = itertools.islice(items(random.Random(5), "train", pieces), 300)
        return " ".join(call["name"] for item in drawn for call in calls(item))

    assert words(("zzq", "xwv")).count("zzq") > 5 < words(("zzq", "xwv")).count("xwv")
    assert "zzq" not in words(())


def test_same_seed_same_items():
    assert draw("test", 50, seed=1) == draw("test", 50, seed=1)
    assert draw("test", 50, seed=1) != draw("test", 50, seed=2)
    assert draw("train", 50, seed=1) != draw("test", 50, seed=1)


def test_more_effort_writes_more(drawn):
    lengths = {effort: [] for effort in ("low", "medium", "high")}
    for item in drawn["train"]:
        if item.kind.startswith("call"):
            lengths[item.conversation.effort].append(len(item.conversation.messages[1].content))
    low, medium, high = (sum(v) / len(v) for v in lengths.values())
    assert low < medium < high


def test_conversations_are_short(drawn):
    def size(item: Item) -> int:
        return len(json.dumps(item.conversation.tools)) + sum(len(m.content) for m in item.conversation.messages)

    sizes = sorted(size(item) for item in drawn["train"])
    assert sizes[NUMBER // 2] < 900
    assert sizes[-1] < 3500
