"""The plain rules make the bytes of gguf-py and of ggml's C code, and everything they wrote is decoded to the same values."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from oss_tools.formats import all_formats, get_format

pytestmark = pytest.mark.peers
gguf = pytest.importorskip("gguf")

SIMPLE = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4"]
K = 2880


def plain_rule(name: str) -> str:
    return "floor" if name == "mxfp4" else "plain"


def samples(columns: int = K) -> dict[str, np.ndarray]:
    """Weights of several kinds, float32 [·, columns]; the grid is full of ties, the last of near-ties of the log2 rule."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((40, columns)).astype(np.float32)
    zeros = values.copy()
    zeros.reshape(-1, 32)[::3] = 0
    scaled = values * np.float32(10) ** rng.integers(-8, 4, (40, 1)).astype(np.float32)
    below = np.nextafter(np.ldexp(np.float32(1), rng.integers(-30, 15, (40, columns))), np.float32(0))
    return {
        "gaussian": values,
        "scaled": scaled,
        "bf16": (values.view(np.uint32) & 0xFFFF0000).view(np.float32),
        "f16": values.astype(np.float16).astype(np.float32),
        "grid": (rng.integers(-24, 25, values.shape) / 4).astype(np.float32),
        "zero blocks": zeros,
        "just below powers of two": below.astype(np.float32) * rng.choice([-1, 1], below.shape).astype(np.float32),
    }


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
    library.quantize_row_iq4_nl_ref.argtypes = [pointer, pointer, integer]
    return library


@pytest.mark.parametrize("kind", samples(32))
@pytest.mark.parametrize("name", SIMPLE)
def test_plain_rules_make_gguf_pys_bytes(name: str, kind: str) -> None:
    format, values = get_format(name), samples()[kind]
    ours = format.pack_ggml(format.quantize(values, rule=plain_rule(name)))
    np.testing.assert_array_equal(ours, gguf.quants.quantize(values, gguf.GGMLQuantizationType(format.ggml_type)))


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_floats_are_gguf_pys(name: str) -> None:
    format = get_format(name)
    for values in samples().values():
        theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType(format.ggml_type))
        np.testing.assert_array_equal(format.pack_ggml(format.quantize(values)), theirs.view(np.uint8))


@pytest.mark.parametrize("kind", [k for k in samples(32) if k != "zero blocks"])
@pytest.mark.parametrize("name", SIMPLE)
def test_plain_rules_make_ggmls_bytes(name: str, kind: str, ggml: ctypes.CDLL) -> None:
    format, values = get_format(name), samples()[kind]
    theirs = np.empty((len(values), format.bytes_per_row(K)), np.uint8)
    ggml.ggml_quantize_chunk(format.ggml_type, values.ctypes.data, theirs.ctypes.data, 0, len(values), K, None)
    np.testing.assert_array_equal(format.pack_ggml(format.quantize(values, rule=plain_rule(name))), theirs)


@pytest.mark.parametrize("kind", [k for k in samples(32) if k != "zero blocks"])
def test_iq4_nl_makes_ggmls_reference_bytes(kind: str, ggml: ctypes.CDLL) -> None:
    format, values = get_format("iq4_nl"), samples()[kind]
    theirs = np.empty((len(values), format.bytes_per_row(K)), np.uint8)
    ggml.quantize_row_iq4_nl_ref(values.ctypes.data, theirs.ctypes.data, values.size)
    np.testing.assert_array_equal(format.pack_ggml(format.quantize(values, rule="plain")), theirs)


def test_iq4_nl_search_beats_ggmls_own(ggml: ctypes.CDLL) -> None:
    """ggml's quantizer searches too, for errors weighted by x²."""
    format, values = get_format("iq4_nl"), samples()["gaussian"]
    theirs = np.empty((len(values), format.bytes_per_row(K)), np.uint8)
    ggml.ggml_quantize_chunk(format.ggml_type, values.ctypes.data, theirs.ctypes.data, 0, len(values), K, None)
    errors = [np.square(t.dequantize() - values).sum() for t in (format.unpack_ggml(theirs, K), format.quantize(values))]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("name", [n for n, f in all_formats().items() if f.ggml_type is not None])
def test_every_ggml_type_decodes_as_in_gguf_py(name: str) -> None:
    format = get_format(name)
    columns = 2 * max(format.block, 32)
    data = np.random.default_rng(2).integers(0, 256, (16, format.bytes_per_row(columns)), np.uint8)
    kind = gguf.GGMLQuantizationType(format.ggml_type)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(data, kind)
    ours = format.dequantize(format.unpack_ggml(data, columns), threads=2)
    if name == "mxfp4":  # scale 255 is NaN by the OCP specification; gguf-py and ggml read it as 2^128
        theirs = np.where(np.repeat(data[:, ::17] == 255, 32, axis=1), np.nan, theirs)
    np.testing.assert_array_equal(ours, theirs)
