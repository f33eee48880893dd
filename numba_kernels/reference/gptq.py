"""GPTQ as its paper has it (https://arxiv.org/abs/2210.17323), one column after another: what the fast form is tested against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rounding = Callable[[int, np.ndarray], np.ndarray]  # (column, float64 [R]) -> the values that these round to, float64 [R]


def damped(moments: np.ndarray, damping: float) -> np.ndarray:
    """Second moments of the inputs, float64 [K, K], with `damping` times their mean square added to each input's. Inputs that are
    always zero get one, so that their weights are rounded by themselves."""
    moments = np.array(moments, np.float64)
    squares = np.diagonal(moments).copy()
    moments[np.diag_indices_from(moments)] += np.where(squares > 0, damping * squares.mean(), max(squares.mean(), 1e-30))
    return moments


def gptq(weight: np.ndarray, moments: np.ndarray, rounding: Rounding) -> np.ndarray:
    """Rounds columns 0, 1, … and lets those that follow make up for the error of each.

    With H the (damped) moments and U the upper Cholesky factor of H⁻¹, H⁻¹ = UᵀU: column k loses e = (w_k − q_k) / U_kk, and
    each later column j changes by −e · U_kj.

    Args:
        weight: float [R, K]; moments: float [K, K], positive definite.

    Returns the rounded weights, float64 [R, K].
    """
    current = np.array(weight, np.float64)
    upper = np.linalg.cholesky(np.linalg.inv(moments)).T
    rounded = np.empty_like(current)
    for k in range(current.shape[1]):
        rounded[:, k] = rounding(k, current[:, k])
        error = (current[:, k] - rounded[:, k]) / upper[k, k]
        current[:, k:] -= np.outer(error, upper[k, k:])
    return rounded


def output_error(weight: np.ndarray, rounded: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """(w − q) H (w − q)ᵀ of each row, float64 [R]: the squared error of the outputs for inputs of these moments."""
    difference = np.asarray(weight, np.float64) - rounded
    return np.einsum("rk,kl,rl->r", difference, np.asarray(moments, np.float64), difference)
