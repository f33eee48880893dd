"""Conversations of several turns: tools that are executed, and scores by the state in which they leave their world."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from oss_tools.chat.tools.base import ToolError, check_arguments
from oss_tools.errors import BadSource, MissingPackage
from oss_tools.harness.answers import Answer, Call, Details, details_of
from oss_tools.harness.scenarios import MORE_TOOLS, Scenario, World, bfcl_splits, right_turns, score, splits
from oss_tools.harness.worlds import WORLDS, Arithmetic, Files, Letters, Shop, Tasks, tools_of_world
from oss_tools.resources import resource

FILE = resource("evals/tool_use/tool_turns.yaml")
DOCS = splits(config_source=str(FILE), files={"test": "tool_turns.jsonl"})["test"]


def calls_of(turn: Sequence[dict[str, Any]]) -> tuple[Call, ...]:
    return tuple(Call(call["name"], call["arguments"], json.dumps(call["arguments"])) for call in turn)


def answer(doc: dict[str, Any], turns: Sequence[Sequence[Call]], problems: tuple[str, ...] = ()) -> Answer:
    """An answer that makes each call in a step of its own and ends each turn with words."""
    steps = tuple((*((call,) for call in turn), ()) for turn in turns)
    return Answer("Done.", Details(turns=steps, problems=problems))


def truth_of(doc: dict[str, Any]) -> list[tuple[Call, ...]]:
    return [calls_of(turn) for turn in doc["ground_truth"]]


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc["id"])
def test_scenarios_are_sound(doc: dict[str, Any]) -> None:
    """The calls of the ground truth suit their schemas and are carried out; they score 1, and nothing less does."""
    schemas = {tool["name"]: tool["parameters"] for tool in doc["conversation"]["tools"]}
    world = World(doc)
    for turn in doc["ground_truth"]:
        for call in turn:
            check_arguments(schemas[call["name"]], call["arguments"])
            assert "Error" not in world.call(call["name"], call["arguments"])
    assert len(doc["question"]) == len(doc["ground_truth"])
    truth = truth_of(doc)
    assert score(doc, [answer(doc, truth)]) == {"correct": 1.0, "turns": 1.0}
    assert score(doc, [answer(doc, [() for _ in truth])])["correct"] == 0.0
    for number, turn in enumerate(truth):
        if turn:
            wrong = [*truth[:number], turn[:-1], *truth[number + 1 :]]
            assert score(doc, [answer(doc, wrong)])["correct"] == 0.0, "a call is missing"
            assert right_turns(doc, wrong) == number


def test_other_ways_that_lead_to_the_same_state() -> None:
    doc = DOCS[0]
    truth = truth_of(doc)
    look = Call("list_files", {}, "{}")
    assert score(doc, [answer(doc, [(look, *turn, look) for turn in truth])])["correct"] == 1.0
    wrong_first = Call("move_file", {"path": "nowhere", "to": "x"}, "{}")
    assert score(doc, [answer(doc, [(wrong_first, *truth[0]), *truth[1:]])])["correct"] == 1.0
    more = Call("delete_file", {"path": "reports/april.txt"}, "{}")
    assert score(doc, [answer(doc, [(*truth[0], more), *truth[1:]])]) == {"correct": 0.0, "turns": 0.0}
    assert score(doc, [answer(doc, [*truth[:2], (*truth[2], more)])])["turns"] == pytest.approx(2 / 3)


def test_a_conversation_that_breaks_off_is_not_correct() -> None:
    doc = DOCS[0]
    assert score(doc, [answer(doc, truth_of(doc), ("too_many_steps",))])["correct"] == 0.0
    assert score(doc, [answer(doc, truth_of(doc)[:2])]) == {"correct": 0.0, "turns": pytest.approx(2 / 3)}
    assert score(doc, ["Done."]) == {"correct": 0.0, "turns": 0.0}


def test_the_user_speaks_when_the_assistant_is_done() -> None:
    doc = DOCS[0]
    scenario = Scenario(doc)
    (said,) = scenario.respond(truth_of(doc)[0], "")
    assert said == {"role": "tool", "name": "functions.move_file", "content": "moved"}
    (broken,) = scenario.respond([Call("move_file", None, "{")], "")
    assert "no JSON" in broken["content"]
    (unknown,) = scenario.respond([Call("__init__", {}, "{}")], "")
    assert "there is no function" in unknown["content"]
    assert scenario.respond([], "Moved.") == [{"role": "user", "content": doc["question"][1][0]["content"]}]
    assert scenario.respond([], "Added.") == [{"role": "user", "content": doc["question"][2][0]["content"]}]
    assert scenario.respond([], "Deleted.") == []


def test_from_end_to_end(tiny_gpt_oss: Path) -> None:
    """lm-eval, the adapter, harmony and the worlds: a model that makes the right calls is right, one that only talks is not."""
    pytest.importorskip("lm_eval")
    from fake_engine import FakeEngine
    from lm_eval.evaluator import evaluate
    from test_engine_lm import CALL, FINAL

    from oss_tools.harness.lm import EngineLM
    from oss_tools.harness.tasks import load_tasks

    by_line = {doc["question"][0][0]["content"]: doc for doc in DOCS}
    assert len(by_line) == len(DOCS)

    def right(prompt: str) -> str:
        said = prompt.split("<|start|>user<|message|>")
        doc = by_line[said[1].partition("<|end|>")[0]]
        truth = doc["ground_truth"][len(said) - 2]
        done = said[-1].count("to=assistant")
        call = truth[done] if done < len(truth) else None
        return CALL.format(call["name"], json.dumps(call["arguments"])) if call else FINAL.format("Done.")

    for answering, expected in ((right, 1.0), (lambda prompt: FINAL.format("Done."), 0.0)):
        lm = EngineLM(FakeEngine(tiny_gpt_oss, answering))  # type: ignore[arg-type]
        found = evaluate(lm, load_tasks(["tool_turns"]), bootstrap_iters=0, apply_chat_template=True)["results"][
            "tool_turns"
        ]
        assert found["correct,none"] == expected


MOVE = {"name": "move_file", "arguments": {"path": "a.txt", "to": "b.txt"}}
LATER = {
    "id": "later_0",
    "question": [[{"role": "user", "content": "Move a.txt to b.txt."}], [], [{"role": "user", "content": "Delete it."}]],
    "involved_classes": ["Files"],
    "initial_config": {"Files": {"files": {"a.txt": "x"}}},
    "missed_function": {"1": ["move_file"], "2": ["delete_file"]},
    "ground_truth": [[], [MOVE], [{"name": "delete_file", "arguments": {"path": "b.txt"}}]],
}


@pytest.fixture
def later(tmp_path: Path) -> dict[str, Any]:
    """A conversation in which two functions come later, as in BFCL's multi_turn_miss_func."""
    (tmp_path / "later.jsonl").write_text(json.dumps(LATER))
    (doc,) = splits(config_source=str(tmp_path / "later.yaml"), files={"test": "later.jsonl"})["test"]
    return dict(doc)


def test_functions_that_come_later_are_not_shown_before(later: dict[str, Any]) -> None:
    scenario = Scenario(later)

    def shown() -> set[str]:
        return {tool["name"] for tool in scenario.tools()} & {"move_file", "delete_file"}

    assert not {"move_file", "delete_file"} & {tool["name"] for tool in later["conversation"]["tools"]}
    assert shown() == set()
    assert scenario.respond([], "I cannot.") == [{"role": "user", "content": MORE_TOOLS}]
    assert shown() == {"move_file"}
    assert scenario.respond([], "Moved.") == [{"role": "user", "content": "Delete it."}]
    assert shown() == {"move_file", "delete_file"}
    assert Scenario(DOCS[0]).tools() == DOCS[0]["conversation"]["tools"]


def test_calls_of_functions_that_come_later_count_in_their_turn(later: dict[str, Any]) -> None:
    first, second, third = truth_of(later)
    assert score(later, [answer(later, [first, second, third])]) == {"correct": 1.0, "turns": 1.0}
    assert score(later, [answer(later, [first, (), third])]) == {"correct": 0.0, "turns": pytest.approx(1 / 3)}


def test_prompts_have_the_functions_from_their_turn_on(later: dict[str, Any], tiny_gpt_oss: Path) -> None:
    pytest.importorskip("lm_eval")
    from fake_engine import FakeEngine
    from test_engine_lm import CALL, FINAL, GREEDY, asked

    from oss_tools.harness.lm import EngineLM

    def answering(prompt: str) -> str:
        turn = prompt.count("<|start|>user")
        assert ("type move_file" in prompt, "type delete_file" in prompt) == (turn > 1, turn > 2)
        done = prompt.rpartition("<|start|>user")[2].count("to=assistant")
        calls = later["ground_truth"][turn - 1][done:]
        return CALL.format(calls[0]["name"], json.dumps(calls[0]["arguments"])) if calls else FINAL.format("Well.")

    lm = EngineLM(FakeEngine(tiny_gpt_oss, answering))  # type: ignore[arg-type]
    (found,) = lm.generate_until([asked(lm, "", later, {**GREEDY, "environment": Scenario})])
    assert score(later, [found]) == {"correct": 1.0, "turns": 1.0}
    assert details_of(found).problems == ()  # the calls are known to the parser as well


@pytest.mark.parametrize("world", WORLDS.values())
def test_tools_have_schemas(world: type) -> None:
    tools = tools_of_world(world)
    assert tools
    for tool in tools:
        assert tool["description"]
        assert set(tool["parameters"]["required"]) <= set(tool["parameters"]["properties"])
        for schema in tool["parameters"]["properties"].values():
            assert schema["description"]
            assert schema["type"] in ("string", "integer", "number", "boolean")


def test_worlds_refuse_in_words() -> None:
    shop = Shop({"apple": 0.5}, {"apple": 3}, 1.0)
    refusals = [
        lambda: Files().read_file("a"),
        lambda: Files({"a": "", "b": ""}).move_file("a", "b"),
        lambda: Files({"a": "", "b": ""}).copy_file("a", "b"),
        lambda: Files().write_file("", "x"),
        lambda: Files().write_file("a", "x" * 200_000),
        lambda: Letters().read_letter(1),
        lambda: Letters().delete_letter(1),
        lambda: Tasks().finish_task("a"),
        lambda: Tasks({"a": {"due": "", "done": False}}).add_task("a", ""),
        lambda: shop.look_up("pear"),
        lambda: shop.put_in_basket("apple", 4),
        lambda: shop.put_in_basket("apple", 0),
        lambda: shop.order(),
        lambda: (shop.put_in_basket("apple", 3), shop.order()),
        lambda: Arithmetic().calculate("import os"),
    ]
    for refusal in refusals:
        with pytest.raises(ToolError):
            refusal()


def test_worlds_do_not_share_state() -> None:
    first, second = World(DOCS[0]), World(DOCS[0])
    first.call("delete_file", {"path": "recipe.txt"})
    assert "recipe.txt" in second.state()["Files"]["files"]
    assert "recipe.txt" in DOCS[0]["initial_config"]["Files"]["files"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"involved_classes": ["Nowhere"]}, "no class Nowhere"),
        ({"initial_config": {"Files": {"folders": 1}}}, "does not take"),
    ],
)
def test_damaged_scenarios_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSource, match=words):
        World({**DOCS[0], **change})


def test_bfcls_own_need_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadSource, match=r"BFCL_v4_multi_turn_base\.json"):
        bfcl_splits(category="base", config_source="bfcl_multi_turn_base.yaml", data=tmp_path)["test"]
    monkeypatch.setitem(sys.modules, "bfcl_eval", None)
    with pytest.raises(MissingPackage, match="pip install --no-deps bfcl-eval"):
        World({**DOCS[0], "involved_classes": ["GorillaFileSystem"]})
