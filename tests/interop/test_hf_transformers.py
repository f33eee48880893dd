"""Hugging Face folders against transformers and compressed-tensors: both ways, and the same values."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from oss_tools.checkpoints import Contents
from oss_tools.formats import QTensor, get_format
from oss_tools.models.checkpoint import open_checkpoint
from oss_tools.models.entries import Entry, stored_tensors
from tests.checkpoints.small_models import EXPERTS, LINEARS, write_all

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("torchao").setLevel(logging.ERROR)


def gpt_oss(folder: Path):
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        num_hidden_layers=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=320,
        sliding_window=16,
    )
    model = transformers.GptOssForCausalLM(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    return model


def llama(folder: Path, **changes):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=2,
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=320,
        **changes,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model.save_pretrained(folder, max_shard_size=changes.pop("shard", "100KB"))
    return model


def as_transformers_holds_it(entry: Entry, values: np.ndarray) -> np.ndarray:
    """Canonical values in the shape of transformers' parameter: it keeps experts [experts, in, out]."""
    return values.transpose(0, 2, 1) if entry.spec.role in EXPERTS else values


def assert_same(model, tensors: dict[str, np.ndarray]) -> None:
    """A model's parameters against float32 values by canonical name."""
    state = model.state_dict()
    for name, values in tensors.items():
        assert np.array_equal(state[name].float().numpy(), values), name
    unknown = {n for n in state if n not in tensors and not (n == "lm_head.weight" and model.config.tie_word_embeddings)}
    assert not unknown


def rewrite(source: Path, target: Path, container: str, formats: dict[str, str], shard_size: int | None = None) -> dict:
    """A checkpoint into another container and other formats; returns the values written, as transformers holds them."""
    from oss_tools.checkpoints import writer_for

    target.mkdir()
    with open_checkpoint(source) as checkpoint:
        model = checkpoint.architecture
        entries, tensors, values = [], {}, {}
        for name, entry in checkpoint.entries.items():
            tensor = checkpoint.read_tensor(name)
            form = get_format(formats.get(name, formats.get(entry.spec.role, entry.format.name)))
            if form != tensor.format:
                tensor = form.quantize(tensor.dequantize())
            placements = tuple(model.placements(container, entry.spec, form.is_float))
            entries.append(Entry(entry.spec, form, placements))
            values[name] = as_transformers_holds_it(entry, tensor.dequantize())
            tensors[name] = flat(tensor, entry)
        config = model.container_config(container)
        contents = Contents("model", stored_tensors(entries), checkpoint.metadata(), config, shard_size)
        writer = writer_for(container)(target, contents)
        write_all(writer, entries, tensors)
        writer.finish()
        writer.close()
    return values


def flat(tensor: QTensor, entry: Entry) -> QTensor:
    """A tensor as rows of its matrices, a vector as rows of one value."""
    _, _, columns = entry.spec.matrices
    if entry.spec.is_vector:
        return QTensor(tensor.format, (entry.spec.size, 1), {"values": tensor.planes["values"].reshape(-1, 1)})
    return tensor.reshape(entry.spec.size // columns, columns)


def load(folder: Path, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def test_gpt_oss_of_transformers_is_read(tmp_path: Path) -> None:
    model = gpt_oss(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        found = {
            name: as_transformers_holds_it(e, checkpoint.read_tensor(name).dequantize())
            for name, e in checkpoint.entries.items()
        }
        assert checkpoint.parameters == sum(p.numel() for p in model.parameters())
    assert_same(model, found)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_llama_of_transformers_is_read_from_its_shards(tmp_path: Path, changes: dict) -> None:
    model = llama(tmp_path, **changes)
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.reader.files()) > 1
        found = {name: checkpoint.read_tensor(name).dequantize() for name in checkpoint.entries}
        assert checkpoint.parameters == sum(p.numel() for p in model.parameters())
    assert_same(model, found)


@pytest.mark.parametrize("shard_size", [None, 40_000])
@pytest.mark.parametrize("experts", ["bf16", "mxfp4"])
def test_transformers_loads_gpt_oss_as_we_write_it(tmp_path: Path, experts: str, shard_size: int | None) -> None:
    original = gpt_oss(tmp_path / "a")
    values = rewrite(tmp_path / "a", tmp_path / "b", "hf", dict.fromkeys(EXPERTS, experts), shard_size)
    model = load(tmp_path / "b", quantization_config=mxfp4_dequantized() if experts == "mxfp4" else None)
    assert model.dtype == torch.bfloat16
    assert_same(model, values)
    if experts == "bf16":
        assert_same(original, values)


def mxfp4_dequantized():
    return transformers.Mxfp4Config(dequantize=True)


def test_transformers_loads_a_layer_left_in_bf16(tmp_path: Path) -> None:
    gpt_oss(tmp_path / "a")
    kept = {f"model.layers.1.mlp.experts.{part}_proj": "bf16" for part in ("gate_up", "down")}
    values = rewrite(tmp_path / "a", tmp_path / "b", "hf", dict.fromkeys(EXPERTS, "mxfp4") | kept)
    assert_same(load(tmp_path / "b", quantization_config=mxfp4_dequantized()), values)


def test_gpt_oss_goes_through_openais_layout(tmp_path: Path) -> None:
    gpt_oss(tmp_path / "a")
    values = rewrite(tmp_path / "a", tmp_path / "b", "hf", dict.fromkeys(EXPERTS, "mxfp4"))
    rewrite(tmp_path / "b", tmp_path / "c", "original", {})
    again = rewrite(tmp_path / "c", tmp_path / "d", "hf", {})
    assert values.keys() == again.keys()
    assert all(np.array_equal(values[name], again[name]) for name in values)
    assert_same(load(tmp_path / "d", quantization_config=mxfp4_dequantized()), values)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("shard_size", [None, 100_000])
def test_transformers_loads_llama_as_we_write_it(tmp_path: Path, changes: dict, shard_size: int | None) -> None:
    model = llama(tmp_path / "a", **changes)
    values = rewrite(tmp_path / "a", tmp_path / "b", "hf", {}, shard_size)
    assert_same(model, values)
    assert_same(load(tmp_path / "b"), values)


QUANTIZED = ["int8", "int8_g128", "int8_g32", "fp8_e4m3", "mxfp4", "nvfp4"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_transformers_loads_quantized_llama_through_compressed_tensors(tmp_path: Path, kind: str, tied: bool) -> None:
    llama(tmp_path / "a", tie_word_embeddings=tied)
    values = rewrite(tmp_path / "a", tmp_path / "b", "hf", dict.fromkeys(LINEARS, kind))
    config = transformers.CompressedTensorsConfig(dequantize=True)
    model = load(tmp_path / "b", quantization_config=config)
    state = model.state_dict()
    for name, expected in values.items():
        rounded = torch.from_numpy(np.ascontiguousarray(expected)).to(torch.bfloat16)
        assert torch.equal(state[name], rounded), name


RUNS = {
    "int8": (llama, {**dict.fromkeys(LINEARS, "int8"), "output": "int8"}),
    "several": (llama, {**dict.fromkeys(LINEARS, "int8"), "mlp.down": "int8_g32", "attention.out": "bf16"}),
    "gpt_oss": (gpt_oss, dict.fromkeys(LINEARS, "int8_g32")),
}


@pytest.mark.parametrize("case", RUNS)
def test_transformers_runs_what_we_quantized(tmp_path: Path, case: str) -> None:
    make, formats = RUNS[case]
    make(tmp_path / "a")
    values = rewrite(tmp_path / "a", tmp_path / "b", "hf", formats)
    model = load(tmp_path / "b")
    tokens = torch.arange(12).reshape(1, -1)
    with torch.no_grad():
        found = model(tokens).logits
        dense = load(tmp_path / "a")
        state = {name: torch.from_numpy(np.ascontiguousarray(v)).to(torch.bfloat16) for name, v in values.items()}
        dense.load_state_dict(state)
        expected = dense(tokens).logits
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_compressed_tensors_decompresses_to_our_values(tmp_path: Path, kind: str) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file

    llama(tmp_path / "a")
    values = rewrite(tmp_path / "a", tmp_path / "b", "hf", dict.fromkeys(LINEARS, kind))
    declared = json.loads((tmp_path / "b/config.json").read_text())["quantization_config"]
    (scheme,) = QuantizationConfig.model_validate(declared).config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(declared["format"])
    stored = load_file(tmp_path / "b/model.safetensors")
    module = "model.layers.1.mlp.down_proj."
    state = {name.removeprefix(module): tensor for name, tensor in stored.items() if name.startswith(module)}
    assert set(state) == set(compressor.compression_param_names(scheme))
    state["weight_scale"] = (
        state["weight_scale"].float() if state["weight_scale"].is_floating_point() else state["weight_scale"]
    )
    found = compressor.decompress(state, scheme)["weight"]
    expected = torch.from_numpy(values[f"{module}weight"])
    assert torch.equal(found.float(), expected.to(found.dtype).float())


@pytest.mark.parametrize("preset", ["W8A8", "FP8_DYNAMIC", "MXFP4A16", "NVFP4A16"])
def test_what_compressed_tensors_writes_is_read(tmp_path: Path, preset: str) -> None:
    from compressed_tensors.compressors import BaseCompressor, compress_module
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme
    from compressed_tensors.quantization.lifecycle.initialize import initialize_module_for_quantization
    from safetensors.torch import load_file, save_file

    llama(tmp_path, shard="1GB")
    scheme = preset_name_to_scheme(preset, ["Linear"])
    stored = load_file(tmp_path / "model.safetensors")
    expected = {}
    for name in [n for n in stored if "_proj.weight" in n]:
        module = torch.nn.Linear(*stored[name].shape[::-1], bias=False).to(torch.bfloat16)
        module.weight.data = stored.pop(name)
        initialize_module_for_quantization(module, scheme, force_zero_point=False)
        set_scales(module)
        compress_module(module)
        state = {key: value.data for key, value in module.state_dict().items()}
        stored |= {name.removesuffix("weight") + key: value for key, value in state.items()}
        compressor = BaseCompressor.get_value_from_registry(module.quantization_scheme.format)
        if state["weight_scale"].is_floating_point():
            state["weight_scale"] = state["weight_scale"].float()
        expected[name] = compressor.decompress(state, scheme)["weight"]
    save_file(stored, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    quantization = QuantizationConfig(
        config_groups={"group_0": scheme}, format=scheme.format, quantization_status="compressed"
    )
    config["quantization_config"] = json.loads(quantization.model_dump_json())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open_checkpoint(tmp_path) as checkpoint:
        for name, values in expected.items():
            assert not checkpoint.entries[name].format.is_float
            found = torch.from_numpy(checkpoint.read_tensor(name).dequantize())
            assert torch.equal(found.to(values.dtype), values), name


def set_scales(module) -> None:
    """The scales that a calibration would have found: each group's largest magnitude is the largest code."""
    weights = module.quantization_scheme.weights
    groups = module.weight.float().reshape(*module.weight_scale.shape, -1)
    largest = {("int", 8): 127, ("float", 8): 448, ("float", 4): 6}[weights.type, weights.num_bits]
    scale = groups.abs().amax(-1) / largest
    if weights.group_size == 32:
        scale = 2.0 ** torch.ceil(torch.log2(scale))
    if weights.strategy == "tensor_group":
        module.weight_global_scale.data = (448 / scale.max()).reshape(1)
        scale = scale * module.weight_global_scale
    module.weight_scale.data = scale.to(module.weight_scale.dtype)
