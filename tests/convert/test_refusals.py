"""What is refused before the first byte, and what a run leaves behind."""

import fcntl
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.convert import output, pipeline
from oss_tools.convert.manifest import manifest_path
from oss_tools.convert.recipe import KEEP_ALL, Recipe, Rule, recipe_of_format
from oss_tools.errors import BadCheckpoint, BadRecipe, BadTensor, NoRoom
from oss_tools.models import open_checkpoint
from tests.convert.helpers import Synthetic, convert, convert_command, copied

# ---- before the first byte ------------------------------------------------------------------------------------------


def lowercasing(source: Path, to: Path) -> Path:
    """A copy whose tokenizer does what GGUF has no words for."""
    copied(source, to)
    tokenizer = json.loads((to / "tokenizer.json").read_text())
    (to / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}}))
    return to


def test_a_dry_run_refuses_what_the_run_would_and_neither_leaves_anything(synthetic: Synthetic, tmp_path: Path) -> None:
    plain = synthetic("llama-tiny")
    strange = lowercasing(plain, tmp_path / "strange")
    there = tmp_path / "there"
    there.mkdir()
    (there / "config.json").write_text("{}")
    (tmp_path / "file").write_text("x")
    interrupted = tmp_path / "half.partial"
    interrupted.mkdir()
    (interrupted / "oss-tools-journal.jsonl").write_text('{"plan": {}}\n')
    foreign = tmp_path / "mine.partial"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    for arguments, said in (
        ((strange, tmp_path / "m.gguf"), "ormaliz"),
        ((plain, there), "there exists; choose another name, or --overwrite"),
        ((plain, tmp_path / "file" / "out"), f"{tmp_path / 'file'} is a file, not a folder"),
        ((plain, tmp_path / os.fsdecode(b"caf\xe9")), "the name is not UTF-8"),
        ((plain, tmp_path / ("x" * 250)), "the name is longer than"),
        ((plain, tmp_path / "half"), "holds an interrupted run; --resume finishes it, --overwrite starts anew"),
        ((plain, tmp_path / "half", "--resume"), "the interrupted run differs in the version of oss-tools"),
        ((plain, tmp_path / "mine", "--overwrite"), "is in the way and holds no interrupted run"),
        ((plain, tmp_path / "out", "--shard-size", "5"), "--shard-size 5 is 5 bytes; write it as 5GB or 500MB"),
        (
            (plain, tmp_path / "out", "--format", "q4_0"),
            "container hf cannot hold q4_0; it holds bf16, f16, f32, fp8_block, fp8_e4m3",
        ),
        ((plain, tmp_path / "out", "--importance", tmp_path / "file"), "file: text, not an importance matrix"),
        ((plain, plain / "inside"), "the output cannot lie in, around or over the source"),
    ):
        for more in (["--dry-run"], []):
            status, stderr = convert_command(*arguments, *more)
            assert (status, stderr.count("\n")) == (2, 1), (arguments, more, stderr)
            assert said in stderr, (arguments, more)
            assert ".partial/" not in stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_refuses_a_disk_that_is_too_small(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    status, said = convert_command(synthetic("llama-tiny"), tmp_path / "out", "--dry-run")
    assert status == 3
    assert "are needed and 1 kB are free" in said


def test_a_run_that_values_refuse_leaves_nothing_and_one_that_a_disk_refuses_can_be_resumed(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copied(synthetic("llama-tiny", "f32"), tmp_path / "source")
    file = source / "model.safetensors"
    content = bytearray(file.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    start = 8 + int.from_bytes(content[:8], "little") + header["model.layers.0.mlp.up_proj.weight"]["data_offsets"][0]
    content[start : start + 4] = struct.pack("<f", np.nan)
    file.write_bytes(content)
    for _ in range(2):
        with pytest.raises(BadTensor, match=r"up_proj.weight: holds NaN"):
            convert(source, tmp_path / "q.gguf", "gguf", recipe_of_format("q8_0"))
    assert [p.name for p in tmp_path.iterdir()] == ["source"]

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(NoRoom) as refused:
            convert(synthetic("llama-tiny"), tmp_path / "out", "hf")
    assert ".partial" not in str(refused.value)
    assert (tmp_path / "out.partial").is_dir()
    convert(synthetic("llama-tiny"), tmp_path / "out", "hf", resume=True)


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_the_second_of_two_writers_is_told_that_the_place_is_in_use(
    synthetic: Synthetic, tmp_path: Path, options: dict
) -> None:
    source, target = synthetic("llama-tiny"), tmp_path / "out"
    partial = tmp_path / "out.partial"
    with output.claimed(partial, target) as made:
        assert made
        (partial / "model.safetensors").write_bytes(b"half")
        with pytest.raises(BadRecipe, match=r"out is in use: another process is making it"):
            convert(source, target, "hf", **options)
        assert (partial / "model.safetensors").read_bytes() == b"half"
    (partial / "model.safetensors").unlink()
    convert(source, target, "hf")  # an empty folder with a lock that nobody holds loses nothing


def test_one_who_comes_between_check_and_claim_is_told_the_same(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = pipeline.check

    def then_another(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        (tmp_path / "out.partial").mkdir()
        lock = (tmp_path / "out.partial" / output.LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(output, "_kept_for_the_test", lock, raising=False)

    monkeypatch.setattr(pipeline, "check", then_another)
    with pytest.raises(BadRecipe, match="is in use"):
        convert(synthetic("llama-tiny"), tmp_path / "out", "hf")


@pytest.mark.parametrize("container", ["hf", "gguf"])
def test_what_another_made_between_check_and_claim_is_not_replaced(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    target = tmp_path / ("out.gguf" if container == "gguf" else "out")
    check = pipeline.check

    def then_another(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        target.mkdir() if container == "hf" else target.touch()

    monkeypatch.setattr(pipeline, "check", then_another)
    with pytest.raises(BadRecipe, match="exists; choose another name, or --overwrite"):
        convert(synthetic("llama-tiny"), target, container)
    assert list(tmp_path.iterdir()) == [target]


# ---- fallbacks, and what was rounded already ------------------------------------------------------------------------


def test_a_fallback_is_an_error_where_none_is_allowed(synthetic: Synthetic, tmp_path: Path) -> None:
    source = synthetic("llama-tiny")
    with open_checkpoint(source) as checkpoint:
        roles = {e.spec.role for e in checkpoint.entries.values()}
    assert "embedding" in roles
    command = (source, tmp_path / "out", "--format", "int8_g32")
    status, said = convert_command(*command, "--dry-run")
    assert status == 0  # Hugging Face's layout has no quantized embedding; it is kept
    for more in (["--dry-run"], []):
        status, said = convert_command(*command, "--no-fallback", *more)
        assert status == 2
        assert "no fallback is allowed, but 1 × embedding would be in bf16 (hf has no int8_g32 for embedding)" in said
    recipe = tmp_path / "strict.yaml"
    recipe.write_text("no_fallback: true\nrules:\n  - role: embedding\n    format: keep\n  - format: int8_g32\n")
    assert convert_command(source, tmp_path / "out", "--recipe", recipe)[0] == 0
    recipe.write_text("no_fallback: true\nrules:\n  - format: int8_g32\n")
    assert convert_command(source, tmp_path / "again", "--recipe", recipe)[0] == 2
    recipe.write_text("no_fallback: 1\nrules: []\n")
    assert "no_fallback is true or false" in convert_command(source, tmp_path / "again", "--recipe", recipe)[1]
    assert "exclude each other" in convert_command(*command, "--no-fallback", "--fallback", "f16")[1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("iq4_xs", "iq4_xs can be read but not written; formats to write: in gguf bf16, f16, f32, iq4_nl"),
        ("Q2_K_L", "Q2_K_L is llama.cpp's name of a mixture of formats; recipes of such mixtures: q3_k_m, q4_k_m"),
        ("nf4", "no number format named 'nf4'; did you mean nvfp4 or mxfp4? Formats to write: in gguf"),
    ],
)
def test_a_format_that_cannot_be_written_is_refused_with_those_that_can(
    synthetic: Synthetic, tmp_path: Path, name: str, said: str
) -> None:
    for option in ("--format", "--fallback"):
        status, stderr = convert_command(synthetic("llama-tiny"), tmp_path / "out.gguf", option, name)
        assert status == 2
        assert said in stderr
        assert "in hf bf16, f16, f32, fp8_block, fp8_e4m3, int8" in stderr
    assert recipe_of_format("Q8_0") == recipe_of_format("q8_0")


def test_rounding_what_was_rounded_is_said_on_the_screen_and_in_the_record(synthetic: Synthetic, tmp_path: Path) -> None:
    source, once, twice = synthetic("llama-tiny"), tmp_path / "once.gguf", tmp_path / "twice.gguf"
    first = convert_command(source, once, "--format", "q4_0")
    assert first[0] == 0
    assert "rounded already" not in first[1]
    report = tmp_path / "errors.json"
    command = ["requantize", str(once), str(twice), "--format", "q8_0", "-q", "--report", str(report)]
    done = CliRunner().invoke(app, command)
    assert f"{once} was rounded already (q4_0): the errors are against it" in done.stderr
    assert f"errors against  {once} was rounded already (q4_0)" in done.stdout
    assert json.loads(report.read_text())["source_rounded_already"] == ["q4_0"]
    moved = convert_command(once, tmp_path / "moved.gguf")
    assert moved[0] == 0
    assert "rounded already" not in moved[1]


def test_a_recipe_of_several_formats_names_those_that_are_rounded_again(synthetic: Synthetic, tmp_path: Path) -> None:
    convert(synthetic("llama-tiny"), tmp_path / "q.gguf", "gguf", Recipe("mix", (Rule("q8_0", role="mlp.*"), Rule("q4_0"))))
    rules = (Rule("keep", role="mlp.*"), Rule("q5_0"))
    with open_checkpoint(tmp_path / "q.gguf") as checkpoint:
        from oss_tools.convert.plan import make_plan

        assert make_plan(checkpoint, "gguf", Recipe("again", rules)).rounded_before == ["q4_0"]
        assert make_plan(checkpoint, "gguf", KEEP_ALL).rounded_before == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"plan": 3}, "the field plan is '3'"),
        ({"tensors": []}, "its tensors are not those of its manifest"),
        ({"tensors": [3]}, "not a manifest of oss-tools"),
        ({"tensors": None}, "not a manifest of oss-tools"),
        ({"recipe": None}, "the field recipe is 'None'"),
        ({"schema": 9}, "schema 9, this program reads 1"),
        ({"surprise": 1}, "not a manifest of oss-tools"),
    ],
)
def test_a_manifest_of_other_types_is_a_line(synthetic: Synthetic, tmp_path: Path, change: dict, said: str) -> None:
    source, target = synthetic("llama-tiny"), tmp_path / "out"
    convert(source, target, "hf")
    path = manifest_path(target)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((BadCheckpoint, BadRecipe), match=said):
        convert(source, target, "hf", resume=True)
