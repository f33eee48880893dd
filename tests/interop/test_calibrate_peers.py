"""Importance matrices beside other people's programs: transformers meets the same inputs, llama.cpp rounds by them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from oss_tools.calibration.calibrate import calibrate
from oss_tools.calibration.texts import Sample
from oss_tools.convert.importance import load_importance
from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import KEEP_ALL, recipe_of_format
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.models import open_checkpoint
from tests.interop.peers import transformers_model

pytestmark = pytest.mark.peers
Q4_0 = 2  # of llama.h's LLAMA_FTYPE


def drawn() -> Sample:
    rng = np.random.default_rng(3)
    return Sample([rng.integers(0, 250, 60) for _ in range(4)], 60, ("drawn",), {"drawn": 240}, 0)


@pytest.mark.parametrize("shape", ["llama-tiny", "qwen3-tiny", "qwen2-moe-tiny", "deepseek-v2-tiny", "gpt-oss-tiny"])
def test_transformers_meets_the_same_inputs(shape: str, tmp_path: Path) -> None:
    """At every linear layer that is a module of its own there."""
    torch = pytest.importorskip("torch")
    folder = synthesize(plan_synthesis(load_shape(shape), "hf", recipe_of_format("f32")), tmp_path / "model")
    sample, squares = drawn(), {}
    with open_checkpoint(folder) as checkpoint:
        calibrate(checkpoint, sample, tmp_path / "out.gguf")
        found = load_importance(tmp_path / "out.gguf", checkpoint)
    model = transformers_model(folder)

    def noting(name: str) -> Callable[..., None]:
        def hook(module: Any, given: tuple[Any, ...]) -> None:
            x = given[0].detach().double().reshape(-1, given[0].shape[-1])
            squares[name] = squares.get(name, 0) + x.square().sum(0).numpy()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and f"{name}.weight" in found:
            module.register_forward_pre_hook(noting(f"{name}.weight"))
    with torch.no_grad():
        for sequence in sample.sequences:
            model(torch.tensor(sequence[None]))
    assert sum("self_attn" in name for name in squares) >= 4
    for name, sums in squares.items():
        np.testing.assert_allclose(found[name], 0.1 + 0.9 * sums / sums.mean(), rtol=2e-3, err_msg=name)


def as_llama_quantize_reads_it(path: Path) -> dict[str, np.ndarray]:
    """After `load_imatrix` in llama.cpp's tools/quantize: sums over counts, 1 where a matrix met nothing."""
    tensors = {tensor.name: np.array(tensor.data, np.float32) for tensor in gguf.GGUFReader(path).tensors}
    found = {}
    for name, sums in tensors.items():
        if name.endswith(".in_sum2"):
            counts = tensors[name.removesuffix(".in_sum2") + ".counts"].reshape(-1, 1)
            means = np.where(counts > 0, sums.reshape(len(counts), -1) / np.maximum(counts, 1), 1)
            found[name.removesuffix(".in_sum2")] = np.ascontiguousarray(means, np.float32)
    return found


def quantized_by_llama_cpp(source: Path, target: Path, importance: dict[str, np.ndarray]) -> Path:
    llama_cpp = pytest.importorskip("llama_cpp")
    entries = (llama_cpp.llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, means) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), means.size
        entry.data = means.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = Q4_0, 1
    if importance:
        params.imatrix = entries
    assert not llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    return target


@pytest.mark.parametrize("shape", ["llama-tiny", "mixtral-tiny"])
def test_llama_cpp_rounds_by_it(shape: str, tmp_path: Path) -> None:
    """It takes every entry at its size, and its weighted error falls; so does ours."""
    folder = synthesize(plan_synthesis(load_shape(shape), "hf"), tmp_path / "model")
    source = tmp_path / "source.gguf"
    with open_checkpoint(folder) as checkpoint:
        run(make_plan(checkpoint, "gguf", KEEP_ALL), source, Options())
    with open_checkpoint(source) as checkpoint:
        calibrate(checkpoint, drawn(), tmp_path / "out.gguf")
        weights = load_importance(tmp_path / "out.gguf", checkpoint)
        for importance, name in ((None, "plain"), (dict(weights), "weighted")):
            plan = make_plan(checkpoint, "gguf", recipe_of_format("q4_0"))
            run(plan, tmp_path / f"ours-{name}.gguf", Options(importance=importance))
        importance = as_llama_quantize_reads_it(tmp_path / "out.gguf")
        quantized_by_llama_cpp(source, tmp_path / "theirs-plain.gguf", {})
        quantized_by_llama_cpp(source, tmp_path / "theirs-weighted.gguf", importance)
        for whose in ("theirs", "ours"):
            errors = []
            for name in ("plain", "weighted"):
                with open_checkpoint(tmp_path / f"{whose}-{name}.gguf") as rounded:
                    errors.append(
                        {
                            tensor: float(
                                (
                                    (rounded.read_tensor(tensor).dequantize() - checkpoint.read_tensor(tensor).dequantize())
                                    ** 2
                                    * (each if each.ndim == 1 else each[:, None])
                                ).sum()
                            )
                            for tensor, each in weights.items()
                            if rounded.entries[tensor].format.name == "q4_0"
                        }
                    )
            plain, weighted = errors
            assert len(plain) >= 7
            assert all(weighted[tensor] < plain[tensor] for tensor in plain), whose
