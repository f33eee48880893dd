"""GLM-4.7-Flash: DeepSeek-V3's computation with other sizes.

After transformers (`models/glm4_moe_lite`) and llama.cpp (`deepseek2`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oss_tools.models.deepseek_v3 import DEFAULTS
from oss_tools.models.latent_config import LatentFamily
from oss_tools.models.latent_decoder import LatentDecoder
from oss_tools.models.own_keys import PREFIX


class Glm4MoeLite(LatentDecoder):
    """A GLM-4.7-Flash."""

    model_type = "glm4_moe_lite"
    family = LatentFamily(
        "Glm4MoeLiteForCausalLM",
        gguf="deepseek2",
        defaults=DEFAULTS
        | {
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 202752,
            "moe_intermediate_size": 1536,
            "n_routed_experts": 64,
            "num_experts_per_tok": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 192,
            "v_head_dim": 256,
            "routed_scaling_factor": 1.8,
        },
        dense="mlp_layer_types",
    )

    @classmethod
    def is_in_gguf(cls, raw: Mapping[str, Any]) -> bool:
        return raw.get(f"{PREFIX}model_type") == '"glm4_moe_lite"'  # without the key they are read as DeepSeek-V3
