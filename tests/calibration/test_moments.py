"""What is summed of a matrix's inputs."""

import numpy as np
import pytest

from oss_tools.calibration.moments import LONGEST, SLICE, bounded, second_moments, squares


def test_sums_are_those_of_float64() -> None:
    x = np.random.default_rng(0).standard_normal((SLICE + 77, 24)).astype(np.float32)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(squares(x), (exact**2).sum(0), rtol=1e-5)
    np.testing.assert_allclose(second_moments(x), exact.T @ exact, rtol=1e-4, atol=1e-2)


def test_an_input_far_longer_than_most_is_shortened_and_keeps_its_direction() -> None:
    x = np.random.default_rng(1).standard_normal((101, 16)).astype(np.float32)
    x[7] *= 300
    found = bounded(x)
    norms = np.linalg.norm(x, axis=1)
    assert np.linalg.norm(found[7]) == pytest.approx(LONGEST * np.median(norms), rel=1e-5)
    np.testing.assert_allclose(found[7] / np.linalg.norm(found[7]), x[7] / norms[7], rtol=1e-5)
    short = norms <= LONGEST * np.median(norms)
    assert short.sum() >= 95
    assert np.array_equal(found[short], x[short])


@pytest.mark.parametrize("x", [np.zeros((0, 8)), np.zeros((5, 8)), np.ones((3, 8)), np.full((2, 8), 1e30)])
def test_inputs_without_a_long_one_stay(x: np.ndarray) -> None:
    """None at all, zeros, equal ones, and some whose squares are no float32."""
    x = x.astype(np.float32)
    assert bounded(x) is x
