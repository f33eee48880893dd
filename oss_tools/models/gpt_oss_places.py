"""Where other programs than OpenAI's, transformers and llama.cpp put the tensors of a gpt-oss model; read, never written.

Sources: unsloth_zoo (`temporary_patches/gpt_oss.py`: experts and router as linears), llm-compressor (`modeling/gpt_oss.py`: gate
and up apart), transformers 5 (packed names kept after unpacking), Ollama (`model/models/gptoss/model.go`), llama.cpp
(`--fuse-gate-up-exps`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from oss_tools.models.tensors import Placement, TensorSpec, whole

if TYPE_CHECKING:
    from oss_tools.models.gpt_oss_config import GptOssConfig


def hugging_face(config: GptOssConfig, spec: TensorSpec, is_float: bool) -> Iterator[list[Placement]]:
    """In a Hugging Face folder. Single experts are [out, in], as linears are; stacks in floats are [experts, in, out]."""
    module, _, name = spec.name.rpartition(".")
    if spec.role == "embedding" and config.tie_word_embeddings:  # the tie is stored at its other end
        yield whole("lm_head.weight", spec.shape, spec)
    if module.endswith(".mlp.router"):
        yield whole(f"{module}.linear.{name}", spec.shape, spec)
    if not module.endswith(".mlp.experts"):
        return
    if spec.role.startswith("experts.") and is_float:  # unpacked, under the packed name
        experts, out, inner = spec.shape
        yield whole(f"{spec.name}_blocks", (experts, inner, out), spec, transposed=True)
    part = "bias" if name.endswith("_bias") else "weight"
    projection = name.removesuffix("_bias")  # gate_up_proj or down_proj
    yield _one_by_one(spec, {f"{module}.{projection}s.{{}}.{part}": (0, 1)})
    for stack in (module, f"{module}.experts"):
        if projection == "gate_up_proj":
            yield _one_by_one(spec, {f"{stack}.{{}}.gate_proj.{part}": (0, 2), f"{stack}.{{}}.up_proj.{part}": (1, 2)})
        else:
            yield _one_by_one(spec, {f"{stack}.{{}}.down_proj.{part}": (0, 1)})


def _one_by_one(spec: TensorSpec, parts: dict[str, tuple[int, int]]) -> list[Placement]:
    """Each expert's rows in tensors of their own: name with the expert's number left open -> (first canonical row, step)."""
    experts, rows, _ = spec.matrices
    return [
        Placement(
            name.format(expert), (rows // step, *spec.shape[2:]), rows // step, rows // step, first, step, matrix=expert
        )
        for expert in range(experts)
        for name, (first, step) in parts.items()
    ]


def gguf(config: GptOssConfig, spec: TensorSpec, is_float: bool) -> Iterator[list[Placement]]:
    """In a GGUF file: what is fused there."""
    layer = f"blk.{spec.layer}."
    if "experts.gate_up_proj" in spec.name:
        part = "bias" if spec.name.endswith("_bias") else "weight"
        _, rows, _ = spec.matrices
        fused = f"{layer}ffn_gate_up_exps.{part}"  # llama.cpp's: all of the gate, then all of up
        yield [Placement(fused, spec.shape, rows // 2, rows, first, 2, offset=first * rows // 2) for first in (0, 1)]
        yield whole(
            f"{layer}ffn_gate_up_exps_interleaved.{part}", spec.shape, spec
        )  # Ollama's: row by row in turn, as OpenAI's
    for letter, first, heads in _query_key_value(config):
        if f"self_attn.{letter}_proj" in spec.name:
            rows = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
            fused = f"{layer}attn_qkv.{spec.name.rpartition('.')[2]}"
            shape = (rows, *spec.shape[1:])
            yield [Placement(fused, shape, heads * config.head_dim, rows, offset=first * config.head_dim)]


def _query_key_value(config: GptOssConfig) -> Iterator[tuple[str, int, int]]:
    """(letter, first head in the fused tensor, heads)."""
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    yield from (("q", 0, queries), ("k", queries, keys), ("v", queries + keys, keys))
