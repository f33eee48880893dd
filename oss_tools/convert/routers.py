"""Synthetic routers that prefer some experts, as trained ones do.

Random weights choose every expert equally often, the worst case of a cache. With `skewed`, the experts of a layer are chosen
as often as Zipf's law with exponent 0.65 says: the r-th most popular in proportion to 1 / r^0.65. That exponent was fitted
to 49,152 tokens of OLMoE-1B-7B (64 experts, 8 a token; 0.45 to 0.84 by layer):
https://huggingface.co/datasets/mkvn/quantization-cache-amplification. Trained models also choose the last token's experts again
more often than popularity alone explains (25 to 47 % there; 20 % with this router in that shape, 12.5 % with an even one), so hit
rates here are at the low end.

An expert's row of the router is scaled: its logit, of mean 0 over tokens, passes the threshold of the chosen ones more often the
wider it spreads. No other tensor differs from that of an even router.
"""

from __future__ import annotations

import hashlib
from statistics import NormalDist

import numpy as np

ROUTERS = ("even", "skewed")
EXPONENT = 0.65
MOST = 0.48  # a logit of mean 0 is above a threshold above 0 for less than half of the tokens
STEPS = 256  # scales are multiples of 1 / STEPS, so that no rounding of a system's logarithm shows


def row_scales(experts: int, chosen: int, name: str, seed: int) -> np.ndarray:
    """Factors of a router's rows, float32 [experts]. Which expert is the most popular depends on `name` and `seed` alone.

    Args:
        experts: rows.
        chosen: experts that a token goes to.
        name: of the tensor.
    """
    threshold = NormalDist()
    by_rank = np.array([1 / threshold.inv_cdf(1 - share) for share in shares(experts, chosen)])
    by_rank /= np.sqrt(np.mean(by_rank**2))
    rounded = np.maximum(np.round(by_rank * STEPS), 1).astype(np.float32) / np.float32(STEPS)
    scales = np.empty(experts, np.float32)
    scales[_ranking(experts, name, seed)] = rounded
    return scales


def shares(experts: int, chosen: int) -> np.ndarray:
    """Share of the tokens for which each expert is chosen, the most popular first; their sum is `chosen`, if MOST lets it."""
    weights = np.arange(1, experts + 1) ** -EXPONENT
    found = np.zeros(experts)
    for _ in range(experts):  # what is beyond MOST goes to the others in proportion
        open_ = found < MOST
        left = chosen - found[~open_].sum()
        if not open_.any():
            break
        found[open_] = np.minimum(left * weights[open_] / weights[open_].sum(), MOST)
        if found.sum() >= chosen - 1e-9:
            break
    return found


def _ranking(experts: int, name: str, seed: int) -> list[int]:
    """The experts in the order of their popularity: a shuffle that depends on no library's version."""
    return sorted(range(experts), key=lambda expert: hashlib.sha256(f"{seed}/{name}/popularity/{expert}".encode()).digest())
