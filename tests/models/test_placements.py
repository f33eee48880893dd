"""Where tensors lie: a container gives back what was written, whatever the chunks, in the order its programs expect."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.errors import BadCheckpoint
from oss_tools.formats import QTensor, get_format
from oss_tools.models.base import Architecture
from oss_tools.models.checkpoint import Checkpoint
from oss_tools.models.entries import Entry, chunks
from oss_tools.models.gpt_oss import GptOss, GptOssConfig
from oss_tools.models.llama import Llama, LlamaConfig
from oss_tools.models.rows import write_rows
from tests.models.memory import MemoryContainer, container_for, entries_for, open_memory

GPT_OSS = GptOss(
    GptOssConfig(
        num_hidden_layers=2,
        num_local_experts=3,
        num_experts_per_tok=2,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        vocab_size=11,
        sliding_window=8,
    )
)
LLAMA = Llama(
    LlamaConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=40,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=13,
        biases=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    )
)
PAIRS = [(a, c) for a in (GPT_OSS, LLAMA) for c in a.containers]


def canonical_values(architecture: Architecture) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in architecture.tensors()}


def fill(container: MemoryContainer, entries: list[Entry], values: dict[str, np.ndarray], chunk_bytes: int) -> None:
    for entry in entries:
        flat = values[entry.name].reshape(entry.spec.matrices)
        for matrix, start, stop in chunks([entry], chunk_bytes):
            rows = QTensor(get_format("f32"), (stop - start, flat.shape[2]), {"values": flat[matrix, start:stop]})
            write_rows(container, entry, matrix, start, rows)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(PAIRS), st.integers(1, 6000), st.integers(1, 6000))
def test_what_is_written_is_read_back_whatever_the_chunks(pair, written: int, read: int) -> None:
    architecture, kind = pair
    values = canonical_values(architecture)
    entries = entries_for(architecture, kind)
    container = container_for(architecture, kind, entries)
    fill(container, entries, values, written)
    for name, counts in container.written.items():
        assert np.all(counts == 1), name
    checkpoint = open_memory(container)
    assert list(checkpoint.entries) == list(values)
    for name, expected in values.items():
        entry = checkpoint.entries[name]
        assert np.array_equal(checkpoint.read_tensor(name).planes["values"], expected), name
        flat = expected.reshape(entry.spec.matrices)
        for matrix, start, stop in chunks([entry], read):
            assert np.array_equal(checkpoint.read(name, matrix, start, stop).planes["values"], flat[matrix, start:stop])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(PAIRS), st.data())
def test_any_range_of_rows_can_be_read(pair, data) -> None:
    architecture, kind = pair
    values = canonical_values(architecture)
    entries = entries_for(architecture, kind)
    container = container_for(architecture, kind, entries)
    fill(container, entries, values, 1 << 20)
    checkpoint = open_memory(container)
    spec = data.draw(st.sampled_from(architecture.tensors()))
    count, rows, _ = spec.matrices
    matrix = data.draw(st.integers(0, count - 1))
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    found = checkpoint.read(spec.name, matrix, start, stop).planes["values"]
    assert np.array_equal(found, values[spec.name].reshape(spec.matrices)[matrix, start:stop])


@pytest.mark.parametrize("kind", GPT_OSS.containers)
def test_mxfp4_experts_keep_their_rows(kind: str) -> None:
    formats = {"experts.gate_up": "mxfp4", "experts.down": "mxfp4"}
    entries = entries_for(GPT_OSS, kind, formats)
    container = container_for(GPT_OSS, kind, entries)
    rng = np.random.default_rng(1)
    written = {}
    for entry in entries:
        columns = entry.spec.matrices[2]
        for matrix, start, stop in chunks([entry], 700):
            planes = {
                name: rng.integers(0, 200, (stop - start, plane.columns)).astype(plane.dtype)
                for name, plane in entry.format.planes(columns).items()
            }
            tensor = QTensor(entry.format, (stop - start, columns), planes)
            written[entry.name, matrix, start, stop] = tensor
            write_rows(container, entry, matrix, start, tensor)  # type: ignore[arg-type]
    checkpoint = open_memory(container)
    for (name, matrix, start, stop), tensor in written.items():
        found = checkpoint.read(name, matrix, start, stop)
        assert found.format == tensor.format
        for plane, array in tensor.planes.items():
            assert np.array_equal(found.planes[plane], array), (name, plane)


def filled(architecture: Architecture, kind: str) -> tuple[MemoryContainer, dict[str, np.ndarray]]:
    values = canonical_values(architecture)
    entries = entries_for(architecture, kind)
    container = container_for(architecture, kind, entries)
    fill(container, entries, values, 1 << 20)
    return container, values


def test_hugging_face_holds_unquantized_experts_transposed() -> None:
    container, values = filled(GPT_OSS, "hf")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert np.array_equal(container.values(name), values[name].transpose(0, 2, 1))


def test_the_original_layout_stacks_queries_keys_and_values() -> None:
    container, values = filled(GPT_OSS, "original")
    for part in ("weight", "bias"):
        stacked = np.concatenate([values[f"model.layers.1.self_attn.{letter}_proj.{part}"] for letter in "qkv"])
        assert np.array_equal(container.values(f"block.1.attn.qkv.{part}"), stacked)


def test_gguf_separates_gate_and_up() -> None:
    container, values = filled(GPT_OSS, "gguf")
    fused = values["model.layers.0.mlp.experts.gate_up_proj"]
    assert np.array_equal(container.values("blk.0.ffn_gate_exps.weight"), fused[:, 0::2])
    assert np.array_equal(container.values("blk.0.ffn_up_exps.weight"), fused[:, 1::2])
    bias = values["model.layers.0.mlp.experts.gate_up_proj_bias"]
    assert np.array_equal(container.values("blk.0.ffn_up_exps.bias"), bias[:, 1::2])


def test_gguf_interleaves_the_halves_of_llama_heads() -> None:
    # The order is llama.cpp's: in its converter, reshape(heads, 2, head_dim / 2, …).swapaxes(1, 2).
    container, values = filled(LLAMA, "gguf")
    for ours, theirs, heads in (("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2)):
        for part in ("weight", "bias"):
            array = values[f"model.layers.0.self_attn.{ours}.{part}"]
            split = array.reshape(heads, 2, 4, *array.shape[1:])
            assert np.array_equal(container.values(f"blk.0.{theirs}.{part}"), split.swapaxes(1, 2).reshape(array.shape))
    assert np.array_equal(container.values("blk.0.attn_v.weight"), values["model.layers.0.self_attn.v_proj.weight"])


def test_parts_in_different_formats_are_read_as_float32() -> None:
    entries = entries_for(GPT_OSS, "gguf")
    container, values = filled(GPT_OSS, "gguf")
    name = "blk.0.ffn_up_exps.weight"
    half = get_format("f16")
    container.tensors[name] = replace(container.tensors[name], format=half)
    container.arrays[name]["values"] = container.arrays[name]["values"].astype(np.float16)
    checkpoint = open_memory(container)
    entry = checkpoint.entries["model.layers.0.mlp.experts.gate_up_proj"]
    assert {f.name for f in entry.mixed} == {"f32", "f16"}
    expected = values[entry.name].copy()
    expected[:, 1::2] = expected[:, 1::2].astype(np.float16)
    assert np.array_equal(checkpoint.read_tensor(entry.name).planes["values"], expected)
    assert len(entries) == len(checkpoint.entries)


def test_missing_strange_and_misshapen_tensors_are_refused() -> None:
    container, _ = filled(LLAMA, "hf")
    whole = dict(container.tensors)
    name = "model.layers.1.mlp.up_proj.weight"
    container.tensors = {k: v for k, v in whole.items() if k != name}
    with pytest.raises(BadCheckpoint, match=f"{name} is missing"):
        Checkpoint(container)
    container.tensors = {**whole, "extra.weight": whole[name]}
    with pytest.raises(BadCheckpoint, match=r"extra\.weight is not part"):
        Checkpoint(container)
    container.tensors = {**whole, name: replace(whole[name], shape=(32, 40))}
    with pytest.raises(BadCheckpoint, match=r"has shape \[32, 40\], the configuration says \[40, 32\]"):
        Checkpoint(container)
    container.tensors = {**whole, "model.layers.0.self_attn.rotary_emb.inv_freq": whole["model.norm.weight"]}
    assert set(Checkpoint(container).entries) == set(whole)


def test_a_tied_output_may_be_absent() -> None:
    tied = Llama(replace(LLAMA.config, tie_word_embeddings=True))
    entries = [e for e in entries_for(tied, "hf") if e.spec.role != "output"]
    container = container_for(tied, "hf", entries)
    assert "lm_head.weight" not in open_memory(container).entries
