"""The threads of NumPy's BLAS, where that is the OpenBLAS of its wheels."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

_lock = threading.Lock()
_within, _before = 0, 0


@cache
def _library() -> ctypes.CDLL | None:
    package = Path(np.__file__).parent
    for folder in (package.with_name("numpy.libs"), package / ".dylibs"):
        for path in sorted(folder.glob("*scipy_openblas64_*")):
            library = ctypes.CDLL(str(path))  # the one that NumPy has loaded
            if hasattr(library, "scipy_openblas_set_num_threads64_"):
                return library
    return None


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it each product is taken by the thread that asks for it. Its own threads wait for the next product by spinning, and
    take turns where several ask. Changes nothing with another BLAS."""
    global _within, _before
    library = _library()
    if library is None:
        yield
        return
    with _lock:
        if not _within:
            _before = library.scipy_openblas_get_num_threads64_()
            library.scipy_openblas_set_num_threads64_(1)
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within:
                library.scipy_openblas_set_num_threads64_(_before)
