"""What is summed of a matrix's inputs."""

import numpy as np
import pytest

from oss_tools.calibration.moments import SHORTEST, SLICE, of_equal_length, second_moments, squares


def test_sums_are_those_of_float64() -> None:
    x = np.random.default_rng(0).standard_normal((SLICE + 77, 24)).astype(np.float32)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(squares(x), (exact**2).sum(0), rtol=1e-5)
    np.testing.assert_allclose(second_moments(x), exact.T @ exact, rtol=1e-4, atol=1e-2)


def test_inputs_keep_their_directions_and_get_one_length() -> None:
    x = np.random.default_rng(1).standard_normal((101, 16)).astype(np.float32)
    x[7] *= 300
    x[8] *= 0.25
    found = of_equal_length(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found, x / np.linalg.norm(x, axis=1, keepdims=True), rtol=1e-5)


def test_very_short_inputs_stay_short() -> None:
    x = np.ones((5, 4), np.float32)
    x[2] *= SHORTEST / 50
    x[4] = 0
    lengths = np.linalg.norm(of_equal_length(x), axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1 / 50, 1, 0], rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_squares_that_are_no_float32_do_no_harm(size: float) -> None:
    x = np.full((3, 16), size, np.float32)
    np.testing.assert_allclose(of_equal_length(x), 0.25, rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 8), (5, 8)])
def test_inputs_of_zeros_stay(shape: tuple[int, int]) -> None:
    assert np.array_equal(of_equal_length(np.zeros(shape, np.float32)), np.zeros(shape, np.float32))
