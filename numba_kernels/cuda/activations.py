"""Activation functions that kernels apply to sums, one number at a time: SiLU, GELU, gpt-oss's clamped gate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.intrinsics import reciprocal
from numba_kernels.cuda.seam import device

ONE = np.float32(1)
GELU_FACTOR, GELU_CUBE = np.float32(2 * math.sqrt(2 / math.pi)), np.float32(0.044715)
MOST_EXPONENT = np.float32(80)


@device
def silu(gate: Any, up: Any) -> Any:
    """gate · σ(gate) · up."""
    return gate * reciprocal(ONE + np.float32(math.exp(-gate))) * up


@device
def gelu(x: Any) -> Any:
    """x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), where (1 + tanh z) / 2 is σ(2 z)."""
    return x / (ONE + np.float32(math.exp(min(-GELU_FACTOR * (x + GELU_CUBE * x * x * x), MOST_EXPONENT))))


@device
def swiglu(gate: Any, up: Any, limit: Any, alpha: Any) -> Any:
    """gpt-oss's clamped gate: gate · σ(alpha · gate) · (up + 1) after gate ≤ limit and −limit ≤ up ≤ limit. NaN stays NaN."""
    gate = limit if gate > limit else gate
    up = limit if up > limit else up
    up = -limit if up < -limit else up
    return gate * reciprocal(ONE + np.float32(math.exp(-alpha * gate))) * (up + ONE)
