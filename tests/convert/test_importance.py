"""Importance weights from both kinds of file, and what a bad one says."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from oss_tools.convert.importance import load_importance
from oss_tools.errors import BadCheckpoint
from oss_tools.models import open_checkpoint

EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
OUT = "model.layers.1.self_attn.o_proj.weight"


def write_imatrix(path: Path, tensors: dict[str, np.ndarray], kind: str = "imatrix") -> Path:
    """A GGUF as llama-imatrix writes it."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type(kind)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_imatrix_means_are_taken_per_expert_and_scaled_to_one(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    sums = np.random.default_rng(0).uniform(1, 9, (4, 64)).astype(np.float32)
    counts = np.array([[10.0], [20], [0], [5]], np.float32)
    sums[2] = 0  # an expert that was never chosen
    path = write_imatrix(
        tmp_path / "imatrix.gguf",
        {"blk.0.ffn_gate_exps.weight.in_sum2": sums, "blk.0.ffn_gate_exps.weight.counts": counts},
    )
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        weights = load_importance(path, checkpoint)
    assert set(weights) == {EXPERTS}
    expected = sums / np.maximum(counts, 1)
    expected[2] = 1
    np.testing.assert_allclose(weights[EXPERTS], expected / expected.mean(1, keepdims=True), rtol=1e-6)


def test_safetensors_hold_weights_by_name(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    values = np.arange(1, 129, dtype=np.float32)
    numpy_files.save_file({OUT: values, "unrelated": values}, tmp_path / "weights.safetensors")
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        weights = load_importance(tmp_path / "weights.safetensors", checkpoint)
    assert set(weights) == {OUT}
    np.testing.assert_allclose(weights[OUT], values / values.mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (np.full(64, np.nan), "negative, NaN or infinite"),
        (np.full(64, -1.0), "negative, NaN or infinite"),
        (np.ones(63), r"has shape \[1, 63\], expected \[64\] or \[4, 64\]"),
    ],
)
def test_impossible_weights_are_refused(tiny_gpt_oss: Path, tmp_path: Path, values: np.ndarray, complaint: str) -> None:
    name = "blk.0.ffn_up_exps.weight"
    path = write_imatrix(tmp_path / "imatrix.gguf", {f"{name}.in_sum2": values, f"{name}.counts": np.ones(1)})
    with open_checkpoint(tiny_gpt_oss) as checkpoint, pytest.raises(BadCheckpoint, match=complaint):
        load_importance(path, checkpoint)


def test_a_file_of_another_kind_or_for_another_model_is_refused(tiny_gpt_oss: Path, tmp_path: Path) -> None:
    model = write_imatrix(tmp_path / "model.gguf", {"x": np.ones(32)}, kind="model")
    stranger = write_imatrix(tmp_path / "other.gguf", {"blk.9.y.in_sum2": np.ones(32), "blk.9.y.counts": np.ones(1)})
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        with pytest.raises(BadCheckpoint, match=r"not an importance matrix: general\.type is 'model'"):
            load_importance(model, checkpoint)
        with pytest.raises(BadCheckpoint, match="holds no weights for any tensor"):
            load_importance(stranger, checkpoint)
        with pytest.raises(BadCheckpoint, match="cannot be opened"):
            load_importance(tmp_path / "missing.gguf", checkpoint)
