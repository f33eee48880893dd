"""Quantizations made by ggml: what they cost stands in our table, honest ones pass, a head that was scaled before is found."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
import yaml

from oss_tools.checkpoints import Contents, StoredTensor
from oss_tools.checkpoints.gguf_writer import GgufWriter
from oss_tools.compare.usual import PROBE, READ_ONLY, measured, usual
from oss_tools.compare.weights import compare_weights
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.formats import Format, all_formats, get_format
from oss_tools.models import open_checkpoint

pytestmark = pytest.mark.peers
llama_cpp = pytest.importorskip("llama_cpp")

WANT_IMPORTANCE = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs")  # which ggml does not make without
BLOCKS = sorted(name for name, f in all_formats().items() if f.ggml_type is not None and not f.is_float)
FOUR_BITS = ("q4_0", "q4_1", "q4_k", "iq4_nl", "iq4_xs", "mxfp4", "ggml_nvfp4", "q5_k", "q3_k")
SHAPE = {
    "name": "llama-256",
    "config": {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
}


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    package = Path(llama_cpp.__file__).parent
    libraries = [*package.glob("lib/libggml-base.so"), *package.glob("lib/libggml-base.dylib")]
    if not libraries:
        pytest.skip("llama-cpp-python has no libggml-base of its own")
    library = ctypes.CDLL(str(libraries[0]))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, integer, pointer]
    return library


@pytest.fixture(scope="module", params=["normal", "heavy tails"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small llama in float32, as GGUF: normal weights, or, as trained models have them, with columns and values that stand
    out."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "shape.yaml").write_text(yaml.safe_dump(SHAPE))
    made = synthesize(plan_synthesis(load_shape(folder / "shape.yaml"), "gguf"), folder / "made.gguf")
    heavy = request.param == "heavy tails"
    return written(made, folder / "base", get_format("f32"), lambda name, values: stretched(values) if heavy else values)


def stretched(values: np.ndarray) -> np.ndarray:
    if values.ndim < 2:
        return values
    random = np.random.default_rng(values.shape[0])
    columns = np.exp(0.3 * random.standard_normal(values.shape[-1]))
    columns[random.integers(0, len(columns), 4)] *= 5
    tails = np.sqrt(5 / random.chisquare(5, values.shape))  # times a normal value: Student's t
    return (values * columns * tails).astype(np.float32)


def rounded(values: np.ndarray, format: Format, ggml: ctypes.CDLL | None) -> np.ndarray:
    """float32 [rows, columns] in a format's bytes, by ggml."""
    assert ggml is not None
    values = np.ascontiguousarray(values, np.float32)
    found = np.empty((len(values), format.bytes_per_row(values.shape[1])), np.uint8)
    weights = np.ones(values.shape[1], np.float32)
    importance = weights.ctypes.data if format.name in WANT_IMPORTANCE else None
    ggml.ggml_quantize_chunk(format.ggml_type, values.ctypes.data, found.ctypes.data, 0, *values.shape, importance)
    return found


def written(source: Path, folder: Path, format: Format, edit=lambda name, values: values, ggml=None) -> Path:
    """A GGUF file of the same tensors after `edit`, its matrices rounded to a format by ggml."""
    folder.mkdir()
    with open_checkpoint(source) as checkpoint:
        reader = checkpoint.reader
        tensors = [
            StoredTensor(t.name, format if len(t.shape) > 1 else get_format("f32"), t.shape) for t in reader.tensors.values()
        ]
        metadata, config = checkpoint.metadata(), checkpoint.architecture.container_config("gguf")
        writer = GgufWriter(folder, Contents("model", tensors, metadata, config))
        for tensor in tensors:
            values = reader.read(tensor.name, 0, tensor.rows, tensor.shape[-1]).dequantize()
            values = edit(tensor.name, values.reshape(tensor.shape)).reshape(tensor.rows, -1)
            if tensor.format.is_float:
                writer.write(tensor.name, 0, tensor.format.quantize(np.ascontiguousarray(values)))
            else:
                packed = rounded(values, format, ggml)
                writer.write(tensor.name, 0, format.unpack_ggml(packed, values.shape[1]))
        (file,) = writer.finish()
        writer.close()
    return file


def findings(base: Path, other: Path) -> list[str]:
    with open_checkpoint(base) as one, open_checkpoint(other) as two:
        return [finding.message for finding in compare_weights(one, two)[1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(READ_ONLY))
def test_the_usual_cost_of_a_format_that_is_only_read_is_ggmls(name: str, ggml: ctypes.CDLL) -> None:
    format = get_format(name)
    found = measured(lambda values: format.unpack_ggml(rounded(values, format, ggml), PROBE[1]).dequantize())
    print(f'"{name}": Usual({found.error:.3g}, {found.low:.3f}, {found.high:.3f}),')
    assert usual(format).error == pytest.approx(found.error, rel=0.02)
    assert (usual(format).low, usual(format).high) == pytest.approx((found.low, found.high), abs=0.005)


def test_every_format_has_a_usual_cost() -> None:
    for format in all_formats().values():
        assert 0 <= usual(format).error < 1
        assert format.name in ("f32", "tq1_0", "tq2_0") or 0 < usual(format).error < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_what_ggml_makes_of_an_honest_model_is_not_suspicious(
    name: str, base: Path, ggml: ctypes.CDLL, tmp_path: Path
) -> None:
    assert findings(base, written(base, tmp_path / "q", get_format(name), ggml=ggml)) == []


SCALED = {
    "a matrix": ("blk.1.ffn_down.weight", slice(None), slice(None), "model.layers.1.mlp.down_proj.weight"),
    "a query head": ("blk.0.attn_q.weight", slice(64, 96), slice(None), "model.layers.0.self_attn.q_proj.weight, head 2"),
    "a value head": ("blk.1.attn_v.weight", slice(96, 128), slice(None), "model.layers.1.self_attn.v_proj.weight, head 3"),
    "a head's output": (
        "blk.0.attn_output.weight",
        slice(None),
        slice(32, 64),
        "model.layers.0.self_attn.o_proj.weight, head 1",
    ),
    "some rows": ("blk.1.ffn_gate.weight", slice(160, 192), slice(None), "model.layers.1.mlp.gate_proj.weight, rows 1"),
    "the output": ("output.weight", slice(None), slice(None), "lm_head.weight"),
}


@pytest.mark.parametrize("where", SCALED)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if n else ()) for n, name in enumerate(FOUR_BITS)]
)
def test_what_was_scaled_before_rounding_is_found_where_it_is(
    name: str, where: str, base: Path, ggml: ctypes.CDLL, tmp_path: Path
) -> None:
    stored, rows, columns, said = SCALED[where]

    def scale(tensor: str, values: np.ndarray) -> np.ndarray:
        if tensor == stored:
            values = values.copy()
            values[rows, columns] *= 1.1
        return values

    (message,) = findings(base, written(base, tmp_path / "q", get_format(name), scale, ggml))
    assert message.startswith(said)
    assert "times the base's" in message


LEFT_OUT = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K_S")  # want an importance matrix
NOT_READ = ("Q1_0", "Q2_0")
KINDS = {  # llama.cpp's mixtures: name -> llama_ftype
    name.removeprefix("LLAMA_FTYPE_MOSTLY_"): getattr(llama_cpp, name)
    for name in dir(llama_cpp)
    if name.startswith("LLAMA_FTYPE_MOSTLY_") and not name.endswith((*LEFT_OUT, *NOT_READ))
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_llama_cpp_makes_of_a_whole_model_is_not_suspicious(kind: str, base: Path, tmp_path: Path) -> None:
    """Mixtures of formats, tensor by tensor as llama.cpp chooses them."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = KINDS[kind], 1
    target = tmp_path / "q.gguf"
    if llama_cpp.llama_model_quantize(str(base).encode(), str(target).encode(), ctypes.byref(params)):
        pytest.skip(f"this llama.cpp does not write {kind}")
    assert findings(base, target) == []
