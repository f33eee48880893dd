"""Qwen 3 with experts (https://arxiv.org/abs/2505.09388): 30B-A3B, 235B-A22B, Coder-480B-A35B.

After transformers (`models/qwen3_moe`) and llama.cpp (`qwen3moe`).
"""

from __future__ import annotations

from oss_tools.models.decoder_config import ATTENTION, Family
from oss_tools.models.sparse_decoder import SparseDecoder
from oss_tools.models.windows import ALL_LAYERS


class Qwen3Moe(SparseDecoder):
    """A Qwen 3 model with experts."""

    model_type = "qwen3_moe"
    family = Family(
        "Qwen3MoeForCausalLM",
        gguf="qwen3moe",
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "num_local_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
        },
        bias_keys={"attention_bias": ("self_attn", ATTENTION, False)},
        windows=ALL_LAYERS,
        experts=(
            *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"),
            *("norm_topk_prob", "mlp_only_layers", "decoder_sparse_step"),
        ),
    )
    head_norms = True
