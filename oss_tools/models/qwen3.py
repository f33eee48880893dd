"""Qwen 3, dense (https://arxiv.org/abs/2505.09388): Llama's layers with a norm of each head's queries and keys.

After transformers (`models/qwen3`) and llama.cpp (`qwen3`).
"""

from __future__ import annotations

from oss_tools.models.decoder import Decoder
from oss_tools.models.decoder_config import ATTENTION, Family
from oss_tools.models.windows import UPPER_LAYERS


class Qwen3(Decoder):
    """A dense Qwen 3 model."""

    model_type = "qwen3"
    family = Family(
        "Qwen3ForCausalLM",
        gguf="qwen3",
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
        bias_keys={"attention_bias": ("self_attn", ATTENTION, False)},
        windows=UPPER_LAYERS,
    )
    head_norms = True
