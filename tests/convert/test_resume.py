"""What --resume goes on with, and what it does not."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.convert import output
from oss_tools.convert.journal import Journal
from oss_tools.convert.manifest import Manifest, TensorRecord, manifest_path
from oss_tools.convert.recipe import recipe_of_format
from oss_tools.errors import BadCheckpoint, BadRecipe
from oss_tools.models import Checkpoint, open_checkpoint
from oss_tools.verify import verify
from tests.convert.helpers import Synthetic, contents, convert, convert_command, copied


def interrupted_after(tensors: int, monkeypatch: pytest.MonkeyPatch, *arguments: object, **options: object) -> None:
    """A conversion that is interrupted when so many tensors are complete."""
    add, done = Journal.add, iter(range(10**6))

    def some(journal: Journal, record: TensorRecord) -> None:
        if next(done) >= tensors:
            raise KeyboardInterrupt
        add(journal, record)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", some)
        with pytest.raises(KeyboardInterrupt):
            convert(*arguments, **options)  # type: ignore[arg-type]


def change_quietly(file: Path, every: int = 997) -> None:
    """Changes bytes of the tensors throughout a file and gives it its old times, as `rsync -t` of another build may."""
    state, content = file.stat(), bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little") if file.suffix == ".safetensors" else len(content) // 10
    for at in range(start, len(content), every):
        content[at] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)


@pytest.mark.parametrize("container", ["hf", "gguf"])
def test_a_source_that_changed_under_its_old_size_and_time_is_not_mixed_with_the_old_one(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    suffix = ".gguf" if container == "gguf" else ""
    source = copied(synthetic("llama-tiny", "bf16", container), tmp_path / f"source{suffix}")
    target = tmp_path / "out"
    interrupted_after(5, monkeypatch, source, target, "hf", recipe_of_format("int8_g32"))
    change_quietly(source if container == "gguf" else source / "model.safetensors")
    with pytest.raises(BadRecipe, match=r"has changed since: [a-z]\S+ holds other values; --overwrite starts anew"):
        convert(source, target, "hf", recipe_of_format("int8_g32"), resume=True)
    assert not target.exists()
    made = convert(source, target, "hf", recipe_of_format("int8_g32"), overwrite=True)
    fresh = convert(source, tmp_path / "fresh", "hf", recipe_of_format("int8_g32"))
    assert made.tensors == fresh.tensors
    assert contents(target) == contents(tmp_path / "fresh")


def test_a_touched_or_moved_source_of_the_same_values_is_gone_on_with(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = copied(synthetic("llama-tiny"), tmp_path / "source"), tmp_path / "out"
    interrupted_after(5, monkeypatch, source, target, "hf")
    os.utime(source / "model.safetensors", (1, 1))
    convert(source, target, "hf", resume=True)
    with open_checkpoint(source) as a, open_checkpoint(target) as b:
        assert verify(a, b).equal


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: (s / "chat_template.jinja").write_text("{{ messages }}"), "differs in the chat templates"),
        (lambda s: (s / "README.md").write_text("---\nlicense: mit\n---\n"), "differs in the model's name or card"),
        (
            lambda s: (s / "generation_config.json").write_text('{"temperature": 0.5}'),
            "differs in the configuration",
        ),
        (
            lambda s: (s / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<other>"})),
            "differs in the tokenizer",
        ),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_another_companion_is_another_plan_and_is_named(
    synthetic: Synthetic,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    said: str,
    finished: bool,
) -> None:
    source, target = copied(synthetic("llama-tiny"), tmp_path / "source"), tmp_path / "out"
    if finished:
        convert(source, target, "hf")
    else:
        interrupted_after(5, monkeypatch, source, target, "hf")
    change(source)
    with pytest.raises(BadRecipe, match=f"{said}.*--overwrite"):
        convert(source, target, "hf", resume=True)


def test_other_importance_weights_are_another_plan(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = synthetic("llama-tiny"), tmp_path / "out.gguf"
    name = "model.layers.0.mlp.down_proj.weight"
    with open_checkpoint(source) as checkpoint:
        columns = checkpoint.entries[name].spec.matrices[2]
    weights = np.ones(columns, np.float32)
    arguments = (source, target, "gguf", recipe_of_format("q4_0"))
    interrupted_after(3, monkeypatch, *arguments, importance={name: weights})
    with pytest.raises(BadRecipe, match="differs in the importance weights"):
        convert(*arguments, resume=True, importance={name: weights * 2})
    convert(*arguments, resume=True, importance={name: weights})


@pytest.mark.parametrize(("container", "suffix"), [("hf", ""), ("gguf", ".gguf")])
def test_resume_of_a_finished_run_succeeds_with_a_line_and_writes_nothing(
    synthetic: Synthetic, tmp_path: Path, container: str, suffix: str
) -> None:
    source, target = copied(synthetic("llama-tiny"), tmp_path / "source"), tmp_path / f"out{suffix}"
    for _ in range(3):
        status, said = convert_command(source, target, "--resume")
        assert status == 0
    assert len(said.splitlines()) == 1
    assert f"{target} is finished already" in said
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    assert convert_command(source, target, "--resume", "--dry-run")[0] == 0
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    status, said = convert_command(source, target, "--resume", "--format", "f16")
    assert status == 2
    assert f"{target} is finished, but differs in the recipe or format" in said
    change_quietly(source / "model.safetensors")
    status, said = convert_command(source, target, "--resume")
    assert status == 2
    assert "has changed since" in said
    assert Manifest.read(manifest_path(target)).tensors


def test_requantize_of_a_finished_run_writes_its_report_again(synthetic: Synthetic, tmp_path: Path) -> None:
    command = ["requantize", str(synthetic("llama-tiny")), str(tmp_path / "q.gguf"), "--format", "q8_0", "-q", "--resume"]
    reports = []
    for name in ("a.json", "b.json"):
        assert CliRunner().invoke(app, [*command, "--report", str(tmp_path / name)]).exit_code == 0
        reports.append(json.loads((tmp_path / name).read_text()))
    assert [r["finished_before"] for r in reports] == [False, True]
    assert reports[0]["tensors"] == reports[1]["tensors"] != []


def test_an_output_that_is_no_longer_whole_is_not_called_finished(synthetic: Synthetic, tmp_path: Path) -> None:
    source, target = synthetic("llama-tiny"), tmp_path / "out"
    convert(source, target, "hf")
    with (target / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BadCheckpoint):
        convert(source, target, "hf", resume=True)
    (target / "oss-tools-manifest.json").unlink()
    with pytest.raises(BadRecipe, match="has no manifest that says of what it was made"):
        convert(source, target, "hf", resume=True)


def test_killed_while_the_parts_get_their_names_it_finishes(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = synthetic("llama-tiny"), tmp_path / "out.gguf"
    convert(source, tmp_path / "whole" / "out.gguf", "gguf", shard_size=200_000)
    replace, calls = os.replace, iter(range(100))

    def killed(a: Path, b: Path) -> None:
        if Path(b).parent == tmp_path and next(calls) == 2:
            raise KeyboardInterrupt
        replace(a, b)

    with monkeypatch.context() as patched:
        patched.setattr(output.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(source, target, "gguf", shard_size=200_000)
    assert len(list(tmp_path.glob("out-*.gguf"))) == 2
    with pytest.raises(BadRecipe, match="holds an interrupted run"):
        convert(source, target, "gguf", shard_size=200_000)
    convert(source, target, "gguf", shard_size=200_000, resume=True)
    whole = sorted((tmp_path / "whole").glob("out*"))
    assert [f.name for f in whole] == sorted(f.name for f in tmp_path.glob("out*"))
    assert all(f.read_bytes() == (tmp_path / f.name).read_bytes() for f in whole)


def test_a_source_that_is_written_while_it_is_read_is_found_out(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copied(synthetic("llama-tiny"), tmp_path / "source")
    read = Checkpoint.read

    def meanwhile(*given: object) -> object:
        os.utime(source / "model.safetensors", (5, 5))
        return read(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Checkpoint, "read", meanwhile)
    with pytest.raises(BadCheckpoint, match="was changed while it was read"):
        convert(source, tmp_path / "out", "hf")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
