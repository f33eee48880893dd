"""Mixtral 8x7B and 8x22B (https://arxiv.org/abs/2401.04088): Mistral's layers with eight experts, of which a token has two.

After transformers (`models/mixtral`). In GGUF they are `llama` with a number of experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oss_tools.models.decoder_config import Family
from oss_tools.models.expert_places import Names
from oss_tools.models.sparse_decoder import SparseDecoder
from oss_tools.models.windows import every_layer


class Mixtral(SparseDecoder):
    """A Mixtral model."""

    model_type = "mixtral"
    family = Family(
        "MixtralForCausalLM",
        gguf="llama",
        gguf_rotates=True,
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        theta=1e6,
        windows=every_layer(None),
        experts=("num_local_experts", "num_experts_per_tok"),
    )
    expert_names = Names("block_sparse_moe", {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"})

    @classmethod
    def is_in_gguf(cls, raw: Mapping[str, Any]) -> bool:
        experts = raw.get("llama.expert_count")
        return experts is not None and not (isinstance(experts, int) and experts == 0)
