"""Rotary position embeddings: the frequencies of each kind (https://arxiv.org/abs/2104.09864)."""

from __future__ import annotations

import math

import numpy as np

from oss_tools.models.operations import Rope


def plain(head_size: int, theta: float, divisors: np.ndarray | None = None) -> Rope:
    """theta^(−2i / head_size), divided by `divisors` [head_size / 2] where given (Llama 3's scaling)."""
    frequencies = (1 / theta ** (np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size))).astype(np.float32)
    return Rope(frequencies if divisors is None else (frequencies / divisors).astype(np.float32))


def yarn(head_size: int, theta: float, factor: float, context: int, beta_fast: float, beta_slow: float) -> Rope:
    """YaRN (https://arxiv.org/abs/2309.00071), as gpt-oss uses it: dimensions that turn more than beta_fast times within
    the original context keep their frequency, those that turn less than beta_slow times are slowed by `factor`, between
    them a linear ramp whose bounds are not rounded. A factor of 1 is plain rope."""
    frequencies = plain(head_size, theta).frequencies
    if factor == 1.0:
        return Rope(frequencies)

    def dimension(turns: float) -> float:
        return head_size * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(dimension(beta_fast), 0.0), min(dimension(beta_slow), head_size - 1.0)
    ramp = np.clip((np.arange(head_size // 2) - low) / max(high - low, 1e-3), 0, 1)
    slowed = frequencies * (ramp / factor + (1 - ramp))
    return Rope(slowed.astype(np.float32), 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
