"""What a forward pass is written against: the operations on activations, whatever device carries them out.

An architecture's `forward` composes these operations; a backend of the engine implements them. A value stands for a
float32 array [tokens, width] that only the backend sees. Weights are named, not passed: the backend loads `NAME.weight`
(and `NAME.bias` where the architecture has one) in the form that suits its kernels, in the order of their mention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from oss_tools.errors import BadCheckpoint

Value = TypeVar("Value")


@dataclass(frozen=True)
class Rope:
    """A rotary position embedding on the halves of each head: (a, b) -> (a cos − b sin, b cos + a sin).

    Attributes:
        frequencies: radians per position, float32 [head_dim / 2].
        scale: multiplies cos and sin (YaRN's concentration).
    """

    frequencies: np.ndarray
    scale: float = 1.0

    def tables(self, positions: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin, scaled, float32 [positions, head_dim / 2]."""
        angles = np.arange(positions, dtype=np.float32)[:, None] * self.frequencies[None, :]
        scale = np.float32(self.scale)
        return np.cos(angles) * scale, np.sin(angles) * scale


@dataclass(frozen=True)
class Heads:
    """The shape of an attention layer.

    Attributes:
        layer: which layer's keys and values these are.
        queries, keys: heads; every keys-th part of the query heads shares a key-value head.
        size: values per head, an even number; logits are scaled by 1/√size.
        window: a key is visible when query − key < window; None for all earlier keys.
        sinks: name of one extra logit per query head, float32 [queries], that joins the softmax and is dropped after it.
    """

    layer: int
    queries: int
    keys: int
    size: int
    window: int | None = None
    sinks: str | None = None

    def __post_init__(self) -> None:
        if self.size % 2:
            raise BadCheckpoint(
                f"head_dim is {self.size}: rotary embedding turns the halves of a head against each other, "
                f"so no model with an odd head_dim can be run"
            )


class Operations(ABC, Generic[Value]):
    """The operations. Each consumes and returns values [T, width] for the T tokens of the batch at hand."""

    @abstractmethod
    def embed(self, name: str) -> Value:
        """The rows of `name` that belong to the batch's tokens: [T, hidden]."""

    @abstractmethod
    def rms_norm(self, x: Value, name: str, epsilon: float) -> Value:
        """x / √(mean(x²) + epsilon), times `name`, per token. Source: https://arxiv.org/abs/1910.07467."""

    @abstractmethod
    def linear(self, x: Value, name: str) -> Value:
        """x · weightᵀ + bias: [T, out]."""

    @abstractmethod
    def linears(self, x: Value, names: tuple[str, ...]) -> tuple[Value, ...]:
        """Several projections of the same input, which a backend may carry out as one."""

    @abstractmethod
    def rope(self, x: Value, heads: int, rope: Rope) -> Value:
        """x [T, heads · size] rotated by each token's position."""

    @abstractmethod
    def attention(self, query: Value, key: Value, value: Value, heads: Heads) -> Value:
        """Appends key and value to the layer's cache, then attends over each token's own sequence: [T, queries · size]."""

    @abstractmethod
    def gated(self, x: Value, gate: str, up: str) -> Value:
        """g · σ(g) · u with g and u the projections of x by `gate` and `up`: [T, out]. Source: https://arxiv.org/abs/2002.05202."""

    @abstractmethod
    def route(self, x: Value, name: str, chosen: int) -> Value:
        """The experts of each token and their weights: the `chosen` largest of the router's logits, softmax over those."""

    @abstractmethod
    def experts(self, x: Value, routing: Value, name: str, limit: float) -> Value:
        """The weighted sum of each token's experts, [T, hidden]. Rows of `NAME.gate_up_proj` alternate gate and up;
        gate = min(g, limit), up = clip(u, ±limit); inner = gate · σ(1.702 · gate) · (up + 1); out = `NAME.down_proj` · inner."""

    @abstractmethod
    def add(self, x: Value, y: Value) -> Value:
        """x + y. May take x's place in memory: x is not to be used afterwards."""
