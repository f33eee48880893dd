"""`generate --json-schema` and `--regex`, and tools that a name or a file opens, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("llguidance")

from oss_tools.cli.main import app

SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}


def generate(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["generate", "tiny", *map(str, arguments), "-t", "1"])


def test_an_answer_of_a_schema_is_on_stdout(tmp_path: Path) -> None:
    (tmp_path / "sum.json").write_text(json.dumps(SCHEMA))
    done = generate("What is 47 + 38?", "--json-schema", tmp_path / "sum.json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"sum": 85})
    record = json.loads(generate("x = ", "--raw", "--regex", "[0-9]{3}", "--json").stdout)
    assert len(record["text"]) == 3


def test_a_file_s_prompt_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("What is 47 + 38?")
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfWhat is 47 + 38?")
    plain, marked = (json.loads(generate("-f", tmp_path / f"{name}.txt", "--json").stdout) for name in ("plain", "marked"))
    assert marked["prompt_tokens"] == plain["prompt_tokens"]
    (tmp_path / "wide.txt").write_bytes("What is 47 + 38?".encode("utf-16"))
    refused = generate("-f", tmp_path / "wide.txt")
    assert refused.exit_code == 2
    assert "UTF-16" in refused.stderr


@pytest.mark.parametrize("raw", [[], ["--raw"]])
def test_an_answer_that_is_cut_off_is_none(raw: list[str]) -> None:
    done = generate("What is 47 + 38?", "--regex", "a{400}", "-n", "90", *raw)
    assert done.exit_code == 1
    assert "the tokens ran out before the answer had its form" in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "schema.json"),
        ("[]", "must be an object"),
        ('{"$ref": "https://example.org/s.json"}', "its own parts only"),
        ('{"type": "array", "uniqueItems": true}', "uniqueItems"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_one_line(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(content)
    done = generate("?", "--json-schema", tmp_path / "schema.json", "-q")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr


def test_one_form_only(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text("{}")
    done = generate("?", "--json-schema", tmp_path / "schema.json", "--regex", "a", "-q")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)


def test_chat_has_a_browser_of_a_folder_s_texts(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n")
    command = [sys.executable, "-m", "oss_tools", "chat", "tiny", "--tools", f"browser:{tmp_path}", "-q", "-t", "1"]
    done = subprocess.run(command, input="/help\n/reset\n", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert "tools: browser.search, browser.open, browser.find" in done.stderr
