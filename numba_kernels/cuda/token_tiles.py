"""What both kernels of matrix × many tokens share: which tokens a block has, and what becomes of the sums of gates.

Experts: tokens are sorted by expert, and tiles do not cross from one to the next; `prefill.group` says which tile is whose.
"""

from __future__ import annotations

from numba_kernels.cuda.activations import silu, swiglu
from numba_kernels.cuda.seam import WARP, cuda

MATRIX, FIRST, COUNT = 0, 1, 2  # places of a tile's numbers
STORE, ADD, SILU, SWIGLU, GELU = 0, 1, 2, 3, 4
ROW_STRIDE = 36  # words from a token's sums to the next one's in shared memory: neighbours are in different banks
WARPS, TOKENS = 4, 64
FINISH = STORE
GROUPED = INDEXED = BIAS = 0


def gate(value, up, bias, bias_at, limit, alpha):  # type: ignore[no-untyped-def]
    """Of the sums of a row and the next one."""
    if BIAS:
        value += bias[bias_at]
        up += bias[bias_at + 1]
    return swiglu(value, up, limit, alpha) if FINISH == SWIGLU else silu(value, up)


def take_tile(x_stride, index, tiles, tile_count, total, starts):  # type: ignore[no-untyped-def]
    """How many tokens the block has; where they begin in x, and the tile's numbers, are put into `starts`, in shared memory:
    so they take no registers."""
    tile = cuda.blockIdx.x
    matrix, first, count = 0, tile * TOKENS, min(total - tile * TOKENS, TOKENS)
    if GROUPED:
        if tile >= tile_count[0]:
            return 0
        matrix, first, count = tiles[3 * tile], tiles[3 * tile + 1], tiles[3 * tile + 2]
    for i in range(cuda.threadIdx.x, TOKENS, WARPS * WARP):
        token = first + min(i, count - 1)
        starts[3 + i] = (index[token] if INDEXED else token) * x_stride
    if cuda.threadIdx.x == 0:
        starts[MATRIX], starts[FIRST], starts[COUNT] = matrix, first, count
    cuda.syncthreads()
    return count
