"""What is kept of the inputs x, float32 [n, K], of a matrix: the sums of their squares, and their second moments xᵀx."""

from __future__ import annotations

import numpy as np

SLICE = 4096  # tokens whose products are summed in float32


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
