"""Small configurations of every family: for each a usual one and an odd one, as config.json has them."""

from __future__ import annotations

from typing import Any

from oss_tools.models.base import Architecture, architecture_of

COMMON = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 331,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
}
SEVEN_TO_ONE = {"num_attention_heads": 7, "num_key_value_heads": 1}
EXPERTS = {"moe_intermediate_size": 48, "num_experts": 6, "num_experts_per_tok": 3}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}

# (model_type, which) -> config.json
CONFIGS: dict[tuple[str, str], dict[str, Any]] = {
    ("mistral", "usual"): {"head_dim": 32, "sliding_window": None},
    ("mistral", "odd"): {**SEVEN_TO_ONE, "head_dim": 80, "sliding_window": 32, "tie_word_embeddings": True},
    ("mixtral", "usual"): {"num_local_experts": 8, "num_experts_per_tok": 2},
    ("mixtral", "odd"): {
        **SEVEN_TO_ONE,
        "hidden_size": 112,
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
        "sliding_window": 40,
        "rope_parameters": LINEAR,
    },
    ("qwen2", "usual"): {"tie_word_embeddings": True},
    ("qwen2", "odd"): {
        "hidden_size": 112,
        "num_attention_heads": 14,
        "use_sliding_window": True,
        "sliding_window": 20,
        "max_window_layers": 1,
        "rope_parameters": YARN,
    },
    ("qwen3", "usual"): {"head_dim": 128, "tie_word_embeddings": True},
    ("qwen3", "odd"): {**SEVEN_TO_ONE, "head_dim": 96, "attention_bias": True, "rope_parameters": YARN},
    ("qwen2_moe", "usual"): {**EXPERTS, "shared_expert_intermediate_size": 80, "norm_topk_prob": False},
    ("qwen2_moe", "odd"): {
        **EXPERTS,
        "shared_expert_intermediate_size": 32,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
        "use_sliding_window": True,
        "sliding_window": 33,
        "max_window_layers": 3,
        "qkv_bias": False,
    },
    ("qwen3_moe", "usual"): {**EXPERTS, "head_dim": 32, "norm_topk_prob": True},
    ("qwen3_moe", "odd"): {
        **EXPERTS,
        **SEVEN_TO_ONE,
        "head_dim": 80,
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "use_sliding_window": True,
        "sliding_window": 24,
        "attention_bias": True,
    },
}
GPT2 = {
    "vocab_size": 331,
    "n_positions": 256,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": None,
    "eos_token_id": None,
}
LATENTS = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 48,
    "n_shared_experts": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "q_lora_rank": 40,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "first_k_dense_replace": 1,
}
GROUPS = {"n_group": 4, "topk_group": 2}
CONFIGS |= {
    ("deepseek_v2", "usual"): {  # llama.cpp knows one without q_lora_rank by its 26 or 27 layers
        **LATENTS,
        "num_hidden_layers": 26,
        "q_lora_rank": None,
        "topk_method": "greedy",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    ("deepseek_v2", "odd"): {
        **LATENTS,
        **GROUPS,
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 3.0,
        "rms_norm_eps": 1e-6,
    },
    ("deepseek_v3", "usual"): {
        **LATENTS,
        **GROUPS,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    ("deepseek_v3", "odd"): {
        **LATENTS,
        "hidden_size": 112,
        "num_attention_heads": 7,
        "num_key_value_heads": 7,
        "n_routed_experts": 6,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    ("glm4_moe_lite", "usual"): {
        **{key: value for key, value in LATENTS.items() if key != "first_k_dense_replace"},
        "n_group": 1,
        "topk_group": 1,
        "rms_norm_eps": 1e-6,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
    },
}
CONFIGS = {kind: {"model_type": kind[0], **COMMON, **own} for kind, own in CONFIGS.items()}
CONFIGS |= {
    ("gpt2", "usual"): {"model_type": "gpt2", **GPT2},
    ("gpt2", "odd"): {
        "model_type": "gpt2",
        **GPT2,
        "n_embd": 112,
        "n_head": 7,
        "n_inner": 90,
        "tie_word_embeddings": False,
        "scale_attn_by_inverse_layer_idx": True,
    },
}
NOT_IN_GGUF = {  # biases or layers that llama.cpp has no place for
    ("qwen3", "odd"),
    ("qwen2_moe", "odd"),
    ("qwen3_moe", "odd"),
    ("deepseek_v3", "odd"),
}
OTHERWISE_IN_LLAMA_CPP = {  # what GGUF has no key for
    ("mistral", "odd"): "sliding_window",
    ("mixtral", "odd"): "sliding_window",
    ("qwen2", "odd"): "sliding_window",
    ("deepseek_v2", "odd"): "llama.cpp ranks groups of experts by their two best",
    ("gpt2", "odd"): "scale_attn_by_inverse_layer_idx",
}


def model_of(config: dict[str, Any]) -> Architecture:
    return architecture_of(config["model_type"]).from_config("hf", config)


def small(model_type: str, **changes: Any) -> Architecture:
    return model_of(CONFIGS[model_type, "usual"] | changes)
