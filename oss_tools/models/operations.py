"""What a forward pass is written against: the operations on activations, whatever device carries them out.

An architecture's `forward` composes these operations; a backend of the engine implements them. A value stands for a
float32 array [tokens, width] that only the backend sees. Weights are named, not passed: the backend loads `NAME.weight`
(and `NAME.bias` where the architecture has one) in the form that suits its kernels, in the order of their mention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from oss_tools.errors import BadCheckpoint

Value = TypeVar("Value")


@dataclass(frozen=True)
class Rope:
    """A rotary position embedding: (a, b) -> (a cos − b sin, b cos + a sin) for pairs of a head's values.

    Attributes:
        frequencies: radians per position, float32 [pairs]; 2 · pairs values of each head are rotated, the others stay.
        scale: multiplies cos and sin (YaRN's concentration).
        interleaved: pairs are values 2 t and 2 t + 1 (DeepSeek's latent attention), else t and t + pairs.
    """

    frequencies: np.ndarray
    scale: float = 1.0
    interleaved: bool = False

    def tables(self, positions: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin, scaled, float32 [positions, pairs]."""
        angles = np.arange(positions, dtype=np.float32)[:, None] * self.frequencies[None, :]
        scale = np.float32(self.scale)
        return np.cos(angles) * scale, np.sin(angles) * scale


@dataclass(frozen=True)
class Heads:
    """The shape of an attention layer.

    Attributes:
        layer: which layer's keys and values these are.
        queries, keys: heads; every keys-th part of the query heads shares a key-value head.
        size: values per head, an even number.
        window: a key is visible when query − key < window; None for all earlier keys.
        sinks: name of one extra logit per query head, float32 [queries], that joins the softmax and is dropped after it.
        scale: multiplies the logits; None for 1/√size.
    """

    layer: int
    queries: int
    keys: int
    size: int
    window: int | None = None
    sinks: str | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.size % 2:
            raise BadCheckpoint(
                f"head_dim is {self.size}: rotary embedding turns the halves of a head against each other, "
                f"so no model with an odd head_dim can be run"
            )

    @property
    def cached(self) -> int:
        """Values of a position in the KV cache."""
        return 2 * self.keys * self.size

    @property
    def factor(self) -> float:
        """What the logits are multiplied by."""
        return float(self.size) ** -0.5 if self.scale is None else self.scale


@dataclass(frozen=True)
class Latent:
    """The shape of a layer of multi-head latent attention (https://arxiv.org/abs/2405.04434, section 2.1).

    The cache holds what all heads share: a latent, from which each head's keys and values are projected, and one rotated
    key. A head's query and key are `nope` values without and `rope` values with a position.

    Attributes:
        layer: which layer's cache this is.
        queries: heads.
        nope, rope: values of a head's query and key, the rotated ones last.
        value: values of a head's value.
        rank: values of the latent.
        scale: multiplies the logits; None for 1/√(nope + rope).
    """

    layer: int
    queries: int
    nope: int
    rope: int
    value: int
    rank: int
    scale: float | None = None

    @property
    def window(self) -> None:
        """All earlier positions are visible."""
        return None

    @property
    def keys(self) -> int:
        """Heads of keys in the cache: one, which all queries share."""
        return 1

    @property
    def size(self) -> int:
        """Values of that head: what is left of a query once its key's projection is made part of it, too."""
        return self.rank + self.rope

    @property
    def cached(self) -> int:
        """Values of a position in the KV cache."""
        return self.size

    @property
    def factor(self) -> float:
        """What the logits are multiplied by."""
        return float(self.nope + self.rope) ** -0.5 if self.scale is None else self.scale


@dataclass(frozen=True)
class Router:
    """How a token's experts and their weights follow from the router's logits.

    p = softmax or sigmoid of the logits; s = p + correction. Of each group of experts / groups neighbours, the score is the sum
    of its two best s or its best; only experts of the `groups_chosen` best groups may be chosen. The `chosen` experts with the
    largest s are, the lower number first among equals. Their weights are p, divided by (their sum + epsilon) if renormalized,
    times scale. softmax, renormalized, is the softmax of the chosen logits (gpt-oss, Mixtral, Qwen3-MoE).

    Sources: https://arxiv.org/abs/2101.03961 (softmax), https://arxiv.org/abs/2412.19437, section 2.1.2 (sigmoid, groups).

    Attributes:
        experts, chosen: how many there are, and how many a token has.
        score: of which function p is.
        renormalized: whether the weights of the chosen sum to `scale`.
        scale: multiplies the weights.
        correction: name of a float32 [experts] tensor that is added to the scores for the choice only.
        groups, groups_chosen, group_score: see above.
        epsilon: joins the sum that weights are divided by.
    """

    experts: int
    chosen: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalized: bool = True
    scale: float = 1.0
    correction: str | None = None
    groups: int = 1
    groups_chosen: int = 1
    group_score: Literal["top2", "max"] = "top2"
    epsilon: float = 1e-20

    def __post_init__(self) -> None:
        if not 1 <= self.chosen <= self.experts:
            raise BadCheckpoint(f"a token cannot have {self.chosen} of {self.experts} experts")
        if self.groups < 1 or self.experts % self.groups or not 1 <= self.groups_chosen <= self.groups:
            raise BadCheckpoint(
                f"{self.experts} experts do not divide into {self.groups} groups of which {self.groups_chosen} are chosen"
            )
        size = self.experts // self.groups
        if self.chosen > size * self.groups_chosen:
            raise BadCheckpoint(f"{self.groups_chosen} groups of {size} experts do not have {self.chosen} to choose")
        if self.groups_chosen < self.groups and self.group_score == "top2" and size < 2:
            raise BadCheckpoint("groups of one expert have no two best ones")

    @property
    def is_softmax_of_chosen(self) -> bool:
        """Whether the largest logits are chosen and their softmax is the weights, and no more."""
        return self == Router(self.experts, self.chosen, epsilon=self.epsilon)

    @property
    def is_grouped(self) -> bool:
        """Whether some experts cannot be chosen for the group that they are in."""
        return self.groups_chosen < self.groups


@dataclass(frozen=True)
class Gate:
    """How a gate g and an up projection u become the inner value of an expert.

    Attributes:
        form: "silu" is g · σ(g) · u (https://arxiv.org/abs/2002.05202); "swiglu_oai", gpt-oss's, is
            g · σ(alpha · g) · (u + 1) after g = min(g, limit) and u = clip(u, ±limit).
        limit, alpha: of swiglu_oai.
    """

    form: Literal["silu", "swiglu_oai"] = "silu"
    limit: float = 0.0
    alpha: float = 1.702


SILU = Gate()


class Operations(ABC, Generic[Value]):
    """The operations. Each consumes and returns values [T, width] for the T tokens of the batch at hand."""

    @abstractmethod
    def embed(self, name: str) -> Value:
        """The rows of `name` that belong to the batch's tokens: [T, hidden]."""

    @abstractmethod
    def positions(self, name: str) -> Value:
        """The rows of `name`, a table of learned positions, that belong to the tokens' positions: [T, hidden]."""

    @abstractmethod
    def rms_norm(self, x: Value, name: str, epsilon: float) -> Value:
        """x / √(mean(x²) + epsilon), times `name`, per token. Source: https://arxiv.org/abs/1910.07467."""

    @abstractmethod
    def layer_norm(self, x: Value, name: str, epsilon: float) -> Value:
        """(x − mean) / √(variance + epsilon), times `NAME.weight`, plus `NAME.bias`. Source: https://arxiv.org/abs/1607.06450."""

    @abstractmethod
    def head_norm(self, x: Value, heads: int, name: str, epsilon: float) -> Value:
        """`rms_norm` of each head's values, x [T, heads · size] and `name` [size] (Qwen3). Comes before `rope`, and may take
        x's place in memory: x is not to be used afterwards."""

    @abstractmethod
    def linear(self, x: Value, name: str) -> Value:
        """x · weightᵀ + bias: [T, out]."""

    @abstractmethod
    def linears(self, x: Value, names: tuple[str, ...]) -> tuple[Value, ...]:
        """Several projections of the same input, which a backend may carry out as one."""

    @abstractmethod
    def split(self, x: Value, widths: tuple[int, ...]) -> tuple[Value, ...]:
        """x's columns in parts of these widths, which come to x's: [T, width] each. x is not to be used afterwards."""

    @abstractmethod
    def rope(self, x: Value, heads: int, rope: Rope, first: int = 0) -> Value:
        """x [T, heads · size] with values first … first + 2 · pairs − 1 of each head rotated by the token's position. May take
        x's place in memory: x is not to be used afterwards."""

    @abstractmethod
    def attention(self, query: Value, key: Value, value: Value, heads: Heads) -> Value:
        """Appends key and value to the layer's cache, then attends over each token's own sequence: [T, queries · size]."""

    @abstractmethod
    def latent_attention(self, query: Value, latent: Value, key: Value, name: str, heads: Latent) -> Value:
        """Multi-head latent attention: appends latent and key to the layer's cache, then attends over each token's own sequence.

        query: [T, queries · (nope + rope)], the last `rope` values of each head rotated; latent: [T, rank], normed; key: [T,
        rope], rotated; `NAME.weight`: [queries · (nope + value), rank], of each head the rows that project the latent to its
        key, then those that project it to its value. Returns [T, queries · value].
        """

    @abstractmethod
    def gated(self, x: Value, gate: str, up: str) -> Value:
        """g · σ(g) · u with g and u the projections of x by `gate` and `up`: [T, out]. Source: https://arxiv.org/abs/2002.05202."""

    @abstractmethod
    def activated(self, x: Value, name: str, activation: Literal["gelu_tanh"] = "gelu_tanh") -> Value:
        """The projection h of x through GELU's tanh form, h / 2 · (1 + tanh(√(2/π) · (h + 0.044715 h³))): [T, out].
        Source: https://arxiv.org/abs/1606.08415."""

    @abstractmethod
    def route(self, x: Value, name: str, router: Router) -> Value:
        """The experts of each token and their weights, from the logits that `NAME.weight` (and `NAME.bias`) give."""

    @abstractmethod
    def experts(self, x: Value, routing: Value, name: str, gate: Gate) -> Value:
        """The weighted sum of each token's experts, [T, hidden]: `NAME.down_proj` [experts, hidden, inner] · gate(g, u). Rows of
        `NAME.gate_up_proj` [experts, 2 · inner, hidden] alternate g and u (gpt-oss), or `NAME.gate_proj` and `NAME.up_proj`
        give one each. A tensor's bias is `TENSOR_bias`."""

    @abstractmethod
    def scaled_by_gate(self, x: Value, y: Value, name: str) -> Value:
        """y · σ(x · weightᵀ) with `NAME.weight` [1, hidden]: Qwen2-MoE's shared expert. y is not to be used afterwards."""

    @abstractmethod
    def add(self, x: Value, y: Value) -> Value:
        """x + y. May take x's place in memory: x is not to be used afterwards."""
