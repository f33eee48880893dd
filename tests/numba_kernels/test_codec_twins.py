"""The codec kernels make, bit for bit, what their plain NumPy twins make: by every rule, on ordinary and on odd values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels.reference import formats as twin
from numba_kernels.reference import ggml as ggml_twin
from numba_kernels.reference import k_quants as k_twin
from oss_tools.formats import get_format
from oss_tools.formats.nvfp4 import tensor_scale

SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754944e-38, 3.4e38, -3.4e38, 65504, 65520, -65536, 6e-8, 5.9e-8, 1e-15],
    np.float32,
)
many = settings(deadline=None, max_examples=60)


@st.composite
def arrays(draw: st.DrawFn, columns: int = 64, widest: int = 37) -> np.ndarray:
    """float32 [4, columns]: Gaussian at any magnitude, bf16-like, on a grid (many ties), or salted with odd values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.standard_normal((4, columns)) * 10.0 ** draw(st.integers(-widest, widest))
    kind = draw(st.sampled_from(["gaussian", "bf16", "grid", "salted", "sparse"]))
    if kind == "grid":
        values = np.ldexp(rng.integers(-64, 65, values.shape) / 8.0, draw(st.integers(-120, 120)))
    values = values.astype(np.float32)
    if kind == "bf16":
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    if kind == "salted":
        values[rng.random(values.shape) < 0.05] = rng.choice(SPECIAL)
    if kind == "sparse":
        values[rng.random(values.shape) < 0.9] = rng.choice(SPECIAL[:2])
    return values


@st.composite
def weights(draw: st.DrawFn, columns: int = 64) -> np.ndarray | None:
    """float32 [columns] or [4, columns] of importances, some zero; or None."""
    shape = draw(st.sampled_from([None, (columns,), (4, columns)]))
    if shape is None:
        return None
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return (rng.random(shape) ** 4 * (rng.random(shape) < 0.8)).astype(np.float32)


def blocks(array: np.ndarray | None, size: int) -> np.ndarray | None:
    """[4, K], or [K] for each of 4 rows, as [N, size]."""
    return None if array is None else np.broadcast_to(array, (4, array.shape[-1])).reshape(-1, size)


def assert_same_bytes(kernel: np.ndarray, plain: np.ndarray) -> None:
    kernel = kernel.reshape(plain.shape)
    assert kernel.dtype == plain.dtype
    different = np.flatnonzero((kernel != plain).reshape(len(plain), -1).any(1))
    assert different.size == 0, f"block {different[0]}: kernel {kernel[different[0]]}, plain {plain[different[0]]}"


def assert_same_values(kernel: np.ndarray, plain: np.ndarray) -> None:
    np.testing.assert_array_equal(kernel.reshape(plain.shape), plain)
    np.testing.assert_array_equal(np.signbit(kernel.reshape(plain.shape)), np.signbit(plain))


@many
@given(arrays())
def test_half_and_bfloat16(values: np.ndarray) -> None:
    half, brain = get_format("f16").quantize(values), get_format("bf16").quantize(values)
    assert_same_bytes(half.planes["values"].view(np.uint16), twin.encode_half(values))
    assert_same_bytes(brain.planes["values"], twin.encode_bfloat16(values))
    assert_same_values(half.dequantize(), twin.decode_half(twin.encode_half(values)))
    assert_same_values(brain.dequantize(), twin.decode_bfloat16(twin.encode_bfloat16(values)))


def test_every_half_and_bfloat16_survives() -> None:
    bits = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for name, dtype in (("f16", np.float16), ("bf16", np.uint16)):
        format = get_format(name)
        tensor = format.unpack_ggml(bits.view(np.uint8).reshape(256, 512), 256)
        assert tensor.planes["values"].dtype == dtype
        values = tensor.dequantize()
        again = format.quantize(values).planes["values"].view(np.uint16)
        number = ~np.isnan(values)
        np.testing.assert_array_equal(again[number], bits[number])
        assert np.isnan(format.quantize(values).dequantize()[~number]).all()


@many
@given(arrays(), weights(), st.sampled_from(["search", "floor", "ceil", "ocp"]))
def test_mxfp4(values: np.ndarray, importance: np.ndarray | None, rule: str) -> None:
    tensor = get_format("mxfp4").quantize(values, rule=rule, importance=importance)
    codes, scales = twin.quantize_mxfp4(blocks(values, 32), rule, blocks(importance, 32))
    assert_same_bytes(tensor.planes["scales"].reshape(-1), scales)
    assert_same_bytes(tensor.planes["blocks"], codes)
    assert_same_values(tensor.dequantize(), twin.dequantize_mxfp4(codes, scales))


@many
@given(st.binary(min_size=17 * 12, max_size=17 * 12))
def test_mxfp4_repacking_keeps_every_byte(data: bytes) -> None:
    packed = np.frombuffer(data, np.uint8).reshape(4, 51)
    format = get_format("mxfp4")
    tensor = format.unpack_ggml(packed, 96)
    codes, scales = twin.unpack_ggml_mxfp4(packed.reshape(-1, 17))
    assert_same_bytes(tensor.planes["blocks"], codes)
    assert_same_bytes(tensor.planes["scales"].reshape(-1), scales)
    np.testing.assert_array_equal(format.pack_ggml(tensor), packed)
    assert_same_bytes(format.pack_ggml(tensor), twin.pack_ggml_mxfp4(codes, scales))
    np.testing.assert_array_equal(tensor.dequantize().reshape(codes.shape[0], 32), twin.dequantize_mxfp4(codes, scales))


@many
@given(arrays(widest=30), weights(), st.sampled_from(["search", "plain"]))
def test_nvfp4(values: np.ndarray, importance: np.ndarray | None, rule: str) -> None:
    values = np.clip(values, -1e37, 1e37)
    tensor = get_format("nvfp4").quantize(values, rule=rule, importance=importance)
    scale = tensor_scale(float(np.abs(values).max()))
    codes, scales = twin.quantize_nvfp4(blocks(values, 16), scale, rule, blocks(importance, 16))
    assert (tensor.planes["tensor_scale"] == scale).all()
    assert_same_bytes(tensor.planes["scales"].reshape(-1), scales)
    assert_same_bytes(tensor.planes["blocks"], codes)
    assert_same_values(tensor.dequantize(), twin.dequantize_nvfp4(codes, scales, scale))


@many
@given(arrays())
def test_fp8(values: np.ndarray) -> None:
    tensor = get_format("fp8_e4m3").quantize(values)
    codes, scales = twin.quantize_fp8(values)
    assert_same_bytes(tensor.planes["scales"].reshape(-1), scales)
    assert_same_bytes(tensor.planes["codes"], codes)
    assert_same_values(tensor.dequantize(), twin.decode_e4m3(codes) * twin.decode_bfloat16(scales)[:, None])


@many
@given(arrays(), st.integers(1, 300))
def test_fp8_in_blocks(values: np.ndarray, columns: int) -> None:
    values = np.resize(values, (-(-values.size // columns), columns))
    tensor = get_format("fp8_block").quantize(values)
    codes, scales = twin.quantize_fp8_block(values)
    whole = scales.repeat(128, 0).repeat(128, 1)[: len(values), :columns]
    assert_same_bytes(tensor.planes["scales"], scales.repeat(128, 0)[: len(values)])
    assert_same_bytes(tensor.planes["codes"], codes)
    assert_same_values(tensor.dequantize(), twin.decode_e4m3(codes) * whole)


@many
@given(arrays(256), weights(256), st.sampled_from(["int8", "int8_g128", "int8_g32"]), st.sampled_from(["search", "plain"]))
def test_int8(values: np.ndarray, importance: np.ndarray | None, name: str, rule: str) -> None:
    format = get_format(name)
    group = format.block or 256
    tensor = format.quantize(values, rule=rule, importance=importance)
    codes, scales = twin.quantize_int8(blocks(values, group), rule, name == "int8_g32", blocks(importance, group))
    assert_same_bytes(tensor.planes["scales"].reshape(-1), scales)
    assert_same_bytes(tensor.planes["codes"], codes)
    np.testing.assert_array_equal(tensor.dequantize().reshape(codes.shape), codes * twin.decode_bfloat16(scales)[:, None])


@many
@given(arrays(), weights(), st.sampled_from(["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"]), st.sampled_from(["search", "plain"]))
def test_ggml(values: np.ndarray, importance: np.ndarray | None, name: str, rule: str) -> None:
    tensor = get_format(name).quantize(values, rule=rule, importance=importance)
    bits, has_minimum, x, w = int(name[1]), name[3] == "1", blocks(values, 32), blocks(importance, 32)
    packed = ggml_twin.quantize_q8_0(x, rule, w) if bits == 8 else ggml_twin.quantize_nibbles(x, bits, has_minimum, rule, w)
    assert_same_bytes(tensor.planes["blocks"], packed)
    np.testing.assert_array_equal(tensor.dequantize().reshape(-1, 32), ggml_twin.dequantize_ggml(packed, bits, has_minimum))


@many
@given(arrays(), weights(), st.sampled_from(["search", "plain"]))
def test_iq4_nl(values: np.ndarray, importance: np.ndarray | None, rule: str) -> None:
    tensor = get_format("iq4_nl").quantize(values, rule=rule, importance=importance)
    packed = ggml_twin.quantize_iq4_nl(blocks(values, 32), rule, blocks(importance, 32))
    assert_same_bytes(tensor.planes["blocks"], packed)
    assert_same_values(tensor.dequantize(), ggml_twin.dequantize_iq4_nl(packed))


@many
@given(arrays(512), weights(512), st.sampled_from([2, 3, 4, 5, 6]), st.sampled_from(["search", "plain"]))
def test_k_quants(values: np.ndarray, importance: np.ndarray | None, bits: int, rule: str) -> None:
    tensor = get_format(f"q{bits}_k").quantize(values, rule=rule, importance=importance)
    assert_same_bytes(tensor.planes["blocks"], k_twin.quantize_k(blocks(values, 256), bits, rule, blocks(importance, 256)))


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl"])
def test_any_ggml_bytes_decode_as_the_twin_says(name: str) -> None:
    format = get_format(name)
    data = np.random.default_rng(3).integers(0, 256, (64, format.bytes_per_row(64)), np.uint8)
    decoded = format.unpack_ggml(data, 64).dequantize().reshape(-1, 32)
    packed = data.reshape(-1, format.bytes_per_row(32))
    decode = {"iq4_nl": ggml_twin.dequantize_iq4_nl}.get(
        name, lambda d: ggml_twin.dequantize_ggml(d, int(name[1]), name[3] == "1")
    )
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(decoded, decode(packed))
