"""k-quants that llama.cpp made run in their own form, of their own size, and llama.cpp runs those that are made here."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import load_recipe, recipe_names, recipe_of_format
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.engine.engine import Engine
from oss_tools.measure.conversion import LLAMA_QUANTIZE
from oss_tools.models import open_checkpoint
from tests.interop.peers import llama_cpp_logits, mean_kld

pytest.importorskip("llama_cpp", reason="needs the extra `peers`")
pytestmark = pytest.mark.peers
FILE_TYPES = {"q4_k": 15, "q5_k": 17, "q6_k": 18, "q3_k": 12, "q2_k": 10}  # llama_ftype: MOSTLY_Q4_K_M, …


def made(name: str, path: Path) -> Path:
    """A model whose rows divide into the 256 values of a k-quant's block."""
    shape = load_shape(name)
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    }
    shape = replace(shape, config=shape.config | sizes)
    return synthesize(plan_synthesis(shape, "gguf", load_recipe("bf16")), path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("llama-tiny", tmp_path_factory.mktemp("k") / "plain.gguf")


@pytest.mark.parametrize("name", ["q4_k", *(pytest.param(n, marks=pytest.mark.slow) for n in FILE_TYPES if n != "q4_k")])
def test_k_quants_run_as_they_are(plain: Path, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.gguf"
    subprocess.run([sys.executable, "-c", LLAMA_QUANTIZE, plain, path, str(FILE_TYPES[name]), "1"], check=True)
    with open_checkpoint(path) as checkpoint:
        matrices = [entry for entry in checkpoint.entries.values() if not entry.spec.is_vector]
    stored, matrix_bytes = {entry.format.name for entry in matrices}, sum(entry.nbytes for entry in matrices)
    assert name in stored
    assert all(format.endswith("_k") for format in stored)
    tokens = np.random.default_rng(0).integers(3, 250, 60).tolist()
    said: list[str] = []
    with (
        Engine.load(path, backend="torch") as truth,
        Engine.load(path, activations="f32", say=said.append) as exact,
        Engine.load(path) as quick,
    ):
        expected = truth.logits(tokens)
        assert expected.std() > 0.1
        assert mean_kld(expected, exact.logits(tokens)) < 1e-4
        assert mean_kld(expected, quick.logits(tokens)) < 1e-3
        kept = quick.backend.facts()["weight_bytes"]
        assert {format for format in kept if format.endswith("_k")} == stored
        assert sum(kept[format] for format in stored) <= 1.02 * matrix_bytes  # panels are whole lines
    assert not said


@pytest.mark.parametrize("recipe", ["q3_k_m", "q4_k_m", "q5_k_s", "q6_k", "q2_k"])
@pytest.mark.parametrize("shape", ["llama-tiny", "mixtral-tiny"])
def test_llama_cpp_runs_what_is_written(shape: str, recipe: str, tmp_path: Path) -> None:
    source = made(shape, tmp_path / "source.gguf")
    path = tmp_path / "k.gguf"
    chosen = load_recipe(recipe) if recipe in recipe_names() else recipe_of_format(recipe)
    with open_checkpoint(source) as checkpoint:
        run(make_plan(checkpoint, "gguf", chosen), path, Options())
    tokens = np.random.default_rng(1).integers(3, 250, 40).tolist()
    theirs = llama_cpp_logits(path, tokens)
    with Engine.load(path, backend="torch") as truth, Engine.load(path) as quick:
        expected = truth.logits(tokens)
        assert expected.std() > 0.1
        assert mean_kld(expected, quick.logits(tokens)) < 2e-3
        assert mean_kld(expected, theirs) < 2e-2  # whose activations have a scale for 256 values
