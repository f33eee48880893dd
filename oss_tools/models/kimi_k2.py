"""Kimi K2 and Moonlight's successors of model_type `kimi_k2` (https://arxiv.org/abs/2507.20534): DeepSeek-V3's computation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oss_tools.models.deepseek_v3 import DEFAULTS
from oss_tools.models.latent_config import LatentFamily
from oss_tools.models.latent_decoder import LatentDecoder
from oss_tools.models.own_keys import PREFIX


class KimiK2(LatentDecoder):
    """A Kimi K2."""

    model_type = "kimi_k2"
    family = LatentFamily("DeepseekV3ForCausalLM", gguf="deepseek2", defaults=DEFAULTS)

    @classmethod
    def is_in_gguf(cls, raw: Mapping[str, Any]) -> bool:
        return raw.get(f"{PREFIX}model_type") == '"kimi_k2"'  # without the key they are read as DeepSeek-V3
