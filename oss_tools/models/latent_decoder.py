"""Decoders with multi-head latent attention (https://arxiv.org/abs/2405.04434): all heads share a latent and one rotated key.

Source: transformers' `models/deepseek_v3/modeling_deepseek_v3.py`; for GGUF llama.cpp's `deepseek2`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

from oss_tools.models.decoder import Decoder
from oss_tools.models.latent_config import (
    LATENT_EPSILON,
    OWN_KEYS,
    LatentConfig,
    LatentFamily,
    computation_of,
    from_hf,
    to_hf,
)
from oss_tools.models.latent_words import from_gguf, to_gguf
from oss_tools.models.operations import Latent, Operations, Rope, Router, Value
from oss_tools.models.sparse_decoder import SparseDecoder
from oss_tools.models.stored import Stored
from oss_tools.models.tensors import Placement, TensorSpec, whole


class LatentDecoder(SparseDecoder):
    """Such a model."""

    family: ClassVar[LatentFamily]
    config: LatentConfig
    shared = "shared_experts"
    shared_has_gate = False

    # ---- configuration ----------------------------------------------------------------------------------------------

    @classmethod
    def from_words(cls, container: str, raw: Mapping[str, Any], stored: Stored) -> Self:
        config, remarks = (from_hf if container == "hf" else from_gguf)(cls.family, raw, stored)
        model = cls(config)
        model.remarks = remarks
        return model

    def hf_config(self) -> dict[str, Any]:
        return super().hf_config() if self.config.hf else to_hf(self.family, self.model_type, self.config)

    def words(self, container: str) -> dict[str, Any]:
        return to_gguf(self.family, self.model_type, self.config)

    def said(self, names: Iterable[str]) -> dict[str, Any]:
        words = to_hf(self.family, self.model_type, self.config)
        return {key: words[key] for key in (OWN_KEYS.get(name, name) for name in names)}

    def computation(self) -> dict[str, Any]:
        return computation_of(self.config)

    # ---- tensors ----------------------------------------------------------------------------------------------------

    def _attention_tensors(self, layer: int, at: str) -> Iterator[TensorSpec]:
        c = self.config
        hidden, heads = c.hidden_size, c.num_attention_heads
        queries = heads * (c.qk_nope_head_dim + c.qk_rope_head_dim)
        if c.q_lora_rank:
            yield from self._linear(layer, f"{at}q_a_proj", "attention.q_a", (c.q_lora_rank, hidden))
            yield TensorSpec(f"{at}q_a_layernorm.weight", (c.q_lora_rank,), "norm", layer)
            yield from self._linear(layer, f"{at}q_b_proj", "attention.q_b", (queries, c.q_lora_rank))
        else:
            yield from self._linear(layer, f"{at}q_proj", "attention.q", (queries, hidden))
        yield from self._linear(
            layer, f"{at}kv_a_proj_with_mqa", "attention.kv_a", (c.kv_lora_rank + c.qk_rope_head_dim, hidden)
        )
        yield TensorSpec(f"{at}kv_a_layernorm.weight", (c.kv_lora_rank,), "norm", layer)
        keys_and_values = heads * (c.qk_nope_head_dim + c.v_head_dim)
        yield from self._linear(layer, f"{at}kv_b_proj", "attention.kv_b", (keys_and_values, c.kv_lora_rank))
        yield from self._linear(layer, f"{at}o_proj", "attention.out", (hidden, heads * c.v_head_dim))

    def _mlp_tensors(self, layer: int, at: str) -> Iterator[TensorSpec]:
        yield from super()._mlp_tensors(layer, at)
        if self._is_corrected and layer not in self.config.mlp_only_layers:
            yield TensorSpec(f"{at}gate.e_score_correction_bias", (self.config.num_local_experts,), "bias", layer)

    @property
    def _is_corrected(self) -> bool:
        """Whether a tensor corrects the choice of experts."""
        return self.family.score == "sigmoid"

    def placements(self, container: str, spec: TensorSpec, is_float: bool) -> list[Placement]:
        if container == "gguf" and spec.role == "attention.kv_b":
            return self._heads_apart(spec)
        if container == "gguf" and spec.name.endswith("e_score_correction_bias"):
            return whole(f"blk.{spec.layer}.exp_probs_b.bias", spec.shape, spec)
        return super().placements(container, spec, is_float)

    def _heads_apart(self, spec: TensorSpec) -> list[Placement]:
        """llama.cpp's two stacks: each head's projection to its key transposed, each head's to its value."""
        c, at = self.config, f"blk.{spec.layer}."
        heads, nope, value, rank = c.num_attention_heads, c.qk_nope_head_dim, c.v_head_dim, c.kv_lora_rank
        keys = Placement(f"{at}attn_k_b.weight", (heads, rank, nope), count=nope, stored_rows=nope, transposed=True)
        values = Placement(f"{at}attn_v_b.weight", (heads, value, rank), count=value, stored_rows=value)
        return [
            replace(part, first=head * (nope + value) + offset, stored_matrix=head)
            for head in range(heads)
            for part, offset in ((keys, 0), (values, nope))
        ]

    def other_placements(self, container: str, spec: TensorSpec, is_float: bool) -> Iterator[list[Placement]]:
        if container == "gguf" and spec.role == "attention.kv_b":
            yield Decoder.placements(self, container, spec, is_float)  # whole, in older files
        else:
            yield from super().other_placements(container, spec, is_float)

    def is_ignored(self, stored: str) -> bool:
        """Of layers that predict further tokens."""
        parts = stored.split(".")
        number = parts[1] if parts[0] == "blk" else parts[2] if stored.startswith("model.layers.") else ""
        return (number.isdecimal() and int(number) >= self.config.num_hidden_layers) or super().is_ignored(stored)

    # ---- forward pass -----------------------------------------------------------------------------------------------

    def rope(self) -> Rope:
        return replace(super().rope(), interleaved=self.config.rope_interleave)

    def attention_layers(self) -> list[Latent]:  # type: ignore[override]
        c = self.config
        sizes = (c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim, c.kv_lora_rank)
        return [Latent(layer, c.num_attention_heads, *sizes, scale=c.scale) for layer in range(c.num_hidden_layers)]

    def router(self, at: str) -> Router:
        c = self.config
        return Router(
            c.num_local_experts,
            c.num_experts_per_tok,
            self.family.score,
            renormalized=c.norm_topk_prob,
            scale=c.routed_scaling_factor,
            correction=f"{at}.gate.e_score_correction_bias" if self._is_corrected else None,
            groups=c.n_group,
            groups_chosen=c.topk_group,
            group_score="top2" if self._is_corrected else "max",
        )

    def _attention(self, ops: Operations[Value], x: Value, at: str, heads: Latent, rope: Rope) -> Value:  # type: ignore[override]
        c = self.config
        if c.q_lora_rank:
            compressed = ops.rms_norm(ops.linear(x, f"{at}.q_a_proj"), f"{at}.q_a_layernorm.weight", LATENT_EPSILON)
            query = ops.linear(compressed, f"{at}.q_b_proj")
        else:
            query = ops.linear(x, f"{at}.q_proj")
        latent, key = ops.split(ops.linear(x, f"{at}.kv_a_proj_with_mqa"), (c.kv_lora_rank, c.qk_rope_head_dim))
        latent = ops.rms_norm(latent, f"{at}.kv_a_layernorm.weight", LATENT_EPSILON)
        query, key = ops.rope(query, heads.queries, rope, first=heads.nope), ops.rope(key, 1, rope)
        return ops.linear(ops.latent_attention(query, latent, key, f"{at}.kv_b_proj", heads), f"{at}.o_proj")
