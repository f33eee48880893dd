"""`perplexity` says what `eval --text` says, with a verb of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("lm_eval")

from oss_tools.cli.main import app


def oss_tools(*arguments: object) -> dict:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json", "-q"])
    assert done.exit_code == 0, (done.stderr, done.exception)
    return json.loads(done.stdout)


def test_the_figures_are_those_of_eval(tmp_path: Path) -> None:
    text = tmp_path / "sea.txt"
    text.write_text("The sea was calm, and the ship lay at anchor in the bay. " * 30)
    by_verb, by_eval = oss_tools("perplexity", "tiny", text, "--base", "tiny"), oss_tools("eval", "tiny", "--text", text)
    (task,) = by_verb["tasks"]
    assert by_verb["tasks"][task]["scores"] == by_eval["tasks"][task]["scores"]
    assert by_verb["divergence"]["kld"]["mean"] == 0.0


def test_without_a_file_it_reads_the_suites_texts() -> None:
    record = oss_tools("perplexity", "tiny", "--limit", 1)
    assert list(record["tasks"]) == list(oss_tools("eval", "tiny", "--suite", "text", "--limit", 1)["tasks"])


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "oss_tools", "perplexity", "tiny", str(tmp_path / "none.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
