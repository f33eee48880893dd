"""Random numbers by counter: the plain definition of `codec.synthetic`."""

import numpy as np


def random_words(key: int, start: int, count: int) -> np.ndarray:
    """uint64 [count]: words start, start + 1, … of SplitMix64's stream."""
    z = np.uint64(key) + (np.arange(start, start + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_bytes(key: int, start: int, count: int) -> np.ndarray:
    """uint8 [count]: bytes start, start + 1, … of the stream, the low byte of each word first."""
    words = random_words(key, start // 8, count // 8 + 2)
    return words.astype("<u8").view(np.uint8)[start % 8 :][:count]


def random_steps(key: int, start: int, count: int, low: int, threshold: int) -> np.ndarray:
    """uint8 [count]: low, or low + 1 where the stream's byte is below threshold."""
    return (low + (random_bytes(key, start, count) < threshold)).astype(np.uint8)


def bell_f32(key: int, start: int, count: int, mean: float, deviation: float) -> np.ndarray:
    """float32 [count]: sums of four bytes, brought to this mean and standard deviation."""
    sums = random_bytes(key, 4 * start, 4 * count).reshape(-1, 4).sum(axis=1)
    scale = np.float32(deviation / 21845.0**0.5)
    return (sums.astype(np.float32) - np.float32(510)) * scale + np.float32(mean)
