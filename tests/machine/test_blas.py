"""NumPy's BLAS works with one thread where that is asked for, and with as many as before afterwards."""

import numpy as np
import pytest

from oss_tools.machine import blas


def test_threads_are_as_before_afterwards() -> None:
    library = blas._library()
    if library is None:
        pytest.skip("NumPy has another BLAS here")
    before = library.scipy_openblas_get_num_threads64_()
    with blas.one_thread():
        with blas.one_thread():
            assert library.scipy_openblas_get_num_threads64_() == 1
        assert library.scipy_openblas_get_num_threads64_() == 1
    assert library.scipy_openblas_get_num_threads64_() == before


def test_another_blas_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_library", lambda: None)
    with blas.one_thread():
        np.testing.assert_array_equal(np.eye(2) @ np.eye(2), np.eye(2))
