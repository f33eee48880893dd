"""A task's questions in shares: together they are the whole, and each answer is what it is in a whole run."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oss_tools.cluster.nodes import Done, Need, Part
from oss_tools.engine.engine import Engine
from oss_tools.errors import BadRecipe, BadRequest, BadSource
from oss_tools.harness.answered import AnsweredSubject
from oss_tools.harness.jobs import Share
from oss_tools.harness.log import AnswerLog
from oss_tools.harness.run import Settings, answer_share, evaluate, fingerprint
from oss_tools.harness.shares import QUESTIONS, Noted, keep, shares
from oss_tools.harness.subjects import EngineSubject
from oss_tools.harness.wanted import Wanted, wanted
from oss_tools.models import open_checkpoint
from oss_tools.resources import resource

TINY = resource("tiny/checkpoint")
FEW = Settings(limit=6, max_tokens=48)
MODEL = {"sha256": "of the model"}


def rows(folder: Path) -> dict[str, dict]:
    _, *lines = (folder / "answers.jsonl").read_text().splitlines()
    return {row["key"]: row for row in map(json.loads, lines)}


@given(st.integers(0, 200), st.integers(1, 60))
def test_shares_are_the_whole_once_and_in_order(questions, size):
    keys = [str(n) for n in range(questions)]
    parts = [share.of(keys) for share in shares(questions, size)]
    assert [key for part in parts for key in part] == keys
    assert max(map(len, parts)) <= size


def test_a_task_with_few_questions_is_one_share():
    assert shares(QUESTIONS) == [Share(0, 1)]
    assert len(shares(QUESTIONS + 1)) == 2


@pytest.mark.parametrize("task", ["tool_use_smoke", "text_smoke", "tool_turns"])
def test_answers_of_shares_are_those_of_a_whole_run(tmp_path, task):
    with Engine.load(TINY, threads=1) as engine:
        record = evaluate(EngineSubject(engine), [task], FEW, model=MODEL, output=tmp_path / "whole")
        for number in range(3):
            folder = tmp_path / str(number)
            answer_share(EngineSubject(engine), task, FEW, Share(number, 3), folder, model=MODEL)
        settings = EngineSubject(engine).settings()
    apart = [rows(tmp_path / str(number)) for number in range(3)]
    assert all(apart)
    assert {key: row for part in apart for key, row in part.items()} == rows(tmp_path / "whole")
    assert sum(map(len, apart)) == len(rows(tmp_path / "whole"))

    for number, part in enumerate(apart):
        header = json.loads((tmp_path / str(number) / "answers.jsonl").open().readline())
        for _ in range(2):  # what comes twice is kept once
            result = {"header": header, "rows": list(part.values())}
            keep(Done(Part("", "", {}, Need(1, 1)), result, 1.0, "a node"), tmp_path / "joined")
    subject = AnsweredSubject(TINY, settings, {})
    joined = evaluate(subject, [task], FEW, model=MODEL, output=tmp_path / "joined", resume=True)
    for name in ("scores", "items", "data_sha256"):
        assert joined["tasks"][task][name] == record["tasks"][task][name]
    assert len((tmp_path / "joined" / "answers.jsonl").read_text().splitlines()) == 1 + len(rows(tmp_path / "whole"))
    assert (tmp_path / "joined" / f"samples-{task}.jsonl").read_text() == (
        tmp_path / "whole" / f"samples-{task}.jsonl"
    ).read_text()


def test_known_answers_are_not_given_again(tmp_path):
    with Engine.load(TINY, threads=1) as engine:
        subject = EngineSubject(engine)
        answer_share(subject, "tool_use_smoke", FEW, Share(0, 1), tmp_path / "all", model=MODEL)
        known = list(rows(tmp_path / "all"))[:4]
        answer_share(subject, "tool_use_smoke", FEW, Share(0, 1), tmp_path / "rest", model=MODEL, known=known)
    assert list(rows(tmp_path / "rest")) == list(rows(tmp_path / "all"))[4:]


def test_answers_of_something_else_are_not_mixed_in(tmp_path):
    def done(model):
        return Done(Part("", "", {}, Need(1, 1)), {"header": {"model": model}, "rows": [{"key": "1", "text": ""}]}, 1.0, "")

    keep(done("a"), tmp_path)
    with pytest.raises(BadRecipe, match="another run"):
        keep(done("b"), tmp_path)
    assert list(rows(tmp_path)) == ["1"]


@pytest.mark.parametrize("task", ["tool_use_smoke", "text_smoke"])
def test_without_its_answers_a_checkpoint_says_so(tmp_path, task):
    with Engine.load(TINY, threads=1) as engine:
        settings = EngineSubject(engine).settings()
    with pytest.raises(BadRequest, match="--data"):
        evaluate(AnsweredSubject(TINY, settings, {}), [task], FEW, model=MODEL, output=tmp_path)


def test_a_log_of_known_keys_holds_none_of_them(tmp_path):
    log = AnswerLog(tmp_path / "answers.jsonl", {}, known=["a"])
    log.add("b", {})
    log.close()
    assert "a" in log
    assert list(rows(tmp_path)) == ["b"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"shares": 3}'])
def test_a_damaged_note_means_that_all_is_asked(tmp_path, content):
    (tmp_path / "shares.json").write_text(content)
    noted = Noted(tmp_path / "shares.json", resume=True)
    assert "x" not in noted
    noted.add("x", {"settings": {"context": 1}, "facts": {}})
    assert "x" in Noted(tmp_path / "shares.json", resume=True)
    assert "x" not in Noted(tmp_path / "shares.json", resume=False)


# ---- where a node finds a checkpoint --------------------------------------------------------------------------------


def sha256(path):
    with open_checkpoint(path) as checkpoint:
        return fingerprint(checkpoint.reader.files())["sha256"]


def test_a_checkpoint_is_found_by_its_path_and_told_by_its_weights(tiny_llama, tiny_gpt_oss):
    found = wanted(tiny_llama, sha256(tiny_llama))
    assert Wanted(**json.loads(json.dumps(found.to_json()))).here() == tiny_llama
    with pytest.raises(BadSource, match="other weights"):
        Wanted(str(tiny_gpt_oss), sha256(tiny_llama)).here()
    with pytest.raises(BadSource, match="disk that all share"):
        Wanted(str(tiny_llama / "elsewhere"), sha256(tiny_llama)).here()


def test_the_embedded_model_is_that_of_the_node():
    assert Wanted("/nowhere", sha256(TINY), embedded=True).here() == TINY
    assert wanted(TINY, sha256(TINY)).embedded


def test_what_lies_in_the_hubs_cache_has_a_name_there(tmp_path):
    folder = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40)
    found = wanted(folder / "q4" / "model.gguf", "x")
    assert (found.hub, found.commit, found.inside) == ("owner/name", "0" * 40, "q4/model.gguf")
    assert wanted(folder, "x").inside == "."
    assert not wanted(tmp_path / "model.gguf", "x").hub
