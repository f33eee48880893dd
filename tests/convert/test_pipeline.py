"""Conversions: between all containers without loss, to every format with its cost, and through every kind of accident."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oss_tools.checkpoints.hf import HfWriter
from oss_tools.convert import pipeline
from oss_tools.convert.journal import JOURNAL
from oss_tools.convert.manifest import Manifest, manifest_path
from oss_tools.convert.output import partial_of
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import KEEP_ALL, Recipe, Rule, load_recipe, recipe_of_format, writable_formats
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.errors import BadRecipe, BadTensor, NoRoom, VerificationFailed
from oss_tools.formats import get_format
from oss_tools.models import open_checkpoint
from oss_tools.verify import verify
from tests.convert.helpers import contents, convert

EXTENSION = {"hf": "", "original": "", "gguf": ".gguf", "ready": ".ready"}


def assert_equal(a: Path, b: Path) -> None:
    with open_checkpoint(a) as x, open_checkpoint(b) as y:
        result = verify(x, y)
    assert result.equal, (result.said, result.differences[:3])
    assert result.compared == result.identical > 5


# ---- between containers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["mxfp4", "bf16"])
@pytest.mark.parametrize(
    "route",
    [
        ("gguf", "hf"),
        ("original", "hf"),
        ("original", "gguf", "hf"),
        ("gguf", "original", "hf"),
        ("hf",),
        ("ready", "hf"),
        ("gguf", "ready", "original", "ready", "hf"),
    ],
)
def test_gpt_oss_comes_back_byte_for_byte(synthetic, tmp_path: Path, recipe: str, route: tuple[str, ...]) -> None:
    first = source = synthetic("gpt-oss-tiny", recipe)
    for i, container in enumerate(route):
        target = tmp_path / f"{i}{EXTENSION[container]}"
        manifest = convert(source, target, container)
        assert all(t.proven_equal for t in manifest.tensors if t.format == "mxfp4" or t.action == "move")
        assert any(t.format == "mxfp4" for t in manifest.tensors) == (recipe == "mxfp4")
        assert_equal(first, target)
        source = target
    back = {k: v for k, v in contents(source).items() if k.endswith(".safetensors")}
    assert back == {k: v for k, v in contents(first).items() if k.endswith(".safetensors")}


def test_llama_comes_back_byte_for_byte_though_gguf_reorders_heads(synthetic, tmp_path: Path) -> None:
    source = synthetic("llama-tiny")
    convert(source, tmp_path / "x.gguf", "gguf")
    assert_equal(source, tmp_path / "x.gguf")
    with open_checkpoint(tmp_path / "x.gguf") as made, open_checkpoint(source) as original:
        name = "model.layers.0.self_attn.q_proj.weight"
        stored = made.reader.read("blk.0.attn_q.weight", 0, 4, made.entries[name].spec.shape[1])
        assert not np.array_equal(stored.dequantize(), original.read(name, 0, 0, 4).dequantize())
    convert(tmp_path / "x.gguf", tmp_path / "back", "hf")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_shards_hold_what_one_file_holds(synthetic, tmp_path: Path) -> None:
    source = synthetic("gpt-oss-tiny", "mxfp4")
    convert(source, tmp_path / "shards", "hf", shard_size=100_000)
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 1
    assert_equal(source, tmp_path / "shards")
    convert(tmp_path / "shards", tmp_path / "parts.gguf", "gguf", shard_size=100_000)
    parts = sorted(tmp_path.glob("parts-*-of-*.gguf"))
    assert len(parts) > 1
    assert_equal(source, parts[0])


# ---- to other formats -----------------------------------------------------------------------------------------------

SQNR_AT_LEAST = {
    "f32": 0,
    "q2_k": 7,
    "q3_k": 13,
    "q4_k": 19,
    "q5_k": 25,
    "mxfp4": 17,
    "nvfp4": 18,
    "q4_0": 17,
    "q4_1": 18,
    "iq4_nl": 18,
    "q5_0": 23,
    "q5_1": 24,
}


@pytest.mark.parametrize("format", writable_formats())
def test_every_format_can_be_written_and_its_error_is_what_the_values_say(synthetic, tmp_path: Path, format: str) -> None:
    source = synthetic("llama-tiny")
    if get_format(format).block == 256:
        shape = load_shape("llama-tiny")
        shape = replace(
            shape,
            config=shape.config | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": 64},
        )
        source = synthesize(plan_synthesis(shape, "hf", seed=3), tmp_path / "wide")
    container = "gguf" if get_format(format).ggml_type is not None and format != "nvfp4" else "hf"
    target = tmp_path / f"out{EXTENSION[container]}"
    recipe = recipe_of_format(format).falling_back(("bf16",))  # rows of 64 are no multiple of int8_g128's block
    manifest = convert(source, target, container, recipe)
    with open_checkpoint(source) as a, open_checkpoint(target) as b:
        assert {e.format.name for e in b.entries.values()} >= {format}
        for record in manifest.tensors:
            if record.error is None:
                continue
            original = a.read_tensor(record.name).dequantize().astype(np.float64)
            decoded = b.read_tensor(record.name).dequantize().astype(np.float64)
            relative = np.linalg.norm(decoded - original) / np.linalg.norm(original)
            assert record.error.relative_error == pytest.approx(relative, rel=1e-4)
            assert record.error.max_error == pytest.approx(np.abs(decoded - original).max(), rel=1e-4)
            assert record.error.sqnr_db is None or record.error.sqnr_db >= SQNR_AT_LEAST.get(format, 30)
    assert any(r.error for r in manifest.tensors) == (format not in ("bf16", "f32"))


def test_blocks_of_rows_do_not_depend_on_chunks(tmp_path: Path) -> None:
    """A matrix whose chunks hold fewer rows than it has, and whose last block is cut: as if it were rounded in one piece."""
    shape = load_shape("llama-tiny")
    shape = replace(shape, config=shape.config | {"num_hidden_layers": 1, "intermediate_size": 16500})
    source = synthesize(plan_synthesis(shape, "hf", seed=3), tmp_path / "bf16")
    blocks = recipe_of_format("fp8_block")
    convert(source, tmp_path / "rounded", "hf", blocks)
    synthesize(plan_synthesis(shape, "hf", blocks, seed=3), tmp_path / "drawn")
    with (
        open_checkpoint(source) as exact,
        open_checkpoint(tmp_path / "rounded") as rounded,
        open_checkpoint(tmp_path / "drawn") as drawn,
    ):
        for name in ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.down_proj.weight"):
            whole = get_format("fp8_block").quantize(exact.read_tensor(name).dequantize())
            found = rounded.read_tensor(name)
            assert all(np.array_equal(whole.planes[plane], found.planes[plane]) for plane in whole.planes), name
            assert drawn.read_tensor(name).dequantize().std() == pytest.approx(whole.dequantize().std(), rel=0.02)
    convert(tmp_path / "rounded", tmp_path / "again", "hf")
    assert contents(tmp_path / "again") == contents(tmp_path / "rounded")


def test_bf16_experts_go_to_mxfp4_as_openai_ships_them(synthetic, tmp_path: Path) -> None:
    manifest = convert(synthetic("gpt-oss-tiny"), tmp_path / "out", "hf", load_recipe("mxfp4"))
    formats = {(r.role, r.format) for r in manifest.tensors}
    assert {f for role, f in formats if role.startswith("experts.")} == {"mxfp4"}
    assert {f for role, f in formats if not role.startswith("experts.")} == {"bf16"}
    assert Manifest.read(manifest_path(tmp_path / "out")) == manifest


def test_mxfp4_into_int8_by_32_and_back_keeps_every_value(synthetic, tmp_path: Path) -> None:
    source = synthetic("gpt-oss-tiny", "mxfp4")
    int8 = Recipe("int8", (Rule("int8_g32", role="experts.*"),))
    manifest = convert(source, tmp_path / "int8", "hf", int8)
    assert {r.action for r in manifest.tensors if r.format == "int8_g32"} == {"decode"}
    assert_equal(source, tmp_path / "int8")


def test_importance_lowers_the_error_of_the_columns_that_count(synthetic, tmp_path: Path) -> None:
    source = synthetic("llama-tiny")
    name = "model.layers.0.mlp.up_proj.weight"
    with open_checkpoint(source) as checkpoint:
        original = checkpoint.read_tensor(name).dequantize()
    weights = np.ones(original.shape[1], np.float32)
    weights[::8] = 100
    errors = []
    for i, importance in enumerate((None, {name: weights})):
        convert(source, tmp_path / f"{i}.gguf", "gguf", recipe_of_format("q4_0"), importance=importance)
        with open_checkpoint(tmp_path / f"{i}.gguf") as checkpoint:
            delta = checkpoint.read_tensor(name).dequantize() - original
        errors.append(float((weights * delta**2).sum()))
    assert errors[1] < 0.95 * errors[0]


# ---- what a plan refuses or remarks ---------------------------------------------------------------------------------


def test_rows_that_are_no_multiple_of_the_block_are_an_error_that_names_tensor_and_axis(synthetic, tmp_path: Path) -> None:
    with open_checkpoint(synthetic("gpt-oss-tiny")) as checkpoint:
        with pytest.raises(BadTensor, match=r"gate_up_proj: axis 2 has 64 values, not a multiple of the 128"):
            make_plan(checkpoint, "hf", Recipe("r", (Rule("int8_g128", role="experts.*"),)))
        fallback = Recipe("r", (Rule("int8_g128", role="experts.*", otherwise=("int8_g32",)),))
        steps = {s.name: s for s in make_plan(checkpoint, "hf", fallback).steps}
        step = steps["model.layers.0.mlp.experts.down_proj"]
        assert step.target.format.name == "int8_g32"
        assert step.note == "int8_g128: 64 columns are no multiple of 128"


def test_a_container_that_cannot_hold_a_format_says_so(synthetic) -> None:
    with open_checkpoint(synthetic("llama-tiny")) as checkpoint:
        with pytest.raises(BadRecipe, match="container hf cannot hold q4_0"):
            make_plan(checkpoint, "hf", recipe_of_format("q4_0"))
        with pytest.raises(BadRecipe, match="no layout for llama"):
            make_plan(checkpoint, "original", KEEP_ALL)


def test_decoding_for_want_of_a_place_is_noted(synthetic, tmp_path: Path) -> None:
    source = synthetic("llama-tiny", "q4_0", "gguf")
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, "hf", KEEP_ALL)
    step = next(s for s in plan.steps if s.name == "model.layers.0.mlp.up_proj.weight")
    assert (step.target.format.name, step.action) == ("f32", "decode")
    assert "hf has no q4_0" in step.note
    convert(source, tmp_path / "out", "hf")
    assert_equal(source, tmp_path / "out")


# ---- NaN and infinity -----------------------------------------------------------------------------------------------


def poisoned(source: Path, target: Path) -> Path:
    """A copy whose last tensor bytes are bf16 NaN and infinity: lm_head or the last matrix in the file."""
    shutil.copytree(source, target)
    with open_checkpoint(target) as checkpoint:
        layout = checkpoint.reader
        name = "model.layers.1.mlp.down_proj.weight"
        tensor = layout.read(name, 0, 1, checkpoint.entries[name].spec.shape[1]).planes["values"].tobytes()
    data = bytearray((target / "model.safetensors").read_bytes())
    at = data.find(tensor)
    assert at > 0
    data[at : at + 4] = b"\xc0\x7f\x80\xff"  # NaN, -infinity
    (target / "model.safetensors").write_bytes(data)
    return target


def test_nan_is_refused_by_name_or_clamped(synthetic, tmp_path: Path) -> None:
    source = poisoned(synthetic("llama-tiny"), tmp_path / "source")
    with pytest.raises(BadTensor, match=r"model\.layers\.1\.mlp\.down_proj\.weight: holds NaN or infinity"):
        convert(source, tmp_path / "out.gguf", "gguf", recipe_of_format("q8_0"))
    assert not (tmp_path / "out.gguf").exists()
    convert(source, tmp_path / "out.gguf", "gguf", recipe_of_format("q8_0"), on_nonfinite="clamp", overwrite=True)
    with open_checkpoint(tmp_path / "out.gguf") as checkpoint:
        values = checkpoint.read_tensor("model.layers.1.mlp.down_proj.weight").dequantize()
    assert np.isfinite(values).all()
    assert values[0, 0] == 0  # NaN became 0
    assert values[0, 1] == values.min() < 0  # -infinity the largest magnitude there is


# ---- accidents ------------------------------------------------------------------------------------------------------

SLOW_CONVERSION = """
import sys, time
from pathlib import Path
from threading import Lock
from oss_tools.checkpoints import writer_for
from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.output import partial_of
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import load_recipe
from oss_tools.models import open_checkpoint

source, target, container, resume, last = sys.argv[1:]
writer = writer_for(container)
write, lock, writes = writer.write, Lock(), 0

def until_the_last(self, *arguments):
    global writes
    with lock:
        writes += 1
        if writes > int(last):
            print("waiting to be killed", flush=True)
            time.sleep(600)  # holding the lock: nothing is written any more but what is under way
    write(self, *arguments)

writer.write = until_the_last
with open_checkpoint(source) as checkpoint:
    plan = make_plan(checkpoint, container, load_recipe("mxfp4"))
    print("started", flush=True)
    run(plan, Path(target), Options(jobs=2, resume=resume == "1"))
"""


@pytest.mark.parametrize("container", ["hf", "gguf", "ready"])
def test_killed_at_any_moment_it_leaves_nothing_half_done_and_resumes_to_the_same_bytes(
    synthetic, tmp_path: Path, container: str
) -> None:
    source = synthetic("gpt-oss-tiny")
    convert(source, tmp_path / f"undisturbed{EXTENSION[container]}", container, load_recipe("mxfp4"))
    target = tmp_path / f"killed{EXTENSION[container]}"
    chance, kills, status = random.Random(container), 0, None
    for attempt in range(40):
        last = chance.randrange(6) if kills < 6 else 10**9  # writes before it waits for its end, however slow the machine is
        command = [
            sys.executable,
            "-c",
            SLOW_CONVERSION,
            str(source),
            str(target),
            container,
            str(int(attempt > 0)),
            str(last),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"started\n", process.communicate()[1]
        if kills < 6:
            assert process.stdout.readline() == b"waiting to be killed\n", process.communicate()[1]
            time.sleep(chance.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        status = process.returncode
        if status == 0:
            break
        assert status == -signal.SIGKILL, errors
        kills += 1
        assert not target.exists()
    assert status == 0
    assert kills == 6
    undisturbed = tmp_path / f"undisturbed{EXTENSION[container]}"
    if container == "hf":
        assert contents(target) == contents(undisturbed)
    else:
        assert_same_gguf(target, undisturbed)
    assert not list(tmp_path.glob("*.partial"))
    assert Manifest.read(manifest_path(target)).tensors == Manifest.read(manifest_path(undisturbed)).tensors


def assert_same_gguf(a: Path, b: Path) -> None:
    assert a.read_bytes() == b.read_bytes()


def full_after(writes: int) -> Callable[..., int]:
    """os.pwrite on a disk that is full after so many calls."""
    real, calls = os.pwrite, itertools.count()

    def full(*arguments: Any) -> int:
        if next(calls) > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    return full


def test_a_full_disk_is_one_line_and_resumable(synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = synthetic("gpt-oss-tiny"), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full_after(20))
        with pytest.raises(NoRoom, match=r"No space left.*free some space, then go on with --resume"):
            convert(source, target, "hf")
    assert not target.exists()
    convert(source, target, "hf", resume=True)
    assert_equal(source, target)


def test_disk_space_is_checked_before_the_first_byte(synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NoRoom, match=r"MB are needed and 1 kB are free"):
        convert(synthetic("gpt-oss-tiny"), tmp_path / "deep" / "out", "hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("container", ["gguf", "hf", "original", "ready"])
def test_what_does_not_arrive_as_it_was_written_is_found_out(
    synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    """One bit of one long write is another in the file."""
    real, left = os.pwrite, [1]

    def lying(descriptor: int, data: memoryview, offset: int) -> int:
        if len(data) > 5000 and offset > 100_000 and left:  # behind the header
            left.clear()
            data = memoryview(bytearray(data))
            data[4321] ^= 1
        return real(descriptor, data, offset)

    source = synthetic("gpt-oss-tiny", "mxfp4")
    monkeypatch.setattr(os, "pwrite", lying)
    with pytest.raises(VerificationFailed, match="the bytes on disk are not those"):
        convert(source, tmp_path / f"out{EXTENSION.get(container, '')}", container)
    assert not left
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_wrote_is_read_back_too(synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the run that goes on behind it, which did not write it."""
    source, target = synthetic("llama-tiny"), tmp_path / "out.gguf"
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full_after(12))
        with pytest.raises(NoRoom):
            convert(source, target, "gguf")
    journal = (partial_of(target) / JOURNAL).read_bytes()
    assert journal.count(b"\n") > 2
    file = partial_of(target) / target.name
    with open(file, "r+b") as written, open_checkpoint(file) as partly:
        name = json.loads(journal.splitlines()[1])["name"]
        stored = partly.entries[name].placements[0].stored
        _, info = partly.reader._places[stored]
        written.seek(info.offset)
        byte = written.read(1)[0]
        written.seek(info.offset)
        written.write(bytes([byte ^ 1]))
    with pytest.raises(VerificationFailed, match=f"{name}: the bytes on disk are not those"):
        convert(source, target, "gguf", resume=True)


def test_nothing_that_exists_is_lost(synthetic, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(synthetic("llama-tiny"), source)
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(BadRecipe, match=r"exists|holds no checkpoint"):
            convert(source, target, "hf", **options)
    assert (target / "thesis.tex").exists()
    for wrong in (source, source / "inside", tmp_path):
        with pytest.raises(BadRecipe):
            convert(source, wrong, "hf", overwrite=True)
    with pytest.raises(BadRecipe, match=r"a gguf checkpoint is a \.gguf file"):
        convert(source, tmp_path / "name", "gguf")
    before = contents(source)
    convert(source, tmp_path / "a", "hf")
    convert(source, tmp_path / "a", "hf", recipe_of_format("f16"), overwrite=True)
    with open_checkpoint(tmp_path / "a") as checkpoint:
        assert {e.format.name for e in checkpoint.entries.values()} == {"f16"}
    assert contents(source) == before


def test_an_interrupted_run_is_not_mixed_with_another_plan(
    synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = synthetic("llama-tiny"), tmp_path / "out"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(source, target, "hf")
    with pytest.raises(BadRecipe, match="holds an interrupted run"):
        convert(source, target, "hf")
    with pytest.raises(BadRecipe, match="differs in the recipe or format; --overwrite"):
        convert(source, target, "hf", recipe_of_format("f16"), resume=True)
    written: list[str] = []
    write = HfWriter.write
    monkeypatch.setattr(HfWriter, "write", lambda *a: written.append(a[1]) or write(*a))
    convert(source, target, "hf", resume=True)
    assert not written  # everything was complete
    assert_equal(source, target)


# ---- verify ---------------------------------------------------------------------------------------------------------


def test_verify_names_what_differs_and_where(synthetic, tmp_path: Path) -> None:
    a = synthetic("gpt-oss-tiny")
    target = tmp_path / "b"
    shutil.copytree(a, target)
    name = "model.layers.1.mlp.experts.down_proj"
    with open_checkpoint(target) as checkpoint:
        row = checkpoint.reader.read(name, 130, 131, 64).planes["values"].tobytes()  # expert 2, input 2
    data = bytearray((target / "model.safetensors").read_bytes())
    at = data.find(row) + 2 * 5  # output 5
    data[at : at + 2] = b"\x00\x41"  # 8.0
    (target / "model.safetensors").write_bytes(data)
    with open_checkpoint(a) as x, open_checkpoint(target) as y:
        result = verify(x, y)
        assert [d.name for d in result.differences] == [name]
        (difference,) = result.differences
        assert difference.differing == 1
        assert difference.first is not None
        index, _, found = difference.first
        assert (index, found) == ((2, 5, 2), 8.0)
        assert verify(x, y, tolerance=10.0).equal
        assert not verify(x, y, tolerance=1e-6).equal


def test_verify_sees_other_architectures_and_configurations(synthetic) -> None:
    with open_checkpoint(synthetic("gpt-oss-tiny")) as x, open_checkpoint(synthetic("llama-tiny")) as y:
        (difference,) = verify(x, y).said
        assert (difference.name, difference.a, difference.b) == ("config.model_type", "gpt_oss", "llama")
