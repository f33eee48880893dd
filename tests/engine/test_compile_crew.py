"""Kernels are compiled by several processes, into one cache; what one of them does not do is done by the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from numba_kernels.cpu import attention, copies, kv_pages, latent, linear, rows
from numba_kernels.cpu.embedding import embedding_op
from numba_kernels.cpu.op import Op, op
from numba_kernels.cpu.recipes import op_of, recipe_of
from numba_kernels.cpu.records import quantizing_to
from oss_tools.engine import compiling
from oss_tools.engine.compiling import Crew, compile_all
from oss_tools.engine.engine import Engine

ROOT = Path(__file__).parent.parent.parent
OPS = [
    rows.rms_norm,
    quantizing_to(rows.rms_norm, "int8"),
    quantizing_to(rows.rms_norm, "int8_g16"),
    quantizing_to(rows.gated_op("swiglu"), "int8_g16"),
    embedding_op("q8_0"),
    linear.linear_op("mxfp4", "int8", many=False),
    linear.linear_op("bf16"),
    attention.attention_op(8),
    attention.attention_op(1, "f32", 300),
    kv_pages.store_op("f32"),
    latent.store_latents_op("bf16"),
    latent.latent_attention_op("f32", 40),
    *latent.copy_latents_ops("f32"),
    *copies.copy_ops("bf16"),
    *copies.copy_ops("q8"),
]


@pytest.mark.parametrize("made", OPS, ids=lambda made: made.name)
def test_an_operation_is_made_anew_from_its_recipe(made: Op) -> None:
    recipe = recipe_of(made)
    assert recipe is not None
    assert op_of(json.loads(json.dumps(recipe))) is made


def test_an_operation_that_nobody_else_knows_has_no_recipe() -> None:
    @op
    def own(team, thread):  # type: ignore[no-untyped-def]
        """Nothing."""

    assert recipe_of(own) is None
    assert recipe_of(own.bind(SIZE=3)) is None


def models_kernels(recipes: list[str]) -> dict[str, list[object]]:
    return {name: ["op", recipe_of(getattr(rows, name))] for name in recipes}


def jobs_of(names: list[str], happened: list[str]) -> list[tuple[str, Callable[[], object]]]:
    """Jobs, of which the first compiles here."""
    numba = pytest.importorskip("numba")

    def carry_out(name: str) -> None:
        if name == names[0]:
            numba.njit("int64(int64)")(lambda x: 3 * x)
        happened.append(name)

    return [(name, lambda name=name: carry_out(name)) for name in names]  # type: ignore[misc]


def test_helpers_take_jobs_and_all_are_collected_here() -> None:
    happened: list[str] = []
    names = ["own", "scaled_sum", "join_heads", "rms_norm", "mine too"]
    crew = Crew(models_kernels(names[1:4]), 2)
    compile_all(jobs_of(names, happened), lambda *call: None, crew)
    assert sorted(happened) == sorted(names)
    assert len(crew._processes) == 2
    assert all(process.poll() is not None for process in crew._processes)


@pytest.mark.parametrize("command", ["import sys; sys.exit(1)", "input(); print('begins', flush=True)"])
def test_jobs_of_a_helper_that_ends_are_done_here(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen
    monkeypatch.setattr(compiling.subprocess, "Popen", lambda argv, **more: start([sys.executable, "-c", command], **more))
    happened: list[str] = []
    names = ["own", "scaled_sum", "join_heads", "rms_norm"]
    compile_all(jobs_of(names, happened), lambda *call: None, Crew(models_kernels(names[1:]), 3))
    assert sorted(happened) == sorted(names)


def test_an_error_here_ends_the_helpers() -> None:
    crew = Crew(models_kernels(["scaled_sum"]), 1)

    def fails() -> None:
        raise KeyboardInterrupt

    jobs = [*jobs_of(["own"], []), ("fails", fails), ("scaled_sum", lambda: None)]
    with pytest.raises(KeyboardInterrupt):
        compile_all(jobs, lambda *call: None, crew)
    assert all(process.poll() is not None for process in crew._processes)


def test_no_helper_is_started_where_all_is_compiled(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Engine.load(tiny_llama, threads=2).close()
    monkeypatch.setattr(compiling.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    Engine.load(tiny_llama, threads=2).close()


SCRIPT = """
import sys
from oss_tools.engine import numba_compiling
from oss_tools.engine.engine import Engine
numba_compiling.helpers = lambda threads, options: int(sys.argv[2])
calls = []
with Engine.load(sys.argv[1], threads=1, on_compile=lambda *call: calls.append(call)) as engine:
    print(len(calls), calls[-1:], engine.logits([1, 2, 3]).sum())
"""


@pytest.mark.slow
def test_a_model_that_helpers_have_compiled(tiny_llama: Path, tmp_path: Path) -> None:
    """From an empty cache, by three processes; then all is found there, and results are the same."""

    def run(helpers: int, cache: Path) -> list[str]:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", SCRIPT, str(tiny_llama), str(helpers)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
        return done.stdout.split()

    first, again = run(2, tmp_path / "cache"), run(0, tmp_path / "cache")
    assert int(first[0]) > 10
    assert again[:2] == ["0", "[]"]
    assert first[-1] == again[-1]
