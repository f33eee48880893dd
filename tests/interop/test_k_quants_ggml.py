"""k-quants against ggml's own quantizer: less weighted squared error on the same weights, and bytes that gguf-py reads alike."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest

from oss_tools.formats import get_format
from tests.interop.peers import smollm2

pytestmark = pytest.mark.peers
NAMES = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]
ROWS = 48


def samples(kind: str) -> np.ndarray:
    """Weights, float32 [ROWS, K]."""
    rng = np.random.default_rng(3)
    if kind == "gaussian":
        return rng.standard_normal((ROWS, 1024), np.float32)
    if kind == "heavy tails":
        return (rng.standard_t(3, (ROWS, 768)) * 0.02).astype(np.float32)
    tensors = {t.name: t for t in gguf.GGUFReader(smollm2()).tensors}  # of 1,536 columns; in q4_1, whose grid is left
    tensor = tensors["blk.12.ffn_down.weight"]
    values = gguf.dequantize(tensor.data, tensor.tensor_type)[:ROWS]
    return (values + 0.05 * np.abs(values).mean() * rng.standard_normal(values.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    package = Path(pytest.importorskip("llama_cpp").__file__).parent
    libraries = [*package.glob("lib/libggml-base.so"), *package.glob("lib/libggml-base.dylib")]
    if not libraries:
        pytest.skip("llama-cpp-python has no libggml-base of its own")
    library = ctypes.CDLL(str(libraries[0]))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, integer, pointer]
    return library


@pytest.mark.parametrize(
    "kind", ["gaussian", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("heavy tails", "language"))]
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_error_is_less_than_ggmls(name: str, weighted: bool, kind: str, ggml: ctypes.CDLL) -> None:
    format, values = get_format(name), samples(kind)
    rows, columns = values.shape
    importance = np.exp(1.5 * np.random.default_rng(4).standard_normal(columns)).astype(np.float32) if weighted else None
    theirs = np.empty((rows, format.bytes_per_row(columns)), np.uint8)
    given = importance.ctypes.data if importance is not None else None
    ggml.ggml_quantize_chunk(format.ggml_type, values.ctypes.data, theirs.ctypes.data, 0, rows, columns, given)
    ours = format.quantize(values, importance=importance)
    weights = 1.0 if importance is None else importance.astype(np.float64)
    errors = [
        float((np.square(decoded.astype(np.float64) - values) * weights).sum())
        for decoded in (ours.dequantize(), format.unpack_ggml(theirs, columns).dequantize())
    ]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("rule", ["search", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_gguf_py_reads_the_same_values(name: str, rule: str) -> None:
    format, values = get_format(name), samples("heavy tails")
    tensor = format.quantize(values, rule=rule)
    theirs = gguf.dequantize(format.pack_ggml(tensor), gguf.GGMLQuantizationType(format.ggml_type))
    np.testing.assert_array_equal(tensor.dequantize(), theirs)
