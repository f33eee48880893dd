"""Every operation of a forward pass in plain NumPy, float32: the definition that the kernels are tested against.

Written to be read, not to be fast. Weights are dequantized float32, shapes are [rows, columns]; a token is a row.
"""

from __future__ import annotations

import numpy as np

from numba_kernels.reference.formats import decode_bfloat16, encode_bfloat16


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x [n, K] times weight [N, K], plus bias [N]: float32 [n, N]."""
    y = x @ weight.T
    return y if bias is None else y + bias


def quantize_rows(x: np.ndarray, group: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Activations [n, K] (K a multiple of `group`) as int8 codes [n, K] and float32 scales [n, K / group] = max |x| / 127."""
    blocks = x.reshape(*x.shape[:-1], -1, group).astype(np.float32)
    top = np.abs(blocks).max(-1)
    codes = np.rint(blocks * (np.float32(127) / np.where(top > 0, top, 1))[..., None]).astype(np.int8)
    return codes.reshape(x.shape), (top / np.float32(127)).astype(np.float32)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x / √(mean of x² + eps) · weight, over the last axis (https://arxiv.org/abs/1910.07467)."""
    return x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + np.float32(eps)) * weight


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """(x − mean) / √(variance + eps) · weight + bias, over the last axis (https://arxiv.org/abs/1607.06450)."""
    centered = x - x.mean(-1, keepdims=True)
    return rms_norm(centered, weight, eps) + bias


def embedding(tokens: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The rows of table [vocabulary, K] for tokens [n]."""
    return table[tokens]


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# ---- rotary embedding -----------------------------------------------------------------------------------------------


def rope_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """Radians per position of each pair of dimensions: float64 [head_dim / 2] (https://arxiv.org/abs/2104.09864)."""
    return theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def rope_table(frequencies: np.ndarray, positions: int, concentration: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of every angle times the concentration: float32 [positions, head_dim / 2] each."""
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    return (np.cos(angles) * concentration).astype(np.float32), (np.sin(angles) * concentration).astype(np.float32)


def apply_rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool = False) -> np.ndarray:
    """Rotates the first 2 · pairs dimensions of x [n, heads, head_dim] by cos and sin [n, pairs]: dimension i with i + pairs, or
    2 i with 2 i + 1 if interleaved."""
    pairs = cos.shape[-1]
    rotated, rest = np.split(x, [2 * pairs], -1)
    first, second = (rotated[..., ::2], rotated[..., 1::2]) if interleaved else np.split(rotated, 2, -1)
    cos, sin = cos[:, None], sin[:, None]
    both = first * cos - second * sin, second * cos + first * sin
    turned = np.stack(both, -1).reshape(rotated.shape) if interleaved else np.concatenate(both, -1)
    return np.concatenate([turned, rest], -1)


# ---- attention ------------------------------------------------------------------------------------------------------


def attention(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    first: int,
    *,
    scale: float,
    window: int = 0,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """Causal attention with grouped heads.

    Args:
        queries: [n, heads, head_dim] at positions first, first + 1, …
        keys, values: [m, kv_heads, head_dim] at positions 0, 1, …; heads are consecutive within a key-value head.
        scale: of the scores.
        window: a key is seen when query − key < window; 0 for no limit.
        sinks: a logit per head that joins the softmax and is dropped after it.

    Returns:
        [n, heads, head_dim].
    """
    n, heads, _ = queries.shape
    m, kv_heads, _ = keys.shape
    keys, values = (np.repeat(a, heads // kv_heads, 1).swapaxes(0, 1) for a in (keys, values))  # [heads, m, …]
    scores = queries.swapaxes(0, 1) @ keys.swapaxes(1, 2) * np.float32(scale)
    distance = (first + np.arange(n))[:, None] - np.arange(m)
    seen = (distance >= 0) & ((distance < window) if window else True)
    scores = np.where(seen, scores, -np.inf)
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (heads, n, 1))], -1)
    return (softmax(scores)[..., :m] @ values).swapaxes(0, 1)


def mixed(x: np.ndarray) -> np.ndarray:
    """The Hadamard transform of the last axis, divided by the root of its size: of blocks of the largest power of two that
    divides it. A cache of 8 bits mixes keys and queries so."""
    size = x.shape[-1] & -x.shape[-1]
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (x.reshape(*x.shape[:-1], -1, size) @ (matrix / size**0.5)).reshape(x.shape).astype(np.float32)


def cached_in_8_bits(x: np.ndarray) -> np.ndarray:
    """Keys or values as a cache of 8 bits keeps them: whole multiples of a scale for each position and head (the last axis),
    max |x| / 127; zeros where all are below 1e-36, NaN where one of them is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        broken = (x * np.float32(0)).sum(-1, keepdims=True)
    tiny = np.abs(x).max(-1, keepdims=True) <= 1e-36
    codes, scales = quantize_rows(np.where(np.isfinite(x) & ~tiny, x, 0), x.shape[-1])
    return codes.astype(np.float32) * scales + broken


def _bfloat16(x: np.ndarray) -> np.ndarray:
    return decode_bfloat16(encode_bfloat16(x.astype(np.float32)))


def _power_16(x: np.ndarray) -> np.ndarray:
    for _ in range(4):
        x = x * x
    return x


def attention_of_bfloat16(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    first: int,
    *,
    window: int = 0,
    sinks: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`attention` as the kernels compute it with products of bfloat16: scaled queries are rounded to it, and so are the shares of
    the softmax, from the largest score's nearest power of two. What they are divided by is the sum of what was rounded.

    Returns:
        [n, heads, head_dim], and about the largest share · |value| of each of these numbers: a norm of high order stands
        for it, which is larger by the sixteenth root of how many are as large.
    """
    n, heads, _ = queries.shape
    m, kv_heads, _ = keys.shape
    keys, values = (np.repeat(a, heads // kv_heads, 1).swapaxes(0, 1).astype(np.float64) for a in (keys, values))
    scores = _bfloat16(queries).swapaxes(0, 1).astype(np.float64) @ keys.swapaxes(1, 2) * np.log2(np.e)
    distance = (first + np.arange(n))[:, None] - np.arange(m)
    scores = np.where((distance >= 0) & ((distance < window) if window else True), scores, -np.inf)
    reference = np.rint(scores.max(-1, keepdims=True))
    shares = _bfloat16(np.exp2(scores - reference)).astype(np.float64)
    total = shares.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp2(sinks[:, None, None] * np.log2(np.e) - reference)
    shares /= total
    largest = (_power_16(shares) @ _power_16(values)) ** (1 / 16)
    return (shares @ values).swapaxes(0, 1), largest.swapaxes(0, 1)


def latent_attention(
    queries: np.ndarray, latents: np.ndarray, keys: np.ndarray, kv_b: np.ndarray, first: int, *, nope: int, scale: float
) -> np.ndarray:
    """Multi-head latent attention (https://arxiv.org/abs/2405.04434), expanded: every head's keys and values are computed.

    Args:
        queries: [n, heads, nope + rope] at positions first, first + 1, …, the last `rope` rotated.
        latents, keys: [m, rank] and, rotated, [m, rope] at positions 0, 1, …
        kv_b: [heads, nope + value, rank]: what makes a head's key, and its value, of a latent.
        nope: dimensions without a position.
        scale: of the scores.

    Returns:
        [n, heads, value].
    """
    heads = queries.shape[1]
    both = np.einsum("mr,hdr->mhd", latents, kv_b)
    shared = np.repeat(keys[:, None], heads, 1)
    return attention(queries, np.concatenate([both[..., :nope], shared], -1), both[..., nope:], first, scale=scale)


# ---- feed-forward layers --------------------------------------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−x)."""
    return 1 / (1 + np.exp(-x))


def silu_gate(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gate · σ(gate) · up, elementwise (https://arxiv.org/abs/2002.05202)."""
    return gate * sigmoid(gate) * up


def clamped_swiglu(gate: np.ndarray, up: np.ndarray, limit: float = 7.0, alpha: float = 1.702) -> np.ndarray:
    """gpt-oss: gate · σ(alpha · gate) · (up + 1) after gate ≤ limit and −limit ≤ up ≤ limit."""
    gate, up = np.minimum(gate, np.float32(limit)), np.clip(up, np.float32(-limit), np.float32(limit))
    return gate * sigmoid(np.float32(alpha) * gate) * (up + 1)


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form of GELU, elementwise (https://arxiv.org/abs/1606.08415)."""
    return x / 2 * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)))


def route(logits: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The `top` largest of logits [n, experts], largest first, lower numbers first among equals: their ids and softmax."""
    ids = np.argsort(-logits, -1, kind="stable")[:, :top]
    return ids, softmax(np.take_along_axis(logits, ids, -1))


def route_by_score(
    logits: np.ndarray,
    top: int,
    *,
    sigmoid_scores: bool = False,
    renormalized: bool = True,
    correction: np.ndarray | None = None,
    groups: int = 1,
    groups_chosen: int = 1,
    group_best: int = 2,
    epsilon: float = 1e-20,
    scale: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Experts and weights by any router, from logits [n, experts]: see `oss_tools.models.operations.Router`.

    Scores are a softmax or a sigmoid; the `top` largest of scores + correction are chosen, the lower number first among equals,
    from the best groups of neighbours, by the sum of a group's `group_best` best. Returns ids and weights, [n, top].
    """
    scores = sigmoid(logits) if sigmoid_scores else softmax(logits)
    selection = scores if correction is None else scores + correction
    of_group = np.sort(selection.reshape(len(logits), groups, -1), -1)[..., -group_best:].sum(-1)
    kept = np.argsort(-of_group, -1, kind="stable")[:, :groups_chosen]
    is_out = np.ones_like(of_group, bool)
    np.put_along_axis(is_out, kept, False, -1)
    selection = np.where(is_out.repeat(logits.shape[1] // groups, 1), -np.inf, selection)
    ids = np.argsort(-selection, -1, kind="stable")[:, :top]
    weights = np.take_along_axis(scores, ids, -1)
    if renormalized:
        weights = weights / (weights.sum(-1, keepdims=True) + np.float32(epsilon))
    return ids, weights * np.float32(scale)


def expert_mlp(
    x: np.ndarray,
    ids: np.ndarray,
    shares: np.ndarray,
    gate_up: np.ndarray,
    gate_up_bias: np.ndarray,
    down: np.ndarray,
    down_bias: np.ndarray,
    limit: float = 7.0,
) -> np.ndarray:
    """gpt-oss's expert layer.

    Args:
        x: [n, K].
        ids, shares: the chosen experts of each token and their weights, [n, top].
        gate_up: [experts, 2 · inner, K], even rows the gate and odd rows the up projection; its bias [experts, 2 · inner].
        down: [experts, K, inner]; its bias [experts, K].
        limit: of the clamp.
    """
    out = np.zeros_like(x)
    for token in range(len(x)):
        for expert, share in zip(ids[token], shares[token], strict=True):
            both = gate_up[expert] @ x[token] + gate_up_bias[expert]
            out[token] += share * (down[expert] @ clamped_swiglu(both[0::2], both[1::2], limit) + down_bias[expert])
    return out
