"""Documents, suites and tasks: what is found where, and what is said when it is not."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from oss_tools.errors import BadRecipe, BadRequest, BadSource
from oss_tools.harness import data, hub, suites
from oss_tools.harness.tasks import load_tasks
from oss_tools.resources import resource


def lines(*docs: Any) -> str:
    return "".join(json.dumps(doc) + "\n" for doc in docs)


def test_documents_keep_the_types_of_their_fields() -> None:
    docs = data.Documents([{"tools": [{"a": 1}]}, {"tools": [{"b": "x"}]}, {"tools": []}])
    assert list(docs.features) == ["tools"]
    assert docs[1] == {"tools": [{"b": "x"}]}
    mapped = docs.map(lambda doc: {"n": len(doc["tools"])}).filter(lambda doc: doc["n"] > 0)
    assert isinstance(mapped, data.Documents)
    assert mapped.select([1]) == [{"tools": [{"b": "x"}], "n": 1}]
    assert isinstance(docs[:2], data.Documents)


def test_the_users_folder_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        data, "from_hub", lambda hub, config, split, message: data.Documents([{"from": hub, "split": split}])
    )
    where = {"hub": "org/set", "config": "main", "rename": {"train": "dev"}}
    source = str(tmp_path / "mine.yaml")
    assert data.splits(config_source=source, **where)["test"] == [{"from": "org/set", "split": "test"}]
    assert data.splits(config_source=source, **where)["train"] == [{"from": "org/set", "split": "dev"}]
    (tmp_path / "d" / "mine").mkdir(parents=True)
    (tmp_path / "d" / "mine" / "test.jsonl").write_text(lines({"own": 1}))
    own = data.splits(config_source=source, data=str(tmp_path / "d"), **where)
    assert own["test"] == [{"own": 1}]
    assert own["train"] == [{"from": "org/set", "split": "dev"}]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("[Errno -2] no network")

    import datasets

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr(hub, "answers", lambda endpoint: True)
    found = data.splits(config_source=str(tmp_path / "gsm8k.yaml"), data=tmp_path, hub="openai/gsm8k", config="main")
    with pytest.raises(BadSource, match=r"gsm8k.*\(no network\).*gsm8k/test\.jsonl.*openai/gsm8k \(main\).*--data"):
        found["test"]
    with pytest.raises(BadSource, match=r"looked for .*gsm8k/test\.jsonl"):
        found["test"]
    with pytest.raises(BadSource, match=r"give a folder with own/test\.jsonl with --data"):
        data.splits(config_source=str(tmp_path / "own.yaml"))["test"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no documents"),
        ("\n\n", "no documents"),
        ('{"a": 1}\nnonsense\n', "line 2: no JSON"),
        ("[1]\n", "line 1: a JSON object is wanted, not list"),
        ("[" * 100_000, "line 1: no JSON"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(content)
    with pytest.raises(BadSource, match=message):
        data.read_jsonl(file)


def test_every_task_of_every_suite_is_there() -> None:
    files = suites.task_files()
    listed = []
    for name in suites.suite_names():
        suite = suites.load_suite(name)
        assert suite.tiers.get("smoke") or name in ("bfcl_turns", "science"), f"{name} has nothing to run offline"
        for tier, entries in suite.tiers.items():
            for entry in entries:
                listed.append(entry.task)
                folder = "tool_use" if name == "bfcl_turns" else name
                assert files[entry.task].parent.name == folder, f"{entry.task} ({tier}) lies elsewhere"
                assert entry.size > 0
                assert entry.licence
                assert entry.source
    assert len(set(listed)) == len(listed)


def test_the_offline_tasks_load_and_have_the_size_that_is_told() -> None:
    entries = {e.task: e for name in suites.suite_names() for e in suites.load_suite(name).tiers.get("smoke", [])}
    for name, task in load_tasks(list(entries))["tasks"].items():
        assert len(task.eval_docs) == entries[name].size
        assert entries[name].metric in task.aggregation()


def test_unknown_names_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(
        BadRecipe, match=r"no suite named .maths.; did you mean math\? There are bfcl_turns, health, math, sci"
    ):
        suites.load_suite("maths")
    with pytest.raises(BadRecipe, match="no tasks in the tier 'huge'"):
        suites.chosen_tasks(["math"], "huge")
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: broken\noutput_type: generate_until\n")
    with pytest.raises(BadRecipe, match="a task cannot be made"):
        load_tasks([str(broken)])


@pytest.mark.slow
def test_names_that_are_not_ours_are_looked_for_in_lm_evals_list() -> None:
    said: list[str] = []
    with pytest.raises(BadRecipe, match="no task named no_such_task"):
        load_tasks(["math_smoke", "no_such_task", "hellaswag"], say=said.append)
    assert said == ["no_such_task, hellaswag: looking through lm-eval's own tasks"]


def test_our_tasks_need_no_scan_of_lm_evals(monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    made: list[dict[str, Any]] = []
    original = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **options: made.append(options) or original(**options))
    assert list(load_tasks(["math_smoke"])["tasks"]) == ["math_smoke"]
    assert made[0]["include_defaults"] is False
    assert made[0]["include_path"] == [resource("evals/math")]


def test_a_text_file_becomes_a_task(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("\n\n".join(f"Paragraph {i}. " + "word " * 100 for i in range(30)))
    task = load_tasks([], texts=[file])["tasks"][f"text:{file}"]
    texts = [doc["text"] for doc in task.eval_docs]
    assert len(texts) > 2
    assert "\n\n".join(texts).split() == file.read_text().split()
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadRequest, match="no UTF-8"):
        load_tasks([], texts=[file])
    file.write_bytes(b"\xef\xbb\xbfWords")  # as editors on Windows save it
    marked = load_tasks([], texts=[file])["tasks"][f"text:{file}"]
    assert [doc["text"] for doc in marked.eval_docs] == ["Words"]


def test_every_suite_file_has_all_fields() -> None:
    for file in resource("configs/suites").glob("*.yaml"):
        content = yaml.safe_load(file.read_text())
        assert set(content) == {"about", "tiers"}, file
