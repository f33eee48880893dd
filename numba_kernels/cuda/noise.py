"""Random weights, made where they are to lie: what a model of any size needs to be timed."""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.cuda.blocks import LAYOUTS
from numba_kernels.cuda.rows import mix
from numba_kernels.cuda.seam import INT, WARP, WORDS, Kernel, cuda, kernel

WARPS = 8
BLOCKS = 4096
EVERY = 0xFFFFFFFF
# By format, of each word: which bits are random, and which are set. Scales are near to 2^-7, floats to ± 2^-6.
CODES = {
    "mxfp4": (EVERY, 0), "q4_0": (EVERY, 0), "q8_0": (EVERY, 0), "int8": (EVERY, 0), "int8_g128": (EVERY, 0),
    "int8_g32": (EVERY, 0), "bf16": (0x807F807F, 0x3C803C80), "f16": (0x83FF83FF, 0x24002400), "f32": (0x807FFFFF, 0x3C800000),
}  # fmt: skip
SCALES = {"e8m0": (0x03030303, 0x74747474), "f16": (0x03FF03FF, 0x0C000C00), "bf16": (0x007F007F, 0x3A003A00)}


@kernel(WORDS, INT, INT, INT, INT)
def draw_words(out, count, seed, random, fixed):  # type: ignore[no-untyped-def]
    """out[i] for i < count: bits that depend on i and the seed where `random` has ones, and `fixed`. Any grid."""
    keep, put, salt = np.uint32(random), np.uint32(fixed), mix(np.uint32(seed))
    i = cuda.blockIdx.x * WARPS * WARP + cuda.threadIdx.x
    while i < count:
        out[i] = np.uint32((mix(np.uint32(np.uint32(i) + salt)) & keep) | put)
        i += cuda.gridDim.x * WARPS * WARP


def noise_kernel() -> Kernel:
    return draw_words.bind(WARPS=WARPS)


def draw_matrix(device: Any, format: str, codes: Any, scales: Any, seed: int) -> None:
    """Fills the codes and scales of matrices in a format of `LAYOUTS`; the last bytes that are no whole word are left as they
    are."""
    layout = LAYOUTS[format]
    for array, bits in ((codes, CODES[format]), (scales, SCALES.get(layout.scale))):
        count = array.nbytes // 4
        if bits and count:
            words = device.words(array)
            grid = min(BLOCKS, -(-count // (WARPS * WARP)))
            device.launch(noise_kernel(), grid, words, count, seed, *bits)
