"""Every verb on a run-ready file, beside the same model as a folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from oss_tools.cli._engine import hint_at_ready
from oss_tools.cli._options import embedded_model
from oss_tools.cli.main import app
from tests.adapters.written import lora, random_pair, write_peft


def oss_tools(*arguments: object, status: int = 0, given: str | None = None) -> Any:
    done = CliRunner().invoke(app, [str(a) for a in arguments], input=given)
    assert done.exit_code == status, (done.output, done.stderr, done.exception)
    return done


def record(*arguments: object) -> Any:
    return json.loads(oss_tools(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a run-ready file. Not to be changed."""
    path = tmp_path_factory.mktemp("ready") / "tiny.ready"
    oss_tools("convert", "tiny", path, "-q")
    return path


@pytest.mark.parametrize("target", ["back", "back.gguf", "back.ready"])
def test_convert_and_verify(ready: Path, target: str, tmp_path: Path) -> None:
    oss_tools("convert", ready, tmp_path / target, "-q")
    for a, b in ((ready, tmp_path / target), (tmp_path / target, "tiny")):
        assert "same model" in oss_tools("verify", a, b).output or record("verify", a, b)["equal"]


def test_verify_names_what_differs(ready: Path, tmp_path: Path) -> None:
    oss_tools("requantize", ready, tmp_path / "other.ready", "--format", "int8", "-q")
    oss_tools("verify", ready, tmp_path / "other.ready", "-q", status=1)


def test_verify_finds_damage(ready: Path, tmp_path: Path) -> None:
    damaged = shutil.copy(ready, tmp_path / "damaged.ready")
    with damaged.open("r+b") as file:
        file.seek(damaged.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    done = oss_tools("verify", damaged, ready, status=1)
    assert "damaged" in done.output


def test_inspect(ready: Path) -> None:
    ours, theirs = record("inspect", ready), record("inspect", "tiny")
    assert ours.pop("container") == "ready"
    for key in ("model_type", "parameters", "active_parameters", "tokenizer", "chat_template"):
        assert ours[key] == theirs[key]
    assert oss_tools("inspect", ready, "--tensors").output.count("experts.gate_up_proj") >= 1


def test_requantize(ready: Path, tmp_path: Path) -> None:
    for source, name in ((ready, "a"), ("tiny", "b")):
        oss_tools("requantize", source, tmp_path / f"{name}.ready", "--recipe", "mxfp4", "-q")
    assert (tmp_path / "a.ready").read_bytes() == (tmp_path / "b.ready").read_bytes()


def test_merge(ready: Path, tmp_path: Path) -> None:
    hidden = json.loads((embedded_model() / "config.json").read_text())["hidden_size"]
    name = "model.layers.0.self_attn.q_proj"
    rows = next(t for t in record("inspect", ready, "--tensors")["tensors"] if t["name"] == f"{name}.weight")["shape"][0]
    adapter = write_peft(tmp_path / "adapter", lora(name, *random_pair(rows, hidden, size=0.1)))
    for base, target in ((ready, "a.ready"), ("tiny", "b")):
        oss_tools("merge", base, adapter, tmp_path / target, "-q")
    assert record("verify", tmp_path / "a.ready", tmp_path / "b")["equal"]
    oss_tools("verify", tmp_path / "a.ready", ready, "-q", status=1)


def test_generate_and_chat(ready: Path) -> None:
    question = "What is 12 + 30?"
    ours, theirs = (record("generate", model, question, "-t", 1, "-q") for model in (ready, "tiny"))
    assert ours["text"] == theirs["text"]
    assert "42" in ours["text"]
    ours, theirs = (oss_tools("chat", model, "-t", 1, "-q", given=question + "\n") for model in (ready, "tiny"))
    assert ours.stdout == theirs.stdout
    assert "42" in ours.stdout


@pytest.mark.slow
def test_eval(ready: Path) -> None:
    found = []
    for model in (ready, "tiny"):
        scores = record("eval", model, "--suite", "math", "--limit", 4, "-t", 1, "-q")
        found.append(scores["tasks"]["math_smoke"]["scores"])
    assert json.dumps(found[0], sort_keys=True) == json.dumps(found[1], sort_keys=True)


@pytest.mark.slow
def test_bench(ready: Path) -> None:
    found = record("bench", ready, "-p", 16, "-n", 4, "-r", 1, "-t", 1, "-q")
    (entry,) = found["models"]
    ours = entry["contenders"]["oss-tools"]
    assert ours["facts"]["mapped_bytes"] > 0
    assert all(result["major_faults_per_token"] >= 0 for result in ours["results"])
    resident = record("bench", ready, "-p", 0, "-n", 4, "-r", 1, "-t", 1, "-q", "--load", "resident")
    assert "mapped_bytes" not in resident["models"][0]["contenders"]["oss-tools"]["facts"]


@pytest.mark.slow
def test_compare(ready: Path, tmp_path: Path) -> None:
    options = ("--suites", "", "--chunks", 2, "--repeat", 2, "--prompt", 16, "--gen", 4, "-t", 1)
    oss_tools("compare", "tiny", ready, *options, "-o", tmp_path)
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert "tiny.ready" in json.dumps(found) or "ready" in json.dumps(found)


def test_fit(ready: Path) -> None:
    found = record("fit", ready, "--ram", "8GB", "--bandwidth", "20GB", "--memory", "450MB")
    stored = next(row for row in found["rows"] if row["published"])
    assert stored["container"] == "ready"
    assert found["streaming"]["works"]
    assert found["streaming"]["experts"] > 0


def test_a_shape_is_made_as_one(tmp_path: Path) -> None:
    oss_tools("synth", "qwen3-moe-tiny", tmp_path / "a.ready", "--router", "skewed", "-q")
    oss_tools("synth", "qwen3-moe-tiny", tmp_path / "a", "--router", "skewed", "-q")
    assert record("verify", tmp_path / "a.ready", tmp_path / "a")["equal"]
    oss_tools("synth", "qwen3-moe-tiny", tmp_path / "even", "-q")
    oss_tools("verify", tmp_path / "a.ready", tmp_path / "even", "-q", status=1)
    refused = oss_tools("synth", "llama-tiny", tmp_path / "b", "--router", "skewed", status=2)
    assert len(refused.output.strip().splitlines()) == 1


def test_the_hint_names_a_command_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    oss_tools("convert", "tiny", tmp_path / "a model.gguf", "-q")
    hint_at_ready(tmp_path / "a model.gguf", "gguf", 7.3)
    said = capsys.readouterr().err
    assert "7 s" in said
    import shlex

    monkeypatch.chdir(tmp_path)
    words = shlex.split(said.strip().rpartition("start: ")[2])
    assert words[:2] == ["oss-tools", "convert"]
    oss_tools(*words[1:], "-q")
    assert record("verify", tmp_path / "a model.gguf", tmp_path / words[3])["equal"]
