"""Activations in bfloat16: what they meet, what they cost, and that f16 weights are converted for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from numba_kernels.simd.path import ACTIVE
from oss_tools.convert.recipe import recipe_of_format
from oss_tools.engine.engine import Engine
from oss_tools.engine.numba_weights import kernel_bytes
from oss_tools.engine.sampling import log_softmax
from oss_tools.models import open_checkpoint
from tests.convert.helpers import convert

TOKENS = np.random.default_rng(5).integers(0, 200, 90).tolist()


def logits(path: Path, activations: str, **options: object) -> np.ndarray:
    with Engine.load(path, threads=2, context=128, activations=activations, **options) as engine:  # type: ignore[arg-type]
        return engine.logits(TOKENS)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    p, q = log_softmax(p), log_softmax(q)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def kernels(engine: Engine) -> set[str]:
    return {op.name for op in engine.backend._many.program.ops}  # type: ignore[attr-defined]


def test_float_weights_meet_rounded_activations(tiny_llama: Path) -> None:
    with Engine.load(tiny_llama, threads=1, context=128, activations="bf16") as engine:
        found = [name for name in kernels(engine) if name.startswith("linear")]
        assert found
        assert all(name.startswith("linear_bf16_bf16") for name in found)
        assert engine.backend.facts()["activations"] == "bf16"
    exact, rounded = logits(tiny_llama, "f32"), logits(tiny_llama, "bf16")
    assert 0 < divergence(exact, rounded) < 1e-3
    assert divergence(exact, logits(tiny_llama, "int8")) < divergence(exact, rounded)  # whose floats stay as they are


def test_quantized_weights_meet_int8(tiny_gpt_oss: Path) -> None:
    """Experts of mxfp4 do, attention in bf16 does not, and routers keep all digits."""
    with Engine.load(tiny_gpt_oss, threads=1, context=128, activations="bf16") as engine:
        names = kernels(engine)
    assert {"linear_mxfp4_int8", "linear_bf16_bf16", "linear_bf16_f32"} == {
        "_".join(name.split("_")[:3]) for name in names if name.startswith("linear")
    }
    assert divergence(logits(tiny_gpt_oss, "int8"), logits(tiny_gpt_oss, "bf16")) < 1e-2


def test_float16_is_converted(tiny_llama: Path, tmp_path: Path) -> None:
    """Once, on load, and said: the logits are those of weights that were converted before."""
    convert(tiny_llama, tmp_path / "f16.gguf", "gguf", recipe_of_format("f16"))
    convert(tmp_path / "f16.gguf", tmp_path / "bf16.gguf", "gguf", recipe_of_format("bf16"))
    convert(tmp_path / "f16.gguf", tmp_path / "f16.ready", "ready")
    said: list[str] = []
    expected = logits(tmp_path / "bf16.gguf", "bf16")
    for name in ("f16.gguf", "f16.ready"):
        np.testing.assert_array_equal(logits(tmp_path / name, "bf16", say=said.append), expected)
        assert said.count("f16 weights are kept as bf16, to meet bf16 activations") == 1
        said.clear()
    with open_checkpoint(tmp_path / "f16.ready") as checkpoint:  # whose panels of f16 are of no use then
        assert kernel_bytes(checkpoint, mapped=True, activations="bf16") > kernel_bytes(checkpoint, mapped=True)
    with Engine.load(tmp_path / "f16.gguf", threads=1, context=128, say=said.append):
        assert not said


def test_a_processor_without_the_instruction_is_told(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(type(ACTIVE), "multiplies_bf16", False)
    with Engine.load(tiny_llama, threads=1, context=128, activations="bf16", say=said.append):
        assert any("no products of bf16" in line for line in said)
