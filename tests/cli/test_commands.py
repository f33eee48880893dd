"""The verbs as a person calls them: what they print, their JSON, their exit statuses."""

import errno
import json
import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oss_tools.checkpoints import Contents, writer_for
from oss_tools.cli.main import app
from oss_tools.convert import pipeline
from oss_tools.convert.synth import load_shape, plan_synthesis
from tests.checkpoints.small_models import rename_tensors
from tests.commands import oss_tools


def record(*args: object) -> dict:
    done = oss_tools(*args, "--json")
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def tiny_gguf(tiny_gpt_oss: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    done = oss_tools("convert", tiny_gpt_oss, path)
    assert done.returncode == 0, done.stderr
    assert "rounded" in done.stdout
    return path


# ---- inspect --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["hf", "gguf"])
def test_inspect_tells_the_same_of_every_container(container: str, tiny_gpt_oss: Path, tiny_gguf: Path) -> None:
    found = record("inspect", tiny_gpt_oss if container == "hf" else tiny_gguf)
    assert found["model_type"] == "gpt_oss"
    assert found["container"] == container
    assert found["parameters"] == 248_784
    assert found["active_parameters"] == 149_712
    assert found["formats"]["mxfp4"] == {"tensors": 4, "parameters": 98_304, "bytes": 52_224, "bits_per_weight": 4.25}
    assert sum(share["bytes"] for share in found["roles"].values()) == found["bytes"]
    assert sum(share["parameters"] for share in found["formats"].values()) == found["parameters"]
    assert found["tokenizer"] == {"kind": "BPE", "vocabulary": 768, "special": 9}
    assert found["config"]["num_local_experts"] == 4
    assert found["chat_template"] is False


def test_what_a_user_should_know_of_the_files_is_said_by_every_verb_that_reads_them(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    rename_tensors(folder / "model.safetensors", "module.{}".format)
    (said,) = record("inspect", folder)["remarks"]
    assert "'module.'" in said
    assert record("inspect", tiny_llama)["remarks"] == []
    assert f"- {said}" in oss_tools("inspect", folder).stdout
    for verb in (
        ("verify", tiny_llama, folder),
        ("fit", folder, "--bandwidth", "10GB"),
        ("convert", folder, tmp_path / "x.gguf"),
    ):
        done = oss_tools(*verb)
        assert done.returncode == 0
        assert f"oss-tools: {said}" in done.stderr.splitlines()
    assert said not in oss_tools("verify", tiny_llama, folder, "--quiet").stderr


def test_inspect_lists_tensors(tiny_gpt_oss: Path) -> None:
    found = record("inspect", tiny_gpt_oss, "--tensors")
    assert len(found["tensors"]) == 37
    assert sum(tensor["bytes"] for tensor in found["tensors"]) == found["bytes"]
    table = oss_tools("inspect", tiny_gpt_oss, "--tensors").stdout
    assert "model.layers.1.mlp.experts.down_proj  " in table
    assert "4×64×64" in table


COUNTED = """
import re, sys
from pathlib import Path
from oss_tools.cli.main import app

def count(file, name):
    return int(re.search(rf"^{name}:\\s+(\\d+)", Path("/proc/self", file).read_text(), re.M)[1])

import oss_tools.cli.inspect
before = count("io", "rchar")
app(["inspect", *sys.argv[1:]], standalone_mode=False)
print(count("io", "rchar") - before, count("status", "VmHWM") * 1024, file=sys.stderr)
"""  # inspect, then how many bytes it has read and how many were in memory at most


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="this system does not count what a process reads")
def test_inspect_reads_headers_only_of_a_65_gb_checkpoint(tmp_path: Path) -> None:
    synthesis = plan_synthesis(load_shape("gpt-oss-120b"), "hf")
    writer = writer_for("hf")(tmp_path, Contents("sparse", synthesis.stored, synthesis.metadata, {}))
    writer.finish()
    writer.close()
    if sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir()) > 1 << 30:
        pytest.skip("this file system has no sparse files")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", COUNTED, str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=True)
    assert json.loads(done.stdout)["bytes"] == 65_248_815_744
    read, resident = map(int, done.stderr.split())
    assert read < 64 << 20
    assert resident < 512 << 20


def test_inspect_of_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path, reason in ((tmp_path / "nothing", "no such file or folder"), (tmp_path, "not a checkpoint")):
        done = oss_tools("inspect", path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(f"oss-tools: {path}: {reason}")


@pytest.mark.parametrize("tokenizer", ['{"model": {"vocab": [3]}}', '{"added_tokens": [{}]}', '{"model": {"vocab": {"a": '])
def test_inspect_of_a_broken_tokenizer(tokenizer: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "tokenizer.json").write_text(tokenizer)
    done = oss_tools("inspect", folder)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "tokenizer.json: " in done.stderr


# ---- synth ----------------------------------------------------------------------------------------------------------


def test_synth(tmp_path: Path) -> None:
    made = record("synth", "llama-tiny", tmp_path / "a", "--seed", 3)
    assert made["bytes"] == 279_168
    assert record("synth", "llama-tiny", tmp_path / "b", "--seed", 3, "--jobs", 1)["path"] == str(tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert record("synth", "llama-tiny", tmp_path / "c.gguf", "--format", "q8_0", "--layers", 1)["container"] == "gguf"
    assert record("inspect", tmp_path / "c.gguf")["formats"]["q8_0"]["tensors"] == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpt-6", "new"], "no shape named 'gpt-6'"),
        (["llama-tiny", "."], "exists"),
        (["llama-tiny", "new", "--format", "float3"], "no number format named 'float3'"),
        (["llama-tiny", "new", "--container", "zip"], "container zip"),
        (["llama-tiny", "new.gguf", "--container", "hf"], "a hf checkpoint is a folder"),
    ],
)
def test_synth_refuses_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = oss_tools("synth", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


# ---- convert, requantize, verify ------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_writes_nothing(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.gguf"
    table = oss_tools("convert", tiny_gpt_oss, target, "--recipe", "mxfp4-q8", "--dry-run").stdout
    assert "experts.down" in table
    plan = record("convert", tiny_gpt_oss, target, "--recipe", "mxfp4-q8", "--dry-run")
    assert plan["target"]["container"] == "gguf"
    roles = {row["role"]: (row["source_format"], row["target_format"], row["action"]) for row in plan["roles"]}
    assert roles["experts.down"] == ("mxfp4", "mxfp4", "move")
    assert roles["attention.q"] == ("bf16", "q8_0", "quantize")
    assert plan["free_disk_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_verify_proves_a_conversion(tiny_gpt_oss: Path, tiny_gguf: Path) -> None:
    found = record("verify", tiny_gpt_oss, tiny_gguf)
    assert found["equal"]
    assert found["tensors_identical"] == found["tensors_compared"] == 37
    assert "verdict  equal" in oss_tools("verify", tiny_gpt_oss, tiny_gguf).stdout


def test_verify_names_what_differs_with_status_1(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert oss_tools("synth", "gpt-oss-tiny", other, "--seed", 1).returncode == 0
    done = oss_tools("verify", tiny_gpt_oss, other, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["equal"]
    assert len(found["differences"]) == 37
    done = oss_tools("verify", tiny_gpt_oss, other)
    assert done.returncode == 1
    assert "NOT equal" in done.stdout
    assert "… and 27 more" in done.stdout


def test_verify_of_different_architectures(tiny_gpt_oss: Path, tiny_llama: Path) -> None:
    done = oss_tools("verify", tiny_gpt_oss, tiny_llama)
    assert done.returncode == 1
    assert "model_type" in done.stdout


def test_requantize_prints_and_reports_what_it_cost(tiny_llama: Path, tmp_path: Path) -> None:
    report = tmp_path / "errors.json"
    done = oss_tools("requantize", tiny_llama, tmp_path / "q8.gguf", "--format", "q8_0", "--report", report, "--show", 3)
    assert done.returncode == 0, done.stderr
    assert "… 13 more with smaller errors" in done.stdout
    found = json.loads(report.read_text())
    errors = [tensor["relative_error"] for tensor in found["tensors"]]
    assert len(errors) == 16
    assert errors == sorted(errors, reverse=True)
    assert 1e-3 < found["total"]["relative_error"] < 1e-2
    assert 40 < found["total"]["sqnr_db"] < 60
    checked = record("verify", tiny_llama, tmp_path / "q8.gguf", "--tolerance", 0.01)
    assert checked["equal"]
    assert checked["largest_relative_error"] == pytest.approx(errors[0], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["requantize", "SRC", "new"], "name the target: --format or --recipe"),
        (["convert", "SRC", "new", "--format", "q8_0", "--recipe", "mxfp4"], "exclude each other"),
        (["convert", "SRC", "new", "--on-nonfinite", "ignore"], "not one of refuse, clamp"),
        (["convert", "SRC", "new", "--shard-size", "5 bananas"], "is not a size"),
        (["convert", "SRC", "new", "--jobs", "-1"], "--jobs"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, tiny_llama: Path, tmp_path: Path) -> None:
    done = oss_tools(*(str(tiny_llama) if a == "SRC" else a for a in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "SRC", "new", "--recipe", "mxfp5"], "no recipe named 'mxfp5'"),
        (["convert", "SRC", "new", "--container", "original"], "no layout for llama"),
        (["convert", "SRC", "SRC"], "cannot lie in, around or over the source"),
        (["convert", "nothing", "new"], "nothing: no such file or folder"),
        (["convert", "SRC", "new", "--rule", "best"], "no format of recipe keep has a quantization rule 'best'"),
        (["convert", "SRC", "new.gguf", "--container", "hf"], "a hf checkpoint is a folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], message: str, tiny_llama: Path, tmp_path: Path) -> None:
    done = oss_tools(*(str(tiny_llama) if a == "SRC" else a for a in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_be_read(tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "model.safetensors").chmod(0)
    if os.access(folder / "model.safetensors", os.R_OK):
        pytest.skip("this user may read everything")
    done = oss_tools("inspect", folder)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


# ---- progress -------------------------------------------------------------------------------------------------------


def test_a_terminal_gets_a_progress_bar(tmp_path: Path) -> None:
    assert "synth" in on_terminal("synth", "llama-tiny", tmp_path / "a")
    assert on_terminal("synth", "llama-tiny", tmp_path / "b", "--quiet") == ""


def on_terminal(*args: object) -> str:
    """What a command writes to stderr where that is a terminal."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "oss_tools", *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave)
    os.close(slave)
    written = b""
    while process.poll() is None or select.select([master], [], [], 0)[0]:
        if select.select([master], [], [], 0.1)[0]:
            try:
                written += os.read(master, 65536)
            except OSError:  # the other end is closed: all is read
                break
    os.close(master)
    assert process.wait() == 0
    return written.decode()


# ---- help, interruption ---------------------------------------------------------------------------------------------


def test_help_lists_what_there_is() -> None:
    text = oss_tools("convert", "--help").stdout
    for name in ("mxfp4-q8", "iq4_nl", "bf16", "Formats:", "Recipes:", "Examples:"):
        assert name in text
    text = oss_tools("synth", "--help").stdout
    for name in ("gpt-oss-20b", "llama-tiny", "Shapes:"):
        assert name in text


def test_names_are_completed() -> None:
    def complete(words: str, index: int) -> list[str]:
        environment = {"_OSS_TOOLS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(index)}
        command = [sys.executable, "-m", "oss_tools"]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment).stdout.split()

    assert "mxfp4-q8" in complete("oss-tools convert a b --recipe mx", 5)
    assert complete("oss-tools convert a b --format nvf", 5) == ["nvfp4"]
    assert complete("oss-tools synth gpt-oss-1", 2) == ["gpt-oss-120b"]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command with --resume goes on from here"),
        (OSError(errno.ENOSPC, "No space left on device"), 3, "goes on from here"),
    ],
)
def test_an_interrupted_conversion_names_resume(
    error: BaseException, status: int, line: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "write", stop)
    result = CliRunner().invoke(app, ["convert", str(tiny_llama), str(tmp_path / "new")])
    assert result.exit_code == status
    assert result.stderr.splitlines()[-1].endswith(line)
