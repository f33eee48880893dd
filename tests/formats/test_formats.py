"""What holds for every number format: registration, shapes, errors, and how far values move."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.errors import BadRecipe, BadTensor
from oss_tools.formats import Format, QTensor, all_formats, concatenate, format_of_ggml, get_format

WRITABLE = sorted(name for name, format in all_formats().items() if format.rules)
SEARCHING = [name for name in WRITABLE if "search" in get_format(name).rules]
PLAIN_RULES = [(name, rule) for name in SEARCHING for rule in get_format(name).rules if rule != "search"]
FLOAT32_MAX = np.finfo(np.float32).max
K = 256  # a multiple of every block


def gaussian(rows: int = 8, columns: int = K, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def block_errors(format: Format, values: np.ndarray, decoded: np.ndarray, weights: np.ndarray | float = 1) -> np.ndarray:
    """Weighted squared error of every block, in float64: [rows, blocks]."""
    squares = (values.astype(np.float64) - decoded) ** 2 * weights
    return squares.reshape(len(values), -1, format.block or values.shape[1]).sum(-1)


def test_formats_of_the_field_are_registered() -> None:
    wanted = "f32 f16 bf16 mxfp4 nvfp4 fp8_e4m3 fp8_block int8 int8_g128 int8_g32 q8_0 q4_0 q4_1 q5_0 q5_1 iq4_nl "
    wanted += "q2_k q3_k q4_k q5_k q6_k"
    assert set(WRITABLE) == set(wanted.split())
    readable = set(all_formats()) - set(WRITABLE)
    assert {"iq1_s", "iq2_xxs", "iq3_s", "iq4_xs", "tq1_0", "ggml_nvfp4"} <= readable


def test_ggml_types_are_unique_and_sized_as_gguf_says() -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    types = [f.ggml_type for f in all_formats().values() if f.ggml_type is not None]
    assert len(set(types)) == len(types)
    for number in types:
        format, (block, size) = format_of_ggml(number), GGML_QUANT_SIZES[GGMLQuantizationType(number)]
        assert format is not None
        assert (format.block, format.bytes_per_row(block)) == (block, size), format
    assert format_of_ggml(9999) is None


def test_listing_formats_needs_no_numba() -> None:
    code = "import sys; from oss_tools.formats import all_formats; all_formats(); sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", WRITABLE)
def test_leading_axes_threads_and_row_ranges(name: str) -> None:
    format = get_format(name)
    unit = format.row_block
    rows = 12 * unit
    values = gaussian(rows).reshape(3, 4 * unit, K)
    amax = float(np.abs(values).max())
    tensor = format.quantize(values)
    assert tensor.shape == (3, 4 * unit, K)
    assert {n: (p.dtype, p.columns) for n, p in format.planes(K).items()} == {
        n: (p.dtype, p.shape[-1]) for n, p in tensor.planes.items()
    }
    planes = format.planes(K).values()  # in memory every row has what files hold once for several
    repeated = sum(plane.nbytes * (rows - (1 if plane.shared else rows // plane.rows)) for plane in planes)
    assert tensor.nbytes - repeated == format.stored_bytes(rows, K)
    flat = values.reshape(rows, K)
    flat.flags.writeable = False
    pieces = [format.quantize(flat[a * unit : b * unit], amax=amax, threads=3) for a, b in ((0, 5), (5, 6), (6, 12))]
    for plane, whole in concatenate(pieces).planes.items():
        np.testing.assert_array_equal(whole, tensor.planes[plane].reshape(rows, -1))
    np.testing.assert_array_equal(format.dequantize(tensor, threads=5), tensor.dequantize())
    np.testing.assert_array_equal(tensor.rows(slice(2, 7)).dequantize(), tensor.dequantize().reshape(rows, K)[2:7])


@pytest.mark.parametrize("name", [n for n in WRITABLE if get_format(n).ggml_type is not None])
def test_packing_for_gguf_and_back(name: str) -> None:
    format = get_format(name)
    tensor = format.quantize(gaussian())
    packed = format.pack_ggml(tensor)
    assert (packed.dtype, packed.shape) == (np.uint8, (8, format.bytes_per_row(K)))
    again = format.unpack_ggml(packed, K)
    for plane, array in tensor.planes.items():
        np.testing.assert_array_equal(again.planes[plane], array)


@pytest.mark.parametrize("name", [n for n in WRITABLE if not get_format(n).fits(K + 8)])
def test_ragged_last_axis_is_refused(name: str) -> None:
    format = get_format(name)
    with pytest.raises(BadTensor, match=f"axis 1 has {K + 8} values, not a multiple of the {format.block}"):
        format.quantize(np.zeros((2, K + 8), np.float32))


def test_unknown_rules_and_read_only_formats_are_refused() -> None:
    with pytest.raises(BadRecipe, match="mxfp4: no rule named 'best'; there are search, floor, ceil, ocp"):
        get_format("mxfp4").quantize(gaussian(), rule="best")
    with pytest.raises(BadRecipe, match="iq4_xs can be read but not written"):
        get_format("iq4_xs").quantize(gaussian())


@pytest.mark.parametrize("name", WRITABLE)
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(name: str, rows: int) -> None:
    tensor = get_format(name).quantize(gaussian(rows))
    assert tensor.dequantize().shape == (rows, K)


@pytest.mark.parametrize("name", WRITABLE)
def test_every_rule_keeps_zeros_and_finite_values_finite(name: str) -> None:
    format = get_format(name)
    rng = np.random.default_rng(1)
    for rule in format.rules:
        zeros = np.zeros((3, K), np.float32)
        zeros[1] = -0.0
        assert (format.quantize(zeros, rule=rule).dequantize() == 0).all()
        for exponent in [*range(-149, 124, 7), 125, 126, 127, 128]:
            values = np.clip(np.ldexp(rng.uniform(-1, 1, (2, K)), exponent), -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)
            values[1, 5] = np.abs(values).max() if exponent < 128 else FLOAT32_MAX
            decoded = format.quantize(values, rule=rule).dequantize()
            assert np.isfinite(decoded).all(), (rule, exponent)
            assert float(np.abs(decoded).max()) <= 1.35 * float(np.abs(values).max()) + 2.0**-20, (rule, exponent)


@pytest.mark.parametrize("name", [n for n in WRITABLE if re.fullmatch(r"i?q\d_\w+", n)])
def test_scales_beyond_half_precision_saturate(name: str) -> None:
    format = get_format(name)
    values = gaussian() * np.float32(1e30)
    for rule in format.rules:
        decoded = format.quantize(values, rule=rule).dequantize()
        assert np.isfinite(decoded).all()
        assert np.abs(decoded).max() > 65504
        top = np.abs(values).argmax(1)
        assert (np.sign(decoded[range(8), top]) == np.sign(values[range(8), top])).all()


@pytest.mark.parametrize(("name", "rule"), PLAIN_RULES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("spread", ["gaussian", "heavy tails", "bf16"])
def test_search_is_never_worse_on_any_block(name: str, rule: str, weighted: bool, spread: str) -> None:
    format, rng = get_format(name), np.random.default_rng(5)
    values = rng.standard_normal((64, K)) if spread != "heavy tails" else rng.standard_t(2, (64, K))
    values = (values * 10.0 ** rng.uniform(-3, 1, (64, 1))).astype(np.float32)
    if spread == "bf16":
        values = get_format("bf16").quantize(values).dequantize()
    weights = (rng.random(K) ** 6).astype(np.float32) if weighted else None
    plain = format.quantize(values, rule=rule).dequantize()
    best = format.quantize(values, importance=weights).dequantize()
    by_weight = 1 if weights is None else weights
    old, new = (block_errors(format, values, decoded, by_weight) for decoded in (plain, best))
    assert (new <= old * (1 + 1e-6)).all()
    assert new.sum() < old.sum()


@given(st.integers(0, 2**32 - 1), st.integers(-20, 20))
@settings(deadline=None, max_examples=30)
def test_mxfp4_search_finds_the_best_exponent_of_all(seed: int, exponent: int) -> None:
    """With equal weights, no scale outside of the four that are tried would be better."""
    format = get_format("mxfp4")
    values = np.ldexp(np.random.default_rng(seed).standard_t(3, (1, 32)), exponent).astype(np.float32)
    found = block_errors(format, values, format.quantize(values).dequantize())[0, 0]
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    for power in range(exponent - 20, exponent + 20):
        nearest = np.abs(np.abs(values[0, :, None].astype(float)) - table * 2.0**power).min(1)
        assert found <= (nearest**2).sum() * (1 + 1e-4)


def all_mxfp4_codes(scales: np.ndarray) -> np.ndarray:
    """A block of every code, twice, for each scale: float32 [scales, 32]."""
    codes = np.tile(np.arange(16, dtype=np.uint8), 2)
    blocks = np.broadcast_to(codes[0::2] | codes[1::2] << 4, (len(scales), 16))
    data = {"blocks": np.ascontiguousarray(blocks), "scales": scales[:, None]}
    return QTensor(get_format("mxfp4"), (len(scales), 32), data).dequantize()


@pytest.mark.parametrize("name", ["int8_g32", "bf16", "f32"])
@pytest.mark.parametrize("rule", ["plain", None])
def test_formats_that_hold_mxfp4_exactly(name: str, rule: str | None) -> None:
    """Every code with every scale up to 2^125; beyond, 6 · scale exceeds float32, and scale 255 is NaN."""
    values = all_mxfp4_codes(np.arange(253, dtype=np.uint8))
    assert np.isfinite(values).all()
    decoded = get_format(name).quantize(values, rule=rule).dequantize()
    np.testing.assert_array_equal(decoded, values)
    rng = np.random.default_rng(0)
    sparse = np.where(rng.random(values.shape) < 0.9, 0, values)  # blocks whose largest code is small
    np.testing.assert_array_equal(get_format(name).quantize(sparse, rule=rule).dequantize(), sparse)


def test_mxfp4_beyond_float32() -> None:
    values = all_mxfp4_codes(np.array([253, 254, 255], np.uint8))
    assert np.isinf(values[0]).sum() == 8  # ±4 and ±6, twice
    assert np.isinf(values[1]).sum() == 16  # ±2 and ±3 too
    assert np.isnan(values[2]).all()


@pytest.mark.parametrize("name", WRITABLE)
def test_clipping_is_counted_by_the_representable_range(name: str) -> None:
    format, values = get_format(name), gaussian(4)
    tensor = format.quantize(values)
    bounds = format.representable_range(tensor)
    if name == "f32":
        assert bounds is None
        return
    assert bounds is not None
    low, high = (np.repeat(b, K // b.shape[1], axis=1) for b in bounds)
    decoded = tensor.dequantize()
    assert ((low <= decoded) & (decoded <= high)).all()
    inside = (low <= values) & (values <= high)
    assert inside.mean() > 0.9
    clipped = decoded[~inside]
    assert (np.abs(clipped) < np.abs(values[~inside])).all()


def test_mxfp4_clips_by_the_floor_rule_only() -> None:
    from numba_kernels.codec.error import error_sums

    format, values = get_format("mxfp4"), gaussian(64)
    clipped = {}
    for rule in ("floor", "ceil"):
        tensor = format.quantize(values, rule=rule)
        clipped[rule] = error_sums(values, tensor.dequantize(), *format.representable_range(tensor))[3]
    assert clipped["ceil"] == 0 < clipped["floor"]


def test_importance_moves_the_error_to_where_it_matters_less() -> None:
    values, weights = gaussian(64), np.ones(K, np.float32)
    weights[::2] = 100
    for name in SEARCHING:
        plain, weighted = (get_format(name).quantize(values, importance=w).dequantize() for w in (None, weights))
        assert np.square(weighted - values)[:, ::2].sum() < np.square(plain - values)[:, ::2].sum(), name


def test_float_formats_saturate_and_keep_infinity_and_nan() -> None:
    values = np.array([[1e6, -1e6, 65519, np.inf, -np.inf, np.nan, 3.4e38, -3.4028235e38]], np.float32)
    half = get_format("f16").quantize(values).dequantize()[0]
    assert half[:5].tolist() == [65504, -65504, 65504, np.inf, -np.inf]
    assert np.isnan(half[5])
    brain = get_format("bf16").quantize(values).dequantize()[0]
    assert brain[6:].tolist() == [np.float32(3.3895314e38), np.float32(-3.3895314e38)]
    assert brain[3] == np.inf
    assert np.isnan(brain[5])
