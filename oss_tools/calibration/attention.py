"""Attention of whole sequences at once, in NumPy: what `Operations.attention` and `latent_attention` say, without a cache."""

from __future__ import annotations

import numpy as np

QUERIES = 128  # positions whose logits are in memory at a time


def attend(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    factor: float,
    window: int | None = None,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """One sequence's attention, float32 [n, queries, size of a value]: each position sees itself and those before it.

    Args:
        query: float32 [n, queries, size]; key: [n, keys, size]; value: [n, keys, size of a value]. Query heads share the keys of
            their neighbours: queries = keys · group.
        factor: multiplies the logits.
        window: a key is visible when query − key < window; None for all earlier keys.
        sinks: one more logit per query head, float32 [queries], which takes part in the softmax only.
    """
    n, queries, size = query.shape
    keys = key.shape[1]
    group = queries // keys
    out = np.empty((n, queries, value.shape[-1]), np.float32)
    by_key = np.ascontiguousarray(key.transpose(1, 2, 0))  # [keys, size, n]
    values = np.ascontiguousarray(value.transpose(1, 0, 2))  # [keys, n, size]
    for start in range(0, n, QUERIES):
        stop = min(start + QUERIES, n)
        first = 0 if window is None else max(start - window + 1, 0)
        q = query[start:stop].reshape(stop - start, keys, group, size).transpose(1, 2, 0, 3) * np.float32(factor)
        logits = np.matmul(q.reshape(keys, -1, size), by_key[:, :, first:stop]).reshape(queries, stop - start, stop - first)
        distance = np.arange(start, stop)[:, None] - np.arange(first, stop)[None, :]
        hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
        np.copyto(logits, -np.inf, where=hidden[None])
        shares = _softmax(logits, sinks)
        seen = np.matmul(shares.reshape(keys, -1, stop - first), values[:, first:stop])
        out[start:stop] = seen.reshape(queries, stop - start, -1).transpose(1, 0, 2)
    return out


def _softmax(logits: np.ndarray, sinks: np.ndarray | None) -> np.ndarray:
    """Of [queries, n, m] over m, in place; with the sinks' logits in the sum."""
    largest = logits.max(-1, keepdims=True)
    if sinks is not None:
        largest = np.maximum(largest, sinks[:, None, None])
    logits -= largest
    np.exp(logits, out=logits)
    total = logits.sum(-1, keepdims=True)
    if sinks is not None:
        total += np.exp(sinks[:, None, None] - largest)
    logits /= total
    return logits
