"""How fast this machine multiplies matrices with NumPy."""

from __future__ import annotations

import time

import numpy as np

SIDE = 1024
SECONDS = 0.3


def multiplications_per_second() -> float:
    """Of float32 products, measured for a moment."""
    a, b = np.ones((SIDE, SIDE), np.float32), np.ones((SIDE, SIDE), np.float32)
    _ = a @ b
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        _ = a @ b
        count += 1
    return count * SIDE**3 / (time.perf_counter() - start)
