"""Our scoring of conversations with executed tools beside bfcl-eval's, in BFCL's own classes, on altered calls."""

import copy
import importlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bfcl_calls import other_type, other_value
from test_bfcl_eval import package  # noqa: F401

from oss_tools.harness.answers import Call
from oss_tools.harness.scenarios import BFCL_TURNS, bfcl_splits, right_turns

pytestmark = pytest.mark.peers
Turns = list[list[dict[str, Any]]]


def altered(truth: Turns, way: str, generator: random.Random) -> Turns:
    turns = copy.deepcopy(truth)
    with_calls = [i for i, turn in enumerate(turns) if turn]
    turn = turns[generator.choice(with_calls)]
    call = generator.choice(turn)
    if way == "a call missing":
        turn.remove(call)
    elif way == "a call twice":
        turn.insert(turn.index(call), copy.deepcopy(call))
    elif way == "another order":
        turn.reverse()
    elif way == "another turn's call":
        turn.append(copy.deepcopy(generator.choice(turns[generator.choice(with_calls)])))
    elif way in ("another value", "another type") and call["arguments"]:
        name = generator.choice(list(call["arguments"]))
        alter = other_value if way == "another value" else other_type
        call["arguments"][name] = alter(call["arguments"][name], generator)
    elif way == "an argument missing" and call["arguments"]:
        del call["arguments"][generator.choice(list(call["arguments"]))]
    elif way == "no calls":
        turn.clear()
    elif way == "an unknown function":
        call["name"] += "_x"
    return turns


WAYS = (
    "nothing",
    "a call missing",
    "a call twice",
    "another order",
    "another turn's call",
    "another value",
    "another type",
    "an argument missing",
    "no calls",
    "an unknown function",
)


def written(call: dict[str, Any]) -> str:
    return f"{call['name']}({', '.join(f'{name}={value!r}' for name, value in call['arguments'].items())})"


def ours(doc: dict[str, Any], turns: Turns) -> bool:
    calls: list[Sequence[Call]] = [[Call(call["name"], call["arguments"], "") for call in turn] for turn in turns]
    return right_turns(doc, calls) == len(doc["ground_truth"])


@pytest.mark.parametrize("category", BFCL_TURNS)
def test_verdicts_agree(category: str, package: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    check = importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker").multi_turn_checker
    docs = bfcl_splits(category=category, config_source=f"bfcl_multi_turn_{category}.yaml", data=package / "data")["test"]
    found: Counter[tuple[str, bool, bool]] = Counter()
    step = 4 if category == "long_context" else 1
    for number, doc in enumerate(docs[::step]):
        truth = [[written(call) for call in turn] for turn in doc["ground_truth"]]
        for way in WAYS:
            turns = altered(doc["ground_truth"], way, random.Random(f"{category} {number} {way}"))
            steps = [[[written(call)] for call in turn] for turn in turns]  # each call in a step of its own
            name = re.sub(r"\W", "_", f"model_{number}_{way}")  # of the variables in which bfcl-eval keeps its objects
            theirs = check(steps, truth, copy.deepcopy(doc), f"multi_turn_{category}", name)["valid"]
            found[way, bool(theirs), ours(doc, turns)] += 1
    different = {key: count for key, count in found.items() if key[1] != key[2]}
    wrong = sum(count for (_, their, _), count in found.items() if not their)
    with capsys.disabled():
        agree = found.total() - sum(different.values())
        print(f"\nmulti_turn_{category}: {agree} of {found.total()} verdicts agree; {wrong} of the conversations are wrong")
    assert not different
    assert found["nothing", True, True] >= 0.95 * len(docs[::step])
