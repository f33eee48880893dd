"""What is kept of the inputs x, float32 [n, K], of a matrix: the sums of their squares, and their second moments xᵀx."""

from __future__ import annotations

import numpy as np

SLICE = 4096  # tokens whose products are summed in float32
SHORTEST = 0.1  # median lengths of a matrix's inputs, below which an input keeps its share of this length


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


def of_equal_length(x: np.ndarray) -> np.ndarray:
    """Inputs x, float32 [n, K], each divided by its length; the very short ones by `SHORTEST` median lengths.

    What an error of a matrix's outputs does to the predictions depends on how large it is beside the outputs, not on how large
    these are: a norm follows. As they are, inputs many times as long as most (the first token of a sequence, some delimiters:
    https://arxiv.org/abs/2402.17762) would make up nearly all of the second moments, and columns would be rounded for their
    sake. Of equal length, every token has its say. Inputs of zeros stay zeros.
    """
    lengths = np.sqrt(np.einsum("nk,nk->n", x, x, dtype=np.float64))
    shortest = SHORTEST * float(np.median(lengths)) if len(x) else 0.0
    divisors = np.maximum(lengths, shortest if shortest > 0 else np.finfo(np.float64).tiny)
    equal = np.empty_like(x)
    np.divide(x, divisors[:, None], out=equal, casting="same_kind")
    return equal
