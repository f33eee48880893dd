"""DeepSeek-V2, V2-Lite, V2.5 and their coders (https://arxiv.org/abs/2405.04434): latent attention, softmax routers.

After transformers (`models/deepseek_v2`) and llama.cpp (`deepseek2`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oss_tools.models.latent_config import LatentFamily
from oss_tools.models.latent_decoder import LatentDecoder
from oss_tools.models.latent_words import is_in_gguf


class DeepseekV2(LatentDecoder):
    """A DeepSeek-V2."""

    model_type = "deepseek_v2"
    family = LatentFamily(
        "DeepseekV2ForCausalLM",
        gguf="deepseek2",
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 2048,
            "moe_intermediate_size": 1407,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "first_k_dense_replace": 0,
            "q_lora_rank": 1536,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "routed_scaling_factor": 1.0,
            "topk_method": "greedy",
        },
        score="softmax",
    )

    @classmethod
    def is_in_gguf(cls, raw: Mapping[str, Any]) -> bool:
        return is_in_gguf(raw, cls.model_type, cls.family.score)
