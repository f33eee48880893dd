"""What is kept of the inputs x, float32 [n, K], of a matrix: the sums of their squares, and their second moments xᵀx."""

from __future__ import annotations

import numpy as np

SLICE = 4096  # tokens whose products are summed in float32
LONGEST = 2.0  # median norms of a matrix's inputs, beyond which an input counts as one of this length


def squares(x: np.ndarray) -> np.ndarray:
    """The sum of the squares of each column, float64 [K]."""
    total = np.zeros(x.shape[1])
    for start in range(0, len(x), SLICE):
        part = x[start : start + SLICE]
        total += np.einsum("nk,nk->k", part, part)
    return total


def second_moments(x: np.ndarray) -> np.ndarray:
    """xᵀx, float32 [K, K]: of each slice in float32 by BLAS (ssyrk, half the work), of the slices in float32 too."""
    total = np.zeros((x.shape[1], x.shape[1]), np.float32)
    for start in range(0, len(x), SLICE):
        part = np.ascontiguousarray(x[start : start + SLICE])
        total += part.T @ part
    return total


def bounded(x: np.ndarray) -> np.ndarray:
    """Inputs x, float32 [n, K], the far longer ones shortened to `LONGEST` median norms: float32 [n, K].

    Some tokens (the first of a sequence, some delimiters) meet the matrices that write into the residual stream with inputs many
    times as long as the others' (https://arxiv.org/abs/2402.17762). Their residuals are as long, and the norm behind divides by
    that: an error that is large beside other tokens' is small beside theirs. As they are, a few of them would make up most of
    the second moments, and columns would be rounded for their sake.
    """
    norms = np.sqrt(np.einsum("nk,nk->n", x, x))
    longest = np.float32(LONGEST) * np.median(norms) if len(x) else np.float32(0)
    if not np.isfinite(longest) or longest <= 0 or not (norms > longest).any():
        return x
    return x * np.minimum(longest / np.maximum(norms, longest), 1)[:, None]
