"""Weights that lie ready in the file: the same logits bit for bit, memory that is the system's, and no wrong token where the file
is changed under it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oss_tools.checkpoints.mapped_file import MappedFile
from oss_tools.cli import _engine
from oss_tools.convert.recipe import Recipe, Rule, recipe_of_format
from oss_tools.convert.synth import Shape, plan_synthesis, synthesize
from oss_tools.engine.backend import Options
from oss_tools.engine.engine import Engine
from oss_tools.engine.numba_backend import NumbaBackend
from oss_tools.engine.numba_weights import kernel_bytes, kernel_format
from oss_tools.errors import BadCheckpoint, BadRequest, NoRoom
from oss_tools.machine import memory
from oss_tools.models import open_checkpoint
from tests.convert.helpers import convert
from tests.models.small_families import CONFIGS

TOKENS = np.random.default_rng(3).integers(0, 200, 150).tolist()
MIXED = Recipe("mixed", (Rule("q8_0", "attention.v"), Rule("q4_0", "attention.q"), Rule("q5_1", "mlp.up"), Rule("bf16")))

SLOW = pytest.mark.slow


def logits(path: Path, load: str = "mapped", activations: str = "int8") -> np.ndarray:
    with Engine.load(path, threads=2, context=256, load=load, activations=activations) as engine:
        facts = engine.backend.facts()
        assert ("mapped_bytes" in facts) == (load == "mapped" and path.suffix == ".ready")
        return engine.logits(TOKENS)


def assert_same_logits(source: Path, ready: Path) -> None:
    for activations in ("int8", "f32"):
        expected = logits(source, activations=activations)
        assert np.isfinite(expected).all()
        for load in ("mapped", "resident"):
            np.testing.assert_array_equal(logits(ready, load, activations), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "format", ["", "q4_0", *(pytest.param(f, marks=SLOW) for f in ("q8_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "f16", "f32"))]
)
def test_the_same_logits_as_from_gguf(tiny_gpt_oss: Path, format: str, tmp_path: Path) -> None:
    convert(tiny_gpt_oss, tmp_path / "a.gguf", "gguf", *([recipe_of_format(format)] if format else []))
    convert(tmp_path / "a.gguf", tmp_path / "a.ready", "ready")
    assert_same_logits(tmp_path / "a.gguf", tmp_path / "a.ready")


@pytest.mark.parametrize(
    "format", ["int8", *(pytest.param(f, marks=SLOW) for f in ("int8_g32", "int8_g128", "fp8_e4m3", "fp8_block", "nvfp4"))]
)
def test_the_same_logits_as_from_folders_of_other_formats(tiny_llama: Path, format: str, tmp_path: Path) -> None:
    """Some of which have no kernels: they are converted on the way, as from any file."""
    convert(tiny_llama, tmp_path / "a", "hf", recipe_of_format(format).falling_back(("bf16",)))
    convert(tmp_path / "a", tmp_path / "a.ready", "ready")
    assert_same_logits(tmp_path / "a", tmp_path / "a.ready")


@pytest.mark.slow
def test_the_same_logits_where_formats_differ_in_a_layer(tiny_llama: Path, tmp_path: Path) -> None:
    convert(tiny_llama, tmp_path / "a.gguf", "gguf", MIXED)
    convert(tmp_path / "a.gguf", tmp_path / "a.ready", "ready")
    assert_same_logits(tmp_path / "a.gguf", tmp_path / "a.ready")


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS, ids="-".join)
def test_the_same_logits_of_every_family(kind: tuple[str, str], tmp_path: Path) -> None:
    synthesize(plan_synthesis(Shape("a", CONFIGS[kind], "bf16", ""), "hf"), tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "a.ready", "ready")
    np.testing.assert_array_equal(logits(tmp_path / "a.ready"), logits(tmp_path / "a"))


def test_all_matrices_are_mapped_and_nothing_is_reserved_for_them(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    convert(tiny_gpt_oss, tmp_path / "a.ready", "ready")
    with open_checkpoint(tmp_path / "a.ready") as checkpoint:
        matrices = [e for e in checkpoint.entries.values() if not e.spec.is_vector]
        panels = sum(
            kernel_format(e).bytes_per_row(e.spec.matrices[2]) * e.spec.size // e.spec.matrices[2] for e in matrices
        )
        assert kernel_bytes(checkpoint) - kernel_bytes(checkpoint, mapped=True) == panels
        with Engine.load(checkpoint, threads=1, context=64) as engine:
            assert isinstance(engine.backend, NumbaBackend)
            assert engine.backend.weights.mapped_bytes == sum(p.nbytes for p in engine.backend.weights.packed)
            assert not any(p.data.flags.writeable for p in engine.backend.weights.packed)
            assert set(engine.backend.ceilings()) == {"read", "multiply"}


def test_a_file_larger_than_memory_is_run_with_a_line(
    tiny_gpt_oss: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(tiny_gpt_oss, tmp_path / "a.ready", "ready")
    said: list[str] = []
    with open_checkpoint(tmp_path / "a.ready") as checkpoint:
        small = kernel_bytes(checkpoint) // 2
        options = Options(threads=1, context=64, say=said.append)
        monkeypatch.setattr(memory, "available_memory", lambda: memory.WORK_BYTES + small)
        NumbaBackend.require(checkpoint, options)
        monkeypatch.setattr(memory, "available_memory", lambda: small)
        NumbaBackend(checkpoint, options, lambda nbytes: None).close()
        with pytest.raises(NoRoom):
            NumbaBackend.require(checkpoint, replace(options, load="resident"))
    assert len(said) == 1
    assert "larger than the free memory" in said[0]


def test_a_file_that_cannot_be_mapped_is_one_line() -> None:
    with open(os.devnull, "rb") as nothing, pytest.raises(NoRoom, match=r"cannot be mapped: .*--load resident"):
        MappedFile(nothing.fileno(), Path("a.ready"))


def test_unknown_ways_to_load_are_refused(tiny_gpt_oss: Path) -> None:
    with pytest.raises(BadRequest, match="mapped, resident"):
        Engine.load(tiny_gpt_oss, load="lazily")


# ---- changed under it -----------------------------------------------------------------------------------------------


@pytest.fixture
def ready(tiny_gpt_oss: Path, tmp_path: Path) -> Path:
    convert(tiny_gpt_oss, tmp_path / "a.ready", "ready")
    return tmp_path / "a.ready"


def changed(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff")


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def touched(path: Path) -> None:
    os.utime(path)


@pytest.mark.parametrize("deed", [changed, grown, touched])
def test_a_file_that_is_written_to_gives_no_token(ready: Path, deed) -> None:
    with Engine.load(ready, threads=1, context=64) as engine:
        sequence = engine.open([1, 2])
        engine.prefill(sequence, [1, 2])
        time.sleep(0.02)  # times of files have steps
        deed(ready)
        with pytest.raises(BadCheckpoint, match=r"a\.ready: was changed while it was in use"):
            engine.step([sequence], [3])


def test_a_file_that_is_written_to_between_pass_and_logits_gives_no_token(ready: Path) -> None:
    with Engine.load(ready, threads=1, context=64) as engine:
        engine.prefill(engine.open([1, 2]), [1, 2])
        time.sleep(0.02)
        changed(ready)
        with pytest.raises(BadCheckpoint, match="was changed"):
            engine.backend.logits(np.array([1]))


def test_a_file_that_is_replaced_removed_or_renamed_stays_as_it_was(ready: Path, tiny_llama: Path, tmp_path: Path) -> None:
    expected = logits(ready)
    with Engine.load(ready, threads=1, context=256) as engine:
        ready.rename(tmp_path / "b.ready")
        shutil.copyfile(tmp_path / "b.ready", ready)
        (tmp_path / "b.ready").chmod(0o600)
        np.testing.assert_array_equal(engine.logits(TOKENS), expected)
        (tmp_path / "b.ready").unlink()
        np.testing.assert_array_equal(engine.logits(TOKENS), expected)


def test_weights_that_were_copied_need_no_file(ready: Path) -> None:
    expected = logits(ready)
    with Engine.load(ready, threads=1, context=256, load="resident") as engine:
        ready.write_bytes(b"")
        np.testing.assert_array_equal(engine.logits(TOKENS), expected)


@pytest.mark.parametrize("when", ["before a pass", "while the prompt is computed"])
def test_a_file_that_is_cut_short_is_one_line_and_no_token(ready: Path, when: str) -> None:
    """Reading behind the new end is an error of the processor (SIGBUS), in whichever thread meets it."""
    program = f"""
        import os, sys, threading
        from oss_tools.engine.engine import Engine
        path = sys.argv[1]
        engine = Engine.load(path, threads=2, context=4096)
        sequence = engine.open([1] * 3000)
        if {when == "before a pass"}:
            os.truncate(path, 4096)
        else:
            threading.Timer(0.01, os.truncate, (path, 4096)).start()
        for _ in range(10_000):
            print(engine.logits([1] * 3000).argmax() >= 0 and "a token", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(ready)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 or (done.returncode == 1 and "BadCheckpoint" in done.stderr), done
    if done.returncode == 2:
        assert done.stderr.startswith("oss-tools: a mapped file could not be read")
        assert done.stderr.count("\n") == 1
    if when == "before a pass":
        assert not done.stdout


# ---- the hint -------------------------------------------------------------------------------------------------------


def test_what_a_ready_file_would_save_is_said_where_it_is_worth_it(capsys: pytest.CaptureFixture[str]) -> None:
    _engine.hint_at_ready(Path("some models/a b.gguf"), "gguf", 41.6)
    said = capsys.readouterr().err
    assert "took 42 s" in said
    assert "oss-tools convert 'some models/a b.gguf' 'a b.ready'" in said
    _engine.hint_at_ready(Path("a.b-v0.3"), "hf", 2.0)
    assert "convert a.b-v0.3 a.b-v0.3.ready" in capsys.readouterr().err
    _engine.hint_at_ready(Path("a.gguf"), "gguf", 0.3)
    _engine.hint_at_ready(Path("a.ready"), "ready", 41.6)
    assert not capsys.readouterr().err
