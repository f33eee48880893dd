"""The Llama family: Llama 2 (https://arxiv.org/abs/2307.09288), Llama 3 with its rope scaling
(https://arxiv.org/abs/2407.21783), SmolLM2 and others of model_type `llama`.

After transformers (`models/llama`) and llama.cpp (`llama`, which holds Mistral's and Mixtral's models as well).
"""

from __future__ import annotations

from oss_tools.models.decoder import Decoder
from oss_tools.models.decoder_config import ATTENTION, MLP, DecoderConfig, Family

LlamaConfig = DecoderConfig


class Llama(Decoder):
    """A Llama model."""

    model_type = "llama"
    family = Family(
        "LlamaForCausalLM",
        gguf="llama",
        gguf_rotates=True,
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
        bias_keys={"attention_bias": ("self_attn", ATTENTION, False), "mlp_bias": ("mlp", MLP, False)},
        gguf_biases=(*ATTENTION, *MLP),
    )
