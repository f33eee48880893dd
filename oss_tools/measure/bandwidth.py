"""How fast this machine reads memory: the ceiling of token generation."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

import numba_kernels  # noqa: F401  (sets where compiled code is kept, before anything is compiled)

BYTES = 256 << 20  # larger than any cache that a core reaches


@numba.njit("int64(int64[::1])", nogil=True, cache=True)
def _total(values):  # type: ignore[no-untyped-def]
    total = 0
    for i in range(values.size):
        total += values[i]
    return total


def read_bandwidth(threads: int, seconds: float = 0.5) -> float:
    """Bytes per second that `threads` threads read together: the median over repeated reads of 256 MiB."""
    values = np.ones(BYTES // 8, np.int64)
    parts = np.array_split(values, threads)
    rates: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        until = time.perf_counter() + seconds
        while len(rates) < 5 or time.perf_counter() < until:
            began = time.perf_counter()
            list(pool.map(_total, parts))
            rates.append(values.nbytes / (time.perf_counter() - began))
    return float(np.median(rates))
