"""Whole runs on small models, from Python and as a user calls them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.engine.engine import Engine
from oss_tools.harness.run import Settings, evaluate, fingerprint
from oss_tools.harness.subjects import EngineSubject
from oss_tools.resources import resource

TASKS = ("math_smoke", "tool_use_smoke", "text_smoke")
SETTINGS = Settings(limit=2, max_tokens=6, batch=2)


def oss_tools(*arguments: object, status: int = 0) -> Any:
    """The command in this process, which has imported lm-eval already."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == status, (done.stderr, done.exception)
    return done


def without_time(record: dict[str, Any]) -> dict[str, Any]:
    """A record less what differs from run to run."""
    found: dict[str, Any] = json.loads(json.dumps(record))
    del found["seconds"]
    for task in found["tasks"].values():
        task["usage"] = {
            name: task["usage"][name] for name in ("requests", "prompt_tokens", "tokens", "answers", "problems")
        }
    return found


@pytest.fixture(scope="module")
def engine() -> Any:
    with Engine.load(resource("tiny/checkpoint"), threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def first(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("run")
    return output, evaluate(EngineSubject(engine), TASKS, SETTINGS, model={"name": "m", "sha256": "0"}, output=output)


def test_the_record_has_every_outcome(first: tuple[Path, dict[str, Any]]) -> None:
    output, record = first
    assert list(record["tasks"]) == list(TASKS)
    assert json.loads((output / "eval.json").read_text()) == json.loads(json.dumps(record))
    for name, task in record["tasks"].items():
        assert task["n"] == 2
        assert len(task["items"]["doc"]) == 2
        assert task["usage"]["requests"] == 2
        samples = [json.loads(line) for line in (output / f"samples-{name}.jsonl").read_text().splitlines()]
        assert [sample["doc_id"] for sample in samples] == [0, 1]
    usage = record["tasks"]["math_smoke"]["usage"]
    assert usage["no_final"] == 2  # six tokens are too few to come to an answer
    assert usage["tokens"] == 12
    assert 0 < usage["computed"] <= usage["positions"]
    asked = json.loads((output / "samples-math_smoke.jsonl").read_text().splitlines()[0])
    assert "<|start|>user<|message|>" in asked["prompts"][0]
    assert asked["answers"][0]["transcript"]
    assert record["tasks"]["text_smoke"]["scores"]["token_perplexity"]["score"] > 100
    assert record["settings"]["chat"] is True


def test_the_same_run_gives_the_same_record(engine: Engine, first: tuple[Path, dict[str, Any]]) -> None:
    again = evaluate(EngineSubject(engine), TASKS, SETTINGS, model={"name": "m", "sha256": "0"})
    assert without_time(again) == without_time(first[1])


def test_a_finished_run_is_taken_up_without_computing(engine: Engine, first: tuple[Path, dict[str, Any]]) -> None:
    output, record = first
    before = engine.computed
    again = evaluate(EngineSubject(engine), TASKS, SETTINGS, model={"name": "m", "sha256": "0"}, output=output, resume=True)
    assert engine.computed == before
    assert without_time(again) == without_time(record)


def test_more_questions_can_be_added_to_a_run(engine: Engine, first: tuple[Path, dict[str, Any]]) -> None:
    output, _ = first
    seen: list[tuple[str, int, int]] = []
    more = Settings(limit=3, max_tokens=6, batch=2)
    model = {"name": "m", "sha256": "0"}
    evaluate(
        EngineSubject(engine),
        TASKS[:1],
        more,
        model=model,
        output=output,
        resume=True,
        report=lambda *told: seen.append(told),
    )
    assert seen == [("math_smoke", 2, 3), ("math_smoke", 3, 3)]


@pytest.mark.slow
def test_lm_eval_takes_the_model_by_name(tiny_llama: Path) -> None:
    import lm_eval

    import oss_tools.harness.lm  # noqa: F401 (registers the name)
    from oss_tools.harness.tasks import load_tasks

    task = load_tasks(["text_smoke"])["tasks"]["text_smoke"]
    options = {"path": str(tiny_llama), "threads": 1, "context": 256}
    found = lm_eval.simple_evaluate(model="oss-tools", model_args=options, tasks=[task], limit=1, bootstrap_iters=0)
    assert found is not None
    assert found["results"]["text_smoke"]["byte_perplexity,none"] > 1


def test_checkpoints_are_told_apart(tmp_path: Path) -> None:
    one, two = tmp_path / "a.bin", tmp_path / "b.bin"
    one.write_bytes(b"1" * 100)
    two.write_bytes(b"2" * 100)
    both = fingerprint([one, two])
    assert both == fingerprint([two, one])
    two.write_bytes(b"2" * 99 + b"3")
    assert fingerprint([one, two])["sha256"] != both["sha256"]


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_a_record(tiny_llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("The sea was calm. " * 40)
    options = ("--task", "math_smoke", "--text", text, "--limit", 2, "-n", 4, "-t", 1, "-q")
    command = [sys.executable, "-m", "oss_tools", "eval", tiny_llama, *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    table = done.stdout
    assert "math_smoke" in table
    assert "95 % interval" in table
    assert "token_perplexity" in table
    record = json.loads(
        oss_tools("eval", tiny_llama, *options, "--base", tiny_llama, "--json", "-o", tmp_path / "out").stdout
    )
    assert record["settings"]["chat"] is False
    assert record["divergence"]["kld"]["max"] == 0
    assert record["model"]["sha256"] == record["divergence"]["base"]["sha256"]
    assert json.loads((tmp_path / "out" / "eval.json").read_text()) == record


def test_the_list_needs_no_model() -> None:
    table = oss_tools("eval", "--list").stdout
    for name in ("math_smoke", "health_smoke", "tool_use_smoke", "text_smoke", "public domain"):
        assert name in table
    suites = json.loads(oss_tools("eval", "--list", "--json").stdout)
    assert suites["math"]["tiers"]["smoke"][0]["task"] == "math_smoke"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--suite", "maths"], "no suite named 'maths'"),
        (["--tier", "huge"], "no tasks in the tier"),
        (["--resume"], "needs --output"),
        (["--reasoning", "deep"], "not one of low, medium, high"),
        (["--text", "missing.txt"], "missing.txt: no such file"),
        (["--task", "math_smoke", "--data", "missing", "--task", "missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_options_end_in_a_line(tiny_llama: Path, options: list[str], said: str) -> None:
    done = oss_tools("eval", tiny_llama, "-q", "-t", 1, *options, status=2)
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--suite", "--suites"])
def test_a_dry_run_refuses_what_the_run_would_refuse(tiny_llama: Path, tmp_path: Path, option: str) -> None:
    plan = json.loads(oss_tools("eval", tiny_llama, option, "math", "--dry-run", "--json").stdout)
    assert [row["task"] for row in plan["tasks"]] == ["math_smoke"]
    for wrong in ((tmp_path / "nowhere",), (tiny_llama, "--base", tmp_path / "nowhere")):
        done = oss_tools("eval", *wrong, option, "math", "--dry-run", status=2)
        assert str(tmp_path / "nowhere") in done.stderr
        assert done.stdout == ""
    (tmp_path / "file").touch()
    done = oss_tools("eval", tiny_llama, option, "math", "--dry-run", "--output", tmp_path / "file" / "x", status=2)
    assert f"{tmp_path}/file/x: {tmp_path}/file is a file, not a folder" in done.stderr


@pytest.mark.slow
def test_a_part_of_a_set_is_told_and_a_missing_one_left_out(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("gsm8k", "math500", "aime24", "aime25"):
        (tmp_path / name).mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    (tmp_path / "math500" / "test.jsonl").write_text('{"text": "?"}\n')
    options = ("--suite", "math", "--tier", "full", "--data", tmp_path, "-n", 2, "-t", 1, "-q", "--json")
    code = (
        "import sys; from oss_tools.harness import hub; hub.answers = lambda endpoint: False; "
        "from oss_tools.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "eval", tiny_llama, *options]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["tasks"]) == ["gsm8k"]
    assert "gsm8k: 1 questions, where the published set has 1,319" in done.stderr
    assert f"math500 is left out: {tmp_path}/math500/test.jsonl, line 1: the fields are text; wanted: problem" in done.stderr
    assert "aime25 is left out: math-ai/aime25 cannot be had" in done.stderr
    assert "Errno" not in done.stderr


def test_without_lm_eval_the_extra_is_named(tiny_llama: Path) -> None:
    code = "import sys; sys.modules['lm_eval'] = None; from oss_tools.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "eval", str(tiny_llama)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "pip install '.[eval]'" in done.stderr
