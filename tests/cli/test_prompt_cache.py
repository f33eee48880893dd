"""`--prompt-cache`: the next start goes on from the file, with the same answers; files that do not fit end in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from oss_tools.cli._prompt_cache import KeptPrompt
from oss_tools.cli.main import app
from oss_tools.errors import BadRequest

QUESTION = "What is 47 + 38?"


def oss_tools(*arguments: object, status: int = 0, given: str = "") -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments)], input=given)
    assert done.exit_code == status, (done.stderr, done.exception)
    return done


def test_generate_gives_the_same_answer_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kept"
    plain, first, second = (
        oss_tools("generate", "tiny", QUESTION, "--json", "-n", 24, *more, status=1)
        for more in ((), ("--prompt-cache", file), ("--prompt-cache", file))
    )
    answers = [json.loads(done.stdout) for done in (plain, first, second)]
    assert len({answer["analysis"] for answer in answers}) == 1
    count = answers[0]["prompt_tokens"]
    assert f"{file}: {count} tokens are kept" in first.stderr
    assert plain.stderr.splitlines()[-1] in first.stderr.splitlines()  # why there is no final answer
    assert f"{file}: {count} tokens are known" in second.stderr


def test_a_plain_text_is_kept_too(tmp_path: Path) -> None:
    arguments = ("generate", "tiny", "Once upon a time", "--raw", "-n", 8, "-q", "--prompt-cache", tmp_path / "kept")
    first, second = (oss_tools(*arguments) for _ in range(2))
    assert first.stdout == second.stdout
    assert first.stderr == second.stderr == ""


def test_chat_keeps_the_conversation(tmp_path: Path) -> None:
    file, saved = tmp_path / "kept", tmp_path / "talk.json"
    asked = f"{QUESTION}\n/save {saved}\n/reset\n{QUESTION}\n"
    first = oss_tools("chat", "tiny", "--prompt-cache", file, given=asked)
    second = oss_tools("chat", "tiny", "--prompt-cache", file, given=QUESTION)
    assert first.stdout.splitlines() == ["85", "85"]
    assert second.stdout.splitlines() == ["85"]
    assert "tokens are known" in second.stderr
    size = file.stat().st_size
    oss_tools("chat", "tiny", "-q", "--prompt-cache", file, given="/quit\n")
    assert file.stat().st_size == size  # nothing was asked, so nothing is kept in its place


def test_a_file_of_another_model_is_refused_before_the_weights_are_read(tmp_path: Path, tiny_gpt_oss: Path) -> None:
    file = tmp_path / "kept"
    oss_tools("generate", "tiny", "x", "--raw", "-n", 1, "--prompt-cache", file)
    before = file.read_bytes()
    damaged = shutil.copytree(tiny_gpt_oss, tmp_path / "other")
    done = oss_tools("generate", damaged, "x", "--raw", "-n", 1, "--prompt-cache", file, status=2)
    line = f"oss-tools: {file}: keeps a prompt of another model; name another file, or remove this one"
    assert done.stderr.splitlines()[-1] == line
    done = oss_tools("generate", "tiny", "x", "--raw", "-n", 1, "--activations", "f32", "--prompt-cache", file, status=2)
    assert "was computed with 'numba, activations int8'" in done.stderr.splitlines()[-1]
    assert file.read_bytes() == before


@pytest.mark.parametrize(("backend", "way"), [("cuda", "--device cpu"), ("torch", "--backend numba")])
def test_other_backends_say_that_they_cannot(
    backend: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oss_tools.engine.backend.backend_class", lambda name: SimpleNamespace(keeps_prompts=False))
    with pytest.raises(BadRequest, match=f"the backend {backend} keeps no prompts; use {way}"):
        KeptPrompt(tmp_path / "kept", True).check(None, None, backend, "int8")  # type: ignore[arg-type]


def test_a_run_that_fails_leaves_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kept"
    oss_tools("generate", "tiny", QUESTION, "-q", "--prompt-cache", file)
    before = file.read_bytes()
    done = oss_tools("generate", "tiny", QUESTION * 20, "-q", "-c", 64, "--prompt-cache", file, status=2)
    assert "do not fit into the context of 64" in done.stderr
    assert file.read_bytes() == before
