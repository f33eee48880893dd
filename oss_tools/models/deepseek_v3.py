"""DeepSeek-V3 and R1 (https://arxiv.org/abs/2412.19437): latent attention, routers with a sigmoid, a correction and groups.

After transformers (`models/deepseek_v3`) and llama.cpp (`deepseek2`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oss_tools.models.latent_config import LatentFamily
from oss_tools.models.latent_decoder import LatentDecoder
from oss_tools.models.latent_words import is_in_gguf

DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
}


class DeepseekV3(LatentDecoder):
    """A DeepSeek-V3."""

    model_type = "deepseek_v3"
    family = LatentFamily("DeepseekV3ForCausalLM", gguf="deepseek2", defaults=DEFAULTS)

    @classmethod
    def is_in_gguf(cls, raw: Mapping[str, Any]) -> bool:
        return is_in_gguf(raw, cls.model_type, cls.family.score)
