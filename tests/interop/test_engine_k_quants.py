"""Formats without a kernel of their own: k-quants that llama.cpp made run as q8_0, and lose nothing by it that would show."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oss_tools.convert.recipe import load_recipe
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.engine.engine import Engine
from oss_tools.measure.conversion import LLAMA_QUANTIZE
from oss_tools.models import open_checkpoint
from tests.interop.peers import mean_kld

pytest.importorskip("llama_cpp", reason="needs the extra `peers`")
pytestmark = pytest.mark.peers
FILE_TYPES = {"q4_k": 15, "q5_k": 17, "q6_k": 18, "q3_k": 12}  # llama_ftype: MOSTLY_Q4_K_M, …


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose rows divide into the 256 values of a k-quant's block."""
    shape = load_shape("llama-tiny")
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    }
    shape = replace(shape, config=shape.config | sizes)
    folder = tmp_path_factory.mktemp("k")
    return synthesize(plan_synthesis(shape, "gguf", load_recipe("bf16")), folder / "plain.gguf")


@pytest.mark.parametrize("name", FILE_TYPES)
def test_k_quants_run_as_q8_0(plain: Path, name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.gguf"
    subprocess.run([sys.executable, "-c", LLAMA_QUANTIZE, plain, path, str(FILE_TYPES[name]), "1"], check=True)
    with open_checkpoint(path) as checkpoint:
        stored = {entry.format.name for entry in checkpoint.entries.values() if not entry.spec.is_vector}
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
        assert set(quick.backend.facts()["weight_bytes"]) == {"q8_0"}
    assert sorted(said) == sorted(f"no kernel for {format}: weights are kept as q8_0" for format in stored)
