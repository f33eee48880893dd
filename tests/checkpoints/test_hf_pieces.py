"""Quantized tensors of Hugging Face folders: pieces of other programs, and pieces that do not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as library

from oss_tools.checkpoints import StoredTensor, open_container
from oss_tools.checkpoints.hf import HfReader
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import get_format


def container_of(folder: Path, tensors: dict[str, np.ndarray], quantization: dict | None = None) -> HfReader:
    """A folder with just these tensors, opened without asking what architecture they make."""
    library.save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama"} | ({"quantization_config": quantization} if quantization else {})
    (folder / "config.json").write_text(json.dumps(config))
    reader = open_container(folder)
    assert isinstance(reader, HfReader)
    return reader


CODES = np.arange(-64, 64, dtype=np.int8).reshape(4, 32)
W = "a.weight"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(4, 1), (4,), (1,), ()])
def test_scales_of_other_dtypes_and_shapes_are_read_exactly(tmp_path: Path, dtype: type, shape: tuple) -> None:
    scales = np.resize(np.array([0.5, 0.25, 0.75, 0.015625], dtype), shape)
    reader = container_of(tmp_path, {W: CODES, f"{W}_scale": scales})
    assert reader.tensors == {W: StoredTensor(W, get_format("int8"), (4, 32))}
    rows = np.broadcast_to(scales.astype(np.float32).reshape(-1, 1), (4, 1))
    assert np.array_equal(reader.read(W, 1, 4, 32).dequantize(), CODES[1:].astype(np.float32) * rows[1:])
    reader.close()


def test_scales_that_no_bfloat16_equals_are_refused(tmp_path: Path) -> None:
    reader = container_of(tmp_path, {W: CODES, f"{W}_scale": np.full((4, 1), 0.1, np.float32)})
    with pytest.raises(BadCheckpoint, match=r"F32 scale 0\.1\d* has no exact bfloat16"):
        reader.read(W, 0, 4, 32)
    reader.close()


U8 = np.zeros((4, 2, 16), np.uint8)
F32 = np.ones((4, 1), np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x_blocks": U8}, "tensor x_scales is missing"),
        ({"x_blocks": U8, "x_scales": U8}, "do not fit"),
        ({"x_blocks": U8, "x_scales": np.zeros((4, 2), np.float32)}, "do not fit"),
        ({"x_blocks": U8[0, 0], "x_scales": np.zeros(1, np.uint8)}, "do not fit"),
        ({"x_blocks": U8, "x_scales": np.zeros((4, 2), np.uint8), "x": F32}, "x is stored twice"),
        ({W: CODES}, "a.weight_scale is missing"),
        ({W: CODES, f"{W}_scale": np.ones((4, 1), np.int8)}, "do not fit"),
        ({W: CODES, f"{W}_scale": np.ones((3, 1), np.float32)}, "do not fit"),
        ({W: CODES, f"{W}_scale": np.ones((4, 3), np.float32)}, "do not fit"),
        ({W: CODES, f"{W}_scale": np.ones((4, 2), np.float32)}, "per group of 128 or 32"),
        ({W: CODES, f"{W}_scale": F32, f"{W}_zero_point": CODES}, "asymmetric"),
        ({W: CODES[0], f"{W}_scale": F32[0]}, "do not fit"),
        ({f"{W}_packed": np.zeros((4, 4), np.int32), f"{W}_scale": F32}, "pack-quantized"),
        ({f"{W}_packed": U8[:, 0]}, "a.weight_scale is missing"),
        ({f"{W}_packed": U8[:, 0], f"{W}_scale": F32}, "NVFP4"),
        ({"n": np.zeros((0, 3), np.float32)}, "empty"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict, message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message) as caught:
        container_of(tmp_path, tensors)
    assert "\n" not in str(caught.value)
