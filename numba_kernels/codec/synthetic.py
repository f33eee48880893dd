"""Random numbers by counter: element i of a stream depends on the key and i alone, so any range can be drawn anywhere.

The generator is SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): word i
is its output function of key + (i + 1) · 0x9E3779B97F4A7C15. The kernels release the GIL; keys are uint64.
"""

import numpy as np
from numba import njit, uint16, uint32, uint64

BELL_MEAN = 510.0  # of the sum of four random bytes
BELL_DEVIATION = 21845.0**0.5  # its standard deviation: 4 (256² − 1) / 12
BELL_LIMIT = BELL_MEAN / BELL_DEVIATION  # the largest magnitude of a bell value of unit deviation


@njit(inline="always")
def _word(key, index):  # type: ignore[no-untyped-def]
    z = key + (uint64(index) + uint64(1)) * uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
    return z ^ (z >> uint64(31))


@njit(inline="always")
def _bell(key, index):  # type: ignore[no-untyped-def]
    """The sum of four bytes of word index / 2, less its mean: nearly normal, limited to ±510."""
    half = (_word(key, index >> 1) >> (uint64(index & 1) * uint64(32))) & uint64(0xFFFFFFFF)
    pairs = (half & uint64(0x00FF00FF)) + ((half >> uint64(8)) & uint64(0x00FF00FF))
    return np.float32(np.int32((pairs & uint64(0xFFFF)) + (pairs >> uint64(16)))) - np.float32(BELL_MEAN)


@njit(nogil=True, cache=True)
def random_words(out: np.ndarray, key: np.uint64, start: int) -> None:
    """Fills uint64 [n] with words start, start + 1, …"""
    for i in range(out.shape[0]):
        out[i] = _word(key, start + i)


@njit(nogil=True, cache=True)
def random_steps(out: np.ndarray, key: np.uint64, start: int, low: int, threshold: int) -> None:
    """Fills uint8 [n] with low, or low + 1 where byte start + i of the stream is below threshold (of 256)."""
    for i in range(out.shape[0]):
        index = start + i
        byte = (_word(key, index >> 3) >> (uint64(index & 7) * uint64(8))) & uint64(0xFF)
        out[i] = low + (byte < uint64(threshold))


@njit(nogil=True, cache=True)
def bell_f32(out: np.ndarray, key: np.uint64, start: int, mean: float, deviation: float) -> None:
    """Fills float32 [n] with bell-shaped values start, start + 1, … of this mean and standard deviation."""
    scale, centre = np.float32(deviation / BELL_DEVIATION), np.float32(mean)
    for i in range(out.shape[0]):
        out[i] = _bell(key, start + i) * scale + centre


@njit(nogil=True, cache=True)
def bell_bf16(out: np.ndarray, key: np.uint64, start: int, mean: float, deviation: float) -> None:
    """The values of `bell_f32`, rounded to nearest even, as bf16 bits in uint16 [n]."""
    scale, centre = np.float32(deviation / BELL_DEVIATION), np.float32(mean)
    for i in range(out.shape[0]):
        bits = np.float32(_bell(key, start + i) * scale + centre).view(np.uint32)
        out[i] = uint16((bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16))
