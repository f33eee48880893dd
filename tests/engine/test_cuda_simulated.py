"""The CUDA backend in Numba's simulator, on a model of a few thousand weights: every thread is a Python thread."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

from numba_kernels.cuda.seam import SIMULATED
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.engine.engine import Engine
from oss_tools.engine.sampling import log_softmax

SMALL = {
    "hidden_size": 32, "intermediate_size": 32, "num_local_experts": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "vocab_size": 40, "sliding_window": 4,
}  # fmt: skip
TOKENS = [3, 1, 39, 7, 7, 20]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = load_shape("gpt-oss-tiny")
    shape = replace(shape, config=shape.config | SMALL)
    return synthesize(plan_synthesis(shape, "hf"), tmp_path_factory.mktemp("small") / "small")


@pytest.mark.skipif(not SIMULATED, reason="needs NUMBA_ENABLE_CUDASIM=1")
def test_steps(small: Path) -> None:
    """Token by token with float32, as the CPU; and the device's own choices."""
    exact = Engine.load(small, activations="f32", context=64, threads=1)
    engine = Engine.load(small, backend="cuda", activations="f32", context=64)
    difference = log_softmax(engine.logits(TOKENS)) - log_softmax(exact.logits(TOKENS))
    assert np.abs(difference).max() < 5e-5
    sequence = engine.open(TOKENS, room=4, reuse=0)
    first = int(engine.prefill(sequence, TOKENS).argmax())
    chosen = engine.backend.generate(sequence.cache, first, len(TOKENS), 2).tolist()  # type: ignore[attr-defined]
    wanted = exact.open(TOKENS, room=4, reuse=0)
    assert first == exact.prefill(wanted, TOKENS).argmax()
    assert chosen[0] == exact.step([wanted], [first])[0].argmax()
    assert chosen[1] == exact.step([wanted], [chosen[0]])[0].argmax()


@pytest.mark.skipif(not SIMULATED, reason="needs NUMBA_ENABLE_CUDASIM=1")
def test_prompts(small: Path) -> None:
    """At once, on what stands for the tensor cores; then a step, and copies of what is cached."""
    exact = Engine.load(small, activations="f32", context=64, threads=1).logits(TOKENS)
    engine = Engine.load(small, backend="cuda", context=64)
    sequence = engine.open(TOKENS, room=2, reuse=0)
    engine.prefill(sequence, TOKENS[:5])
    assert np.abs(log_softmax(engine.step([sequence], TOKENS[5:])[0]) - log_softmax(exact[5])).mean() < 0.05
    block = engine.backend.read_cache(sequence.cache, 0, 6)
    other = engine.open(TOKENS, room=2, reuse=0)
    engine.backend.write_cache(other.cache, 0, block)
    np.testing.assert_array_equal(engine.backend.read_cache(other.cache, 0, 6), block)
    assert engine.backend.device_memory()["allocated"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.skipif(SIMULATED, reason="this is the simulator")
def test_in_the_simulator() -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "2 passed" in done.stdout
