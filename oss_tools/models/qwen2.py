"""Qwen 2 and 2.5 (https://arxiv.org/abs/2412.15115), and DeepSeek-R1's distills of them: Llama's layers with biases of q, k, v.

After transformers (`models/qwen2`) and llama.cpp (`qwen2`).
"""

from __future__ import annotations

from oss_tools.models.decoder import Decoder
from oss_tools.models.decoder_config import QKV, Family
from oss_tools.models.windows import UPPER_LAYERS


class Qwen2(Decoder):
    """A dense Qwen 2 model."""

    model_type = "qwen2"
    family = Family(
        "Qwen2ForCausalLM",
        gguf="qwen2",
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "num_key_value_heads": 32},
        biased=QKV,
        gguf_biases=QKV,
        windows=UPPER_LAYERS,
    )
