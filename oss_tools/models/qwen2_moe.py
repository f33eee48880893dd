"""Qwen 1.5 and 2 with experts (https://arxiv.org/abs/2407.10671): Qwen 2's attention, and a shared expert behind a gate.

After transformers (`models/qwen2_moe`) and llama.cpp (`qwen2moe`).
"""

from __future__ import annotations

from oss_tools.models.decoder_config import QKV, Family
from oss_tools.models.sparse_decoder import SparseDecoder
from oss_tools.models.windows import EVEN_LAYERS


class Qwen2Moe(SparseDecoder):
    """A Qwen 2 model with experts."""

    model_type = "qwen2_moe"
    family = Family(
        "Qwen2MoeForCausalLM",
        gguf="qwen2moe",
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 16,
            "num_local_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "norm_topk_prob": False,
        },
        bias_keys={"qkv_bias": ("self_attn", QKV, True)},
        gguf_biases=QKV,
        windows=EVEN_LAYERS,
        experts=(
            *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"),
            *("shared_expert_intermediate_size", "norm_topk_prob", "mlp_only_layers", "decoder_sparse_step"),
        ),
        gguf_renormalizes=False,
    )
