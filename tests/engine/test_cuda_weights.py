"""Weights on their way to a GPU: an emulated device has every byte, and the host holds no more than pieces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda")
sys.path.insert(0, str(Path(__file__).parent.parent / "numba_kernels" / "cuda"))

from emulated_device import EmulatedDevice

from numba_kernels.cuda.packing import packed_rows
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.engine.cuda_weights import CudaWeights, device_bytes
from oss_tools.models import open_checkpoint


@pytest.mark.parametrize("recipe", ["mxfp4", "q8_0", "iq4_nl"])
def test_weights_arrive(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte, through buffers that are smaller than a tensor; formats without a kernel in another."""
    from oss_tools.convert.recipe import load_recipe

    monkeypatch.setattr("oss_tools.engine.cuda_weights.STAGING_BYTES", 1 << 12)
    monkeypatch.setattr("oss_tools.engine.cuda_weights.PIECE_BYTES", 1 << 14)
    path = synthesize(plan_synthesis(load_shape("gpt-oss-tiny"), "gguf", load_recipe(recipe)), tmp_path / "m.gguf")
    told, done = [], []
    with open_checkpoint(path) as checkpoint:
        weights = CudaWeights(EmulatedDevice(), checkpoint, done.append, told.append)
        name = "model.layers.1.mlp.experts.gate_up_proj"
        (stack,) = weights.stacks((name,))
        assert (stack.matrices, stack.rows, stack.columns) == (4, 128, 64)
        tensor = checkpoint.read_tensor(name)
        planes = tensor if stack.format == tensor.format.name else weights_format(stack.format).quantize(tensor.dequantize())
        codes, scales = packed_rows(stack.format, planes.reshape(512, 64).planes, 64)
        np.testing.assert_array_equal(stack.codes, codes.reshape(-1))
        np.testing.assert_array_equal(stack.scales, scales.reshape(-1))
        (qkv,) = weights.stacks(tuple(f"model.layers.0.self_attn.{x}_proj" for x in "qkv"))
        assert (qkv.rows, qkv.bias.size) == (256, 256)
        assert sum(done) > 0
        assert bool(told) == (recipe == "iq4_nl")
        assert device_bytes(checkpoint) > 0


def weights_format(name: str) -> Any:
    from oss_tools.formats import get_format

    return get_format(name)


def test_interleaved_rows(tiny_llama: Path) -> None:
    with open_checkpoint(tiny_llama) as checkpoint:
        weights = CudaWeights(EmulatedDevice(), checkpoint, lambda n: None, lambda line: None)
        names = ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj")
        (stack,) = weights.stacks(names, interleave=True)
        both = stack.codes.view(np.uint16).reshape(-1, 64)
        for i, name in enumerate(names):
            np.testing.assert_array_equal(both[i::2], checkpoint.read_tensor(f"{name}.weight").planes["values"])


HOST = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np
from emulated_device import EmulatedDevice
from oss_tools.convert.synth import load_shape
from oss_tools.engine.cuda_weights import CudaWeights, device_bytes
from oss_tools.measure.peak import own_peak
from oss_tools.measure.synthetic import SyntheticCheckpoint


class Elsewhere(EmulatedDevice):
    def empty(self, count, dtype):
        return np.empty(max(int(count), 1), dtype)  # pages that nobody touches take no memory

    def upload(self, target, values, start=0):
        pass

    upload_soon = upload


checkpoint = SyntheticCheckpoint(load_shape("gpt-oss-120b").with_layers(1))
weights = CudaWeights(Elsewhere(), checkpoint, lambda n: None, print)
for name, entry in checkpoint.entries.items():
    if not entry.spec.is_vector:
        weights.stacks((name.removesuffix(".weight"),))
print(device_bytes(checkpoint), own_peak())
"""


@pytest.mark.slow
def test_the_host_holds_pieces_only() -> None:
    """4 GB of the 120b's weights pass through."""
    program = HOST.format(folder=str(Path(__file__).parent.parent / "numba_kernels" / "cuda"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded, peak = map(int, done.stdout.split())
    assert loaded > 4e9
    assert peak < 1e9
