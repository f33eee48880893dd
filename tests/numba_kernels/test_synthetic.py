"""Random numbers by counter: kernels against their plain definition, and that against the published generator."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels.codec import synthetic
from numba_kernels.reference import synthetic as reference

KEYS = st.integers(0, 2**64 - 1)
STARTS = st.integers(0, 2**40)
COUNTS = st.integers(1, 70)


def test_the_first_words_are_those_of_the_published_generator() -> None:
    # splitmix64.c by Sebastiano Vigna (https://prng.di.unimi.it/splitmix64.c), seeded with 1234567
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert reference.random_words(1234567, 0, 5).tolist() == expected


@settings(deadline=None, max_examples=50)
@given(KEYS, STARTS, COUNTS)
def test_words(key: int, start: int, count: int) -> None:
    out = np.empty(count, np.uint64)
    synthetic.random_words(out, np.uint64(key), start)
    assert np.array_equal(out, reference.random_words(key, start, count))


@settings(deadline=None, max_examples=50)
@given(KEYS, STARTS, COUNTS, st.integers(0, 254), st.integers(0, 256))
def test_steps(key: int, start: int, count: int, low: int, threshold: int) -> None:
    out = np.empty(count, np.uint8)
    synthetic.random_steps(out, np.uint64(key), start, low, threshold)
    assert np.array_equal(out, reference.random_steps(key, start, count, low, threshold))


@settings(deadline=None, max_examples=50)
@given(KEYS, STARTS, COUNTS, st.floats(-4, 4), st.floats(1e-3, 4))
def test_bells(key: int, start: int, count: int, mean: float, deviation: float) -> None:
    expected = reference.bell_f32(key, start, count, mean, deviation)
    out = np.empty(count, np.float32)
    synthetic.bell_f32(out, np.uint64(key), start, mean, deviation)
    np.testing.assert_allclose(
        out, expected, rtol=0, atol=1e-6 * (abs(mean) + 4 * deviation)
    )  # a fused multiply-add may differ
    bits = np.empty(count, np.uint16)
    synthetic.bell_bf16(bits, np.uint64(key), start, mean, deviation)
    rounded = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.all(np.abs(rounded - expected) <= np.abs(expected) * 2**-8 + 1e-5)


def test_bells_have_the_mean_and_deviation_asked_for() -> None:
    values = np.empty(1 << 20, np.float32)
    synthetic.bell_f32(values, np.uint64(3), 0, 2.0, 0.5)
    assert abs(values.mean() - 2) < 0.005
    assert abs(values.std() - 0.5) < 0.005
    assert np.abs(values - 2).max() <= 0.5 * synthetic.BELL_LIMIT * 1.0001
