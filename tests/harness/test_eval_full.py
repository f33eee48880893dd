"""`oss-tools eval` on the full tier, from files in the public sets' form; HealthBench with a scripted grader."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from full_data import SETS, write_sets
from healthbench_examples import example, write_examples
from scripted_grader import ScriptedGrader, serving
from test_bfcl import write as write_bfcl
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.harness.bfcl import CATEGORIES
from oss_tools.harness.healthbench import FILES

EXAMPLES = [
    example(n, [(f"[+] good {n}.{i}" if i % 2 else f"bad {n}.{i}", 2, ["axis:accuracy"]) for i in range(6)])
    for n in range(8)
]
GRADES = 48
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def talker(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with a chat template: whatever is asked, there is an answer."""
    folder = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("talker") / "talker")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def command(model: Path, data: Path, server: ScriptedGrader, *more: object) -> list[str]:
    grader = ["--grader-url", server.url, "--grader-model", "scripted", "--grader-jobs", "3"]
    asked = ["--task", "healthbench", "--data", data, "--max-tokens", 6, "--context", 512]
    return [str(word) for word in (sys.executable, "-m", "oss_tools", "eval", model, *asked, *grader, *more)]


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)


def test_a_dry_run_asks_nobody(talker: Path, tmp_path: Path) -> None:
    write_examples(tmp_path, EXAMPLES)
    with serving(ScriptedGrader()) as server:
        done = run(talker, tmp_path, server, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        assert not server.requests
    (row,) = json.loads(done.stdout)["tasks"]
    assert (row["task"], row["questions"], row["requests"], row["grader_calls"]) == ("healthbench", 8, 8, GRADES)
    assert row["grader_prompt_tokens"] > GRADES * 600
    assert row["grader_tokens"] > GRADES


@pytest.mark.slow
def test_going_on_after_a_kill(talker: Path, tmp_path: Path) -> None:
    """Killed in the middle of grading, the same command with --resume asks for the missing grades only."""
    write_examples(tmp_path / "data", EXAMPLES)
    output = tmp_path / "run"
    with serving(ScriptedGrader(delay=0.2)) as server:
        process = subprocess.Popen(
            command(talker, tmp_path / "data", server, "--output", output),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 300
        while len(server.requests) < GRADES // 3 and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before its grading"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        first = len(server.requests)
        kept = (output / "grades.jsonl").read_bytes().count(b"\n")
        assert 0 < kept < GRADES
        assert first - kept <= 3, "no more is lost than was under way"
        server.delay = 0.0
        server.script = {"good 1.1": ["malformed"], "good 2.1": [(429, {"Retry-After": "0"})], "bad 7.0": [500]}
        done = run(talker, tmp_path / "data", server, "--output", output, "--resume", "--json")
        assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    tally = record["grader"]
    assert (tally["model"], tally["kept"], tally["graded"], tally["ungraded"]) == ("scripted", kept, GRADES - kept, 0)
    assert len(server.requests) - first == GRADES - kept + tally["retries"] + tally["malformed"]
    scores = record["tasks"]["healthbench"]["scores"]
    assert scores["score"]["score"] == pytest.approx(0.5)
    assert scores["accuracy"]["score"] == pytest.approx(0.5)
    assert scores["ungraded"]["score"] == 0
    assert json.loads((output / "eval.json").read_text())["grader"] == tally
    assert record["tasks"]["healthbench"]["usage"]["computed"] == 0, "answers are not generated again either"


def test_the_whole_tier_from_files(tmp_path: Path) -> None:
    write_bfcl(write_sets(tmp_path), upstream=True)
    for task in FILES:
        write_examples(tmp_path, EXAMPLES[:1], task)
    asked = ["--suite", "math,health,tool_use", "--tier", "full", "--data", tmp_path, "--max-tokens", 4, "--json"]
    with serving(ScriptedGrader()) as server:
        grader = ["--grader-url", server.url, "--grader-model", "scripted"]
        line = [sys.executable, "-m", "oss_tools", "eval", "tiny", *asked, *grader]
        done = subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    tasks = json.loads(done.stdout)["tasks"]
    assert set(tasks) == {*SETS, *FILES, *(f"bfcl_{category}" for category in CATEGORIES), "tool_turns"}
    for name, row in tasks.items():
        assert row["metric"] in row["scores"], name
        broken_off = row["usage"]["no_final"] == row["n"]
        right_by_chance = name in ("bfcl_irrelevance", "bfcl_live_irrelevance") and not broken_off
        assert row["scores"][row["metric"]]["score"] == right_by_chance, name


def test_refusals_are_one_line(talker: Path, tmp_path: Path) -> None:
    write_examples(tmp_path, EXAMPLES[:1])
    with serving(ScriptedGrader({"bad 0.0": [401]})) as server:
        done = run(talker, tmp_path, server, "--quiet")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the grader answers 401: scripted; check the key" in done.stderr
    assert "Traceback" not in done.stderr
    for words, message in (
        (["--grader-url", server.url], "--grader-model"),
        (["--grader-url", "nowhere", "--grader-model", "x"], "expected an address"),
        (["--grader-url", server.url, "--grader-model", "x", "--grader-key", "NOT_SET"], "NOT_SET"),
        ([], "--grader-url"),
    ):
        done = CliRunner().invoke(app, ["eval", str(talker), "--task", "healthbench", "--data", str(tmp_path), *words])
        assert done.exit_code == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
