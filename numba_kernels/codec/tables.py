"""The constants of the formats and the grids that their searches try, in plain NumPy: for kernels and twins."""

from __future__ import annotations

import numpy as np

FLOAT32_MAX = np.finfo(np.float32).max

# ---- all searches ---------------------------------------------------------------------------------------------------

LANES = 16  # candidates tried side by side
SURE = np.float32(1 - 1e-5)  # an error must be smaller by more than float32 sums of it can be off

# ---- e2m1 and MXFP4 -------------------------------------------------------------------------------------------------

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # of the 16 codes
MIDPOINTS = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)  # between neighbouring magnitudes
BELOW = np.nextafter(MIDPOINTS, np.float32(0))


def _ties(up: list[bool]) -> np.ndarray:
    """Thresholds, float32 [7]: a magnitude's code is how many of them it exceeds. `up`: which midpoints go to the larger."""
    return np.where(up, BELOW, MIDPOINTS)


TIES_DOWN = _ties([False] * 7)  # ggml: the first of the equally near codes
TIES_EVEN = _ties([False, True, False, True, False, True, False])  # IEEE; torchao
TIES_AWAY = _ties([True] * 7)  # Triton's kernels
MXFP4_UNITS = np.array([0.25, 0.5, 1, 2], np.float32)  # scales that the search tries, as multiples of the floor rule's
MXFP4_PER_UNIT = 1 / MXFP4_UNITS
MXFP4_TOP = 252  # the largest scale whose codes are all finite in float32


def _log2_rounds_up() -> np.ndarray:
    """For each biased exponent, the least mantissa from which log2, rounded to float32, is the next integer: int32 [256].

    ggml and gguf-py take floor(log2(x)) in float32, which is one too high just below a power of two.
    """
    mantissas = np.arange(2**23 - 128, 2**23, dtype=np.int32)
    least = np.full(256, 2**23, np.int32)
    for exponent in range(1, 255):
        values = ((exponent << 23) | mantissas).astype(np.int32).view(np.float32)
        up = np.log2(values.astype(np.float64)).astype(np.float32) >= exponent - 126
        if up.any():
            least[exponent] = mantissas[up.argmax()]
    return least


LOG2_ROUNDS_UP = _log2_rounds_up()

# ---- NVFP4 ----------------------------------------------------------------------------------------------------------

# Scale codes tried, from the plain one, at which the largest value is 6; it is 4 at four or five codes up, and 3 at eight.
NVFP4_STEPS = np.array([0, -4, -3, -2, -1, *range(1, 12)], np.int32)
NVFP4_LEAST = np.array([0, *[1] * 15], np.int32)  # the plain one may be 0
NVFP4_SEARCH = np.stack([NVFP4_STEPS, NVFP4_LEAST])

# ---- ggml -----------------------------------------------------------------------------------------------------------

HALF_OVERFLOW = np.float32(65520)  # what would round to infinity in half precision
HALF_MAX = np.float32(65504)
IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
IQ4_NL_MIDPOINTS = (IQ4_NL[1:] + IQ4_NL[:-1]) / np.float32(2)
IQ4_NL_LEAST = np.float32(1e-15)  # ggml takes a block with nothing larger for zeros


def _scale_steps(low: float, high: float) -> np.ndarray:
    """Passes of `search_scale`: a coarse one, then one as far as its neighbours."""
    coarse = np.linspace(low, high, LANES - 1)
    fine = np.linspace(1 - (coarse[1] - coarse[0]), 1 + (coarse[1] - coarse[0]), LANES - 1)
    return np.array([[[1, *factors], np.zeros(LANES)] for factors in (coarse, fine)], np.float32)


def _minimum_steps(codes: int, outwards: float, inwards: float) -> np.ndarray:
    """Passes of `search_scale_and_minimum`: both ends of the range move, less far in each pass."""
    middle, reach = (inwards - outwards) / 2, (inwards + outwards) / 2
    passes = []
    for centre, width in ((middle, reach), (0, reach / 2.5), (0, reach / 5)):
        ends = np.linspace(centre - width, centre + width, 4)
        low, high = np.array([(a, b) for a in ends for b in ends]).T
        low[0] = high[0] = 0  # keeps what there is
        passes.append([1 - low - high, low * codes])
    return np.array(passes, np.float32)


# The ranges hold nearly all best scales of Gaussian and of heavy-tailed blocks.
STEPS_8_BITS = _scale_steps(0.994, 1.05)
STEPS_SYMMETRIC = {4: _scale_steps(0.84, 1.2), 5: _scale_steps(0.92, 1.25)}
STEPS_MINIMUM = {4: _minimum_steps(15, 0.02, 0.045), 5: _minimum_steps(31, 0.02, 0.025)}
STEPS_IQ4_NL = _scale_steps(0.84, 1.2)

# ---- ggml's k-quants -------------------------------------------------------------------------------------------------

K_BLOCK = 256  # values of a block
K_REFINED = 2  # how often a block's two scales are fitted to its codes
# With a group's scale and minimum as they are after the first search, whole numbers tried in their stead: [2, CANDIDATES].
K_NEARBY = np.array(
    [(0, 0), *((s, m) for s in (-1, 0, 1) for m in (-2, -1, 0, 1, 2) if (s, m) != (0, 0)), (2, 0)], np.float32
).T.copy()
K_NEARBY_SCALES = np.array([0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7, -7, 8], np.float32)


def _range_steps(codes: int, reach: float) -> np.ndarray:
    """Two passes over both ends of a group's range, the second nearer: float32 [2, 2, CANDIDATES] of scales and minima."""
    passes = []
    for outwards, inwards in ((0.4 * reach, 0.6 * reach), (0.175 * reach, 0.175 * reach)):
        ends = np.linspace(-outwards, inwards, 4)
        low, high = np.array([(a, b) for a in ends for b in ends]).T
        low[0] = high[0] = 0
        passes.append([1 - low - high, low * codes])
    return np.array(passes, np.float32)


# By bits. A scale of the other sign lets the largest magnitude be the largest code rather than the least.
K_RANGES = {2: _range_steps(3, 0.5), 4: _range_steps(15, 0.12), 5: _range_steps(31, 0.06)}
K_FACTORS = {
    3: np.array([1, *np.linspace(0.75, 1.25, 9), *-np.linspace(1, 1.5, 6)], np.float32),
    6: np.array([1, *np.linspace(0.95, 1.12, 12), *-np.linspace(1, 1.08, 3)], np.float32),
}

# ---- int8 -----------------------------------------------------------------------------------------------------------

# Scales tried, as multiples of the plain one; the first is 1. Powers of two have nothing between, so only the next one is.
STEPS_INT8 = np.array([1, *np.linspace(0.97, 1.05, LANES - 1)], np.float32)
STEPS_INT8_POWER_OF_TWO = np.array([1, 0.5] + [1] * (LANES - 2), np.float32)
