"""GPT-2: layer norms, learned positions, GELU, biases everywhere
(https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf).

After transformers (`models/gpt2`) and llama.cpp (`gpt2`). The canonical names are those of other families: what published files
hold as one transposed `c_attn` is q_proj, k_proj and v_proj here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from oss_tools.models.base import Architecture
from oss_tools.models.gpt2_config import Gpt2Config, computation, from_gguf, from_hf, to_gguf, to_hf
from oss_tools.models.operations import Heads, Operations, Value
from oss_tools.models.stored import Stored
from oss_tools.models.tensors import Placement, TensorSpec, whole

MASKS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")  # which positions are visible, of older files
NAMES = {  # canonical module, of the model or a layer -> (transformers', llama.cpp's)
    "model.embed_tokens": ("wte", "token_embd"),
    "model.position_embeddings": ("wpe", "position_embd"),
    "input_layernorm": ("ln_1", "attn_norm"),
    "self_attn.q_proj": ("attn.c_attn", "attn_qkv"),
    "self_attn.k_proj": ("attn.c_attn", "attn_qkv"),
    "self_attn.v_proj": ("attn.c_attn", "attn_qkv"),
    "self_attn.o_proj": ("attn.c_proj", "attn_output"),
    "post_attention_layernorm": ("ln_2", "ffn_norm"),
    "mlp.up_proj": ("mlp.c_fc", "ffn_up"),
    "mlp.down_proj": ("mlp.c_proj", "ffn_down"),
    "model.norm": ("ln_f", "output_norm"),
    "lm_head": ("lm_head", "output"),
}


class Gpt2(Architecture):
    """A GPT-2 with its configuration in `config`."""

    model_type = "gpt2"
    gguf_name = "gpt2"

    def __init__(self, config: Gpt2Config) -> None:
        self.config = config

    # ---- configuration ----------------------------------------------------------------------------------------------

    @classmethod
    def from_words(cls, container: str, raw: Mapping[str, Any], stored: Stored) -> Gpt2:
        config, remarks = (from_hf if container == "hf" else from_gguf)(raw, stored)
        model = cls(config)
        model.remarks = remarks
        return model

    def hf_config(self) -> dict[str, Any]:
        if self.config.hf:
            return {key: value for key, value in self.config.hf.items() if key != "quantization_config"}
        return to_hf(self.config)

    def words(self, container: str) -> dict[str, Any]:
        return to_gguf(self.config)

    def said(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: to_hf(self.config)[name] for name in names}

    def computation(self) -> dict[str, Any]:
        return computation(self.config)

    # ---- tensors ----------------------------------------------------------------------------------------------------

    def tensors(self) -> list[TensorSpec]:
        c = self.config
        hidden, inner = c.hidden_size, c.intermediate_size
        specs = [
            TensorSpec("model.embed_tokens.weight", (c.vocab_size, hidden), "embedding"),
            TensorSpec("model.position_embeddings.weight", (c.max_position_embeddings, hidden), "positions"),
        ]
        for layer in range(c.num_hidden_layers):
            at = f"model.layers.{layer}."
            specs += [
                *_norm(f"{at}input_layernorm", hidden, layer),
                *_linear(f"{at}self_attn.q_proj", "attention.q", (hidden, hidden), layer),
                *_linear(f"{at}self_attn.k_proj", "attention.k", (hidden, hidden), layer),
                *_linear(f"{at}self_attn.v_proj", "attention.v", (hidden, hidden), layer),
                *_linear(f"{at}self_attn.o_proj", "attention.out", (hidden, hidden), layer),
                *_norm(f"{at}post_attention_layernorm", hidden, layer),
                *_linear(f"{at}mlp.up_proj", "mlp.up", (inner, hidden), layer),
                *_linear(f"{at}mlp.down_proj", "mlp.down", (hidden, inner), layer),
            ]
        return [
            *specs,
            *_norm("model.norm", hidden, None),
            TensorSpec("lm_head.weight", (c.vocab_size, hidden), "output", optional=c.tie_word_embeddings),
        ]

    def placements(self, container: str, spec: TensorSpec, is_float: bool) -> list[Placement]:
        return self._placed(container, spec, "transformer.")

    def other_placements(self, container: str, spec: TensorSpec, is_float: bool) -> Iterator[list[Placement]]:
        if container == "hf":
            yield self._placed(container, spec, "")  # as OpenAI's files on the hub
            if spec.role == "embedding" and self.config.tie_word_embeddings:
                yield whole("lm_head.weight", spec.shape, spec)

    def _placed(self, container: str, spec: TensorSpec, prefix: str) -> list[Placement]:
        """One tensor; of the query, key and value projections, a third of one."""
        module, _, part = spec.name.rpartition(".")
        if spec.layer is not None:
            module = module.removeprefix(f"model.layers.{spec.layer}.")
        theirs, llama_cpps = NAMES[module]
        if container == "gguf":
            name, transposed = (f"blk.{spec.layer}." if spec.layer is not None else "") + f"{llama_cpps}.{part}", False
        else:
            at = "" if module == "lm_head" else prefix
            name = at + (f"h.{spec.layer}." if spec.layer is not None else "") + f"{theirs}.{part}"
            transposed = spec.role.startswith(("attention.", "mlp."))  # Conv1D: [in, out]
        _, rows, _ = spec.matrices
        third = (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj").index(module) if theirs == "attn.c_attn" else None
        )
        height = rows if third is None else 3 * rows
        shape = (height, *spec.shape[1:])
        return [
            Placement(
                name,
                shape[::-1] if transposed else shape,
                count=rows,
                stored_rows=height,
                offset=(third or 0) * rows,
                transposed=transposed,
            )
        ]

    def is_ignored(self, stored: str) -> bool:
        return MASKS.fullmatch(stored) is not None

    def active_parameters(self) -> int:
        tables = ("embedding", "positions")  # are looked up, not multiplied
        return sum(spec.size for spec in self.tensors() if spec.role not in tables)

    # ---- forward pass -----------------------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        return self.config.max_position_embeddings

    def attention_layers(self) -> list[Heads]:
        c = self.config
        return [
            Heads(layer, c.num_attention_heads, c.num_attention_heads, c.head_dim, scale=self._scale(layer))
            for layer in range(c.num_hidden_layers)
        ]

    def _scale(self, layer: int) -> float | None:
        """What a layer's logits are multiplied by; None for the usual."""
        c = self.config
        if c.scale_attn_weights and not c.scale_attn_by_inverse_layer_idx:
            return None
        scale = c.head_dim**-0.5 if c.scale_attn_weights else 1.0
        return scale / (layer + 1) if c.scale_attn_by_inverse_layer_idx else scale

    def forward(self, ops: Operations[Value]) -> Value:
        x = ops.add(ops.embed("model.embed_tokens.weight"), ops.positions("model.position_embeddings.weight"))
        for layer, heads in enumerate(self.attention_layers()):
            at = f"model.layers.{layer}"
            x = ops.add(x, self._attention(ops, x, at, heads))
            x = ops.add(x, self._mlp(ops, x, at))
        return ops.layer_norm(x, "model.norm", self.config.layer_norm_epsilon)

    def _attention(self, ops: Operations[Value], x: Value, at: str, heads: Heads) -> Value:
        normed = ops.layer_norm(x, f"{at}.input_layernorm", self.config.layer_norm_epsilon)
        query, key, value = ops.linears(normed, tuple(f"{at}.self_attn.{letter}_proj" for letter in "qkv"))
        return ops.linear(ops.attention(query, key, value, heads), f"{at}.self_attn.o_proj")

    def _mlp(self, ops: Operations[Value], x: Value, at: str) -> Value:
        normed = ops.layer_norm(x, f"{at}.post_attention_layernorm", self.config.layer_norm_epsilon)
        return ops.linear(ops.activated(normed, f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj")


def _norm(name: str, size: int, layer: int | None) -> list[TensorSpec]:
    return [TensorSpec(f"{name}.weight", (size,), "norm", layer), TensorSpec(f"{name}.bias", (size,), "bias", layer)]


def _linear(name: str, role: str, shape: tuple[int, int], layer: int) -> list[TensorSpec]:
    return [TensorSpec(f"{name}.weight", shape, role, layer), TensorSpec(f"{name}.bias", shape[:1], "bias", layer)]
