"""Calls of codec operations from Python: over rows of arrays, in several threads where that is asked for."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np

from numba_kernels.cpu.op import Op

FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)  # releases the GIL


@lru_cache
def bound(op: Op, **constants: Any) -> Op:
    """An operation with these compile-time constants, made once."""
    return op.bind(**constants)


def over_rows(op: Op, rows: int, arrays: Mapping[str, np.ndarray], threads: int = 1, **parameters: Any) -> None:
    """Runs an operation that treats every row by itself.

    Args:
        op: has a parameter `rows`, and `NAME_stride`, bytes from a row to the next, for each of the arrays.
        arrays: [rows, …], each row contiguous, read or filled; what is read and has a single row is shared by all rows.
        threads: at most this many threads, each with a range of rows.
        parameters: the op's other arguments.
    """
    if rows == 0:
        return
    if not all(array[0].flags.c_contiguous for array in arrays.values()):
        raise ValueError(f"{op.name}: its arrays' rows are not contiguous")
    strides = {f"{name}_stride": a.strides[0] if len(a) == rows else 0 for name, a in arrays.items()}
    threads = max(min(threads, rows), 1)
    function = FUNCTION(op.address)

    def call(part: int) -> None:
        start, stop = rows * part // threads, rows * (part + 1) // threads
        given = {name: a[start:stop] if len(a) == rows else a for name, a in arrays.items()}
        cells, _kept = op.cells({**given, **strides, **parameters, "rows": stop - start})
        function(cells.ctypes.data, 0, 0)

    if threads == 1:
        call(0)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, range(threads)))
