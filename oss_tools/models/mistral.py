"""Mistral's dense models (https://arxiv.org/abs/2310.06825): Llama's layers, with a sliding window in the first of them.

After transformers (`models/mistral`). In GGUF they are `llama`, which has no key for a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oss_tools.models.decoder import Decoder
from oss_tools.models.decoder_config import Family
from oss_tools.models.own_keys import PREFIX
from oss_tools.models.windows import every_layer


class Mistral(Decoder):
    """A Mistral model."""

    model_type = "mistral"
    family = Family(
        "MistralForCausalLM",
        gguf="llama",
        gguf_rotates=True,
        gguf_name_is_shared=True,
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
        windows=every_layer(4096),
    )

    @classmethod
    def is_in_gguf(cls, raw: Mapping[str, Any]) -> bool:
        return raw.get(f"{PREFIX}model_type") == '"mistral"'
