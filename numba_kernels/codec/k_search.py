"""What the searches for scales of k-quants share.

A group's best scale (and minimum) is sought among 16 candidates side by side, each fitted to the codes that it gives by least
squares. The groups' scales become whole numbers of the block's; whole numbers near by are tried with the error as it will be
stored; then the block's scales are fitted to all codes, and the groups' are sought again. A stage counts only if the error of
the whole block is surely less, and the first starts from the plain rule.

x and weights are the addresses of a block's 256 values and of their weights. Groups' figures lie as float32 [16].
"""

from __future__ import annotations

import numpy as np

from numba_kernels.codec.bits import as_half, inline
from numba_kernels.codec.search import VECTORS
from numba_kernels.codec.tables import HALF_MAX, HALF_OVERFLOW
from numba_kernels.cpu.op import inner
from numba_kernels.simd.kinds import Address, Float
from numba_kernels.simd.memory import load_floats, store_floats
from numba_kernels.simd.numbers import reciprocal, round_even
from numba_kernels.simd.values import LANES, maximum, minimum, splat

HUGE = np.float32(3e38)


@inline
def stored_half(x: np.float32) -> np.float32:
    """x in half precision, of which no finite or infinite x leaves the range."""
    if abs(x) < HALF_OVERFLOW:
        return as_half(x)
    return HALF_MAX if x > np.float32(0) else -HALF_MAX


@inner
def whole_numbers(figures: Address, unit: Float, low: Float, high: Float, out: Address) -> None:
    """Each group's figure as a whole number of units in [low, high]."""
    inverse = reciprocal(splat(unit))
    for v in range(VECTORS):
        whole = round_even(minimum(maximum(load_floats(figures + 4 * LANES * v) * inverse, splat(low)), splat(high)))
        store_floats(out + 4 * LANES * v, whole)


@inner
def copy_groups(source: Address, target: Address) -> None:
    """float32 [16]."""
    for v in range(VECTORS):
        store_floats(target + 4 * LANES * v, load_floats(source + 4 * LANES * v))
