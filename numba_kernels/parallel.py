"""Row-parallel calls of kernels that release the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def over_rows(
    kernel: Callable[..., Any],
    inputs: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
    parameters: Sequence[Any] = (),
    threads: int = 1,
) -> None:
    """Calls `kernel(*inputs, *outputs, *parameters)`, on ranges of rows in several threads if threads > 1.

    Args:
        kernel: a compiled function that releases the GIL and treats every row by itself.
        inputs: C-contiguous arrays [rows, …]; one with a single row is shared by all rows.
        outputs: arrays [rows, …] that the kernel fills.
        parameters: passed on unchanged.
        threads: at most this many threads.
    """
    rows = outputs[0].shape[0]
    inputs = [_read_only(array) for array in inputs]
    threads = max(min(threads, rows), 1)
    if threads == 1:
        kernel(*inputs, *outputs, *parameters)
        return
    bounds = [rows * i // threads for i in range(threads + 1)]

    def call(part: int) -> None:
        start, stop = bounds[part], bounds[part + 1]
        shared = [a if a.shape[0] == 1 else a[start:stop] for a in inputs]
        kernel(*shared, *(a[start:stop] for a in outputs), *parameters)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, range(threads)))


def _read_only(array: np.ndarray) -> np.ndarray:
    """A read-only view: Numba compiles a kernel once more for inputs that differ in this, as memory maps do."""
    view = array.view()
    view.flags.writeable = False
    return view
