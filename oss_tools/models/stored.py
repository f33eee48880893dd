"""What only a container's tensors tell of a model's configuration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oss_tools.checkpoints import Reader
from oss_tools.errors import BadCheckpoint

ROPE_FREQS = "rope_freqs.weight"  # GGUF: divisors of the rotary frequencies


@dataclass(frozen=True)
class Stored:
    """What only a container's tensors tell of a configuration.

    Attributes:
        names: the names of all stored tensors; None where the configuration stands alone.
        divisors: the values of `rope_freqs.weight`, float32 [head_dim / 2], or None.
    """

    names: frozenset[str] | None = None
    divisors: np.ndarray | None = None

    @classmethod
    def of(cls, reader: Reader | None) -> Stored:
        if reader is None:
            return cls()
        stored = reader.tensors.get(ROPE_FREQS) if reader.container == "gguf" else None
        if stored is not None and not (stored.format.is_float and stored.size <= 1 << 16):
            raise BadCheckpoint(f"{reader.path}: tensor {ROPE_FREQS} is no short list of floats")
        values = reader.read(stored.name, 0, stored.size, 1).dequantize().reshape(-1) if stored else None
        return cls(frozenset(reader.tensors), values)

    @property
    def has_own_head(self) -> bool:
        """Whether a Hugging Face folder holds an output beside the embedding: transformers does not tie the two then, unless
        they are equal."""
        return self.has("lm_head.weight") and self.has("embed_tokens.weight")

    def has(self, ending: str) -> bool:
        """Whether a tensor's name ends so."""
        return any(name.endswith(ending) for name in self.names or ())
