"""Matrix × many tokens, in blocks that stay in a core's caches: as `linear.multiply_panels`, for paths with few registers.

A piece of work goes through its tokens ROWS at a time, through RUN panels at a time, and through CHUNK blocks of columns at a
time. PANELS panels of a chunk are decoded to a scratch that stays in the nearest cache; then tiles of 6 tokens (4 or 2 at the
end) meet them. A tile's sums lie in memory between chunks.
"""

from __future__ import annotations

from typing import Any

from numba_kernels.cpu.blocks import BLOCK, LAYOUTS, UNIT
from numba_kernels.cpu.decoded import (
    PANELS,
    WIDE_RECORD,
    decode_panels,
    decoded_bytes,
    multiply_decoded,
    way_of,
    widen_record,
)
from numba_kernels.cpu.op import inner, specialize
from numba_kernels.cpu.records import RECORDS
from numba_kernels.simd.memory import get_i32, load_first, load_floats, stack, store_first, store_floats
from numba_kernels.simd.tiles import load_tile, panel_addresses, row_addresses, store_tile, zero_tile
from numba_kernels.simd.values import LANES

FORMAT, ACTIVATIONS, WAY = "mxfp4", "int8", "narrow"
ROWS, RUN = 96, 16
NEAR = 14 << 10  # bytes of decoded weights: with a tile's activations they fit 32 KiB
CHUNK, CODES, SCALES, STEP, STEPS = 1, 1, 1, 1, 1  # blocks (of UNIT columns of float formats); bytes from one to the next
DECODED, SCRATCH, TOTALS = (
    1,
    1,
    1,
)  # bytes of a decoded block, of CHUNK of them, and of the sums of all tokens and RUN panels
WIDE, WIDE_ROW = 1, 1  # bytes of int16 activations, and of a row of them
SUMS = ROWS * PANELS * LANES * 4  # bytes of the sums of all tokens and PANELS panels
TOKENS, TILE = 6, 12


def meet_rows(decoded, count, begin, sums, index, first, last, x, x_stride, wide):  # type: ignore[no-untyped-def]
    """`count` decoded blocks, from number `begin` on, times TOKENS rows of activations (index[first … last]); or times int16 rows
    at the address `wide`."""
    if WAY == "words":
        rows = panel_addresses(TOKENS, wide, WIDE_ROW, last - first)
        step = WIDE_RECORD
    else:
        rows = row_addresses(TOKENS, index, first, last, x + begin * STEP, x_stride)
        step = STEP
    tile = zero_tile(TILE) if begin == 0 else load_tile(TILE, sums, LANES * 4)
    for k in range(count):
        tile = multiply_decoded(FORMAT, ACTIVATIONS, WAY, tile, decoded + k * DECODED, rows, k * step)
    store_tile(sums, LANES * 4, tile)


meet_six: Any = meet_rows
meet_four: Any = meet_rows
meet_two: Any = meet_rows


def multiply_block(  # type: ignore[no-untyped-def]
    matrix, panel_bytes, scales_at, blocks, shift, height, low, high,
    index, first, last, x, x_stride, bias, residual, out, out_stride,
):  # fmt: skip
    """Panels [low, high) of a matrix times the activation rows index[first … last], at most ROWS of them."""
    decoded = stack(SCRATCH)
    totals = stack(TOTALS)
    wide = stack(WIDE)
    for base in range(low, high, RUN):
        top = min(base + RUN, high)
        for begin in range(0, blocks * STEPS, CHUNK):
            count = min(CHUNK, blocks * STEPS - begin)
            if WAY == "words":
                for row in range(first, last + 1):
                    record = x + get_i32(index + 4 * row) * x_stride + begin * STEP
                    for k in range(count):
                        widen_record(ACTIVATIONS, record + k * STEP, wide + (row - first) * WIDE_ROW + k * WIDE_RECORD)
            for p in range(base, top, PANELS):
                panels = panel_addresses(PANELS, matrix + p * panel_bytes, panel_bytes, top - 1 - p)
                for k in range(count):
                    scales = scales_at + ((begin + k) >> shift) * SCALES
                    decode_panels(FORMAT, WAY, panels, (begin + k) * CODES, scales, begin + k, decoded + k * DECODED)
                sums = totals + (p - base) // PANELS * SUMS
                row = first
                while row <= last:
                    left = last + 1 - row
                    at = sums + (row - first) * PANELS * LANES * 4
                    its = wide + (row - first) * WIDE_ROW
                    if left > 4:
                        meet_six(decoded, count, begin, at, index, row, last, x, x_stride, its)
                        row += 6
                    elif left > 2:
                        meet_four(decoded, count, begin, at, index, row, last, x, x_stride, its)
                        row += 4
                    else:
                        meet_two(decoded, count, begin, at, index, row, last, x, x_stride, its)
                        row += 2
        for p in range(base, top):
            sums = totals + (p - base) // PANELS * SUMS + (p - base) % PANELS * LANES * 4
            finish(sums, PANELS * LANES * 4, p, first, last, height, bias, residual, out, out_stride)


@inner
def finish(sums, step, p, first, last, height, bias, residual, out, out_stride):  # type: ignore[no-untyped-def]
    """Writes the sums of rows first … last over panel p, `step` bytes apart, with bias and residual added."""
    column = p * LANES * 4
    present = min(LANES, height - p * LANES)
    for row in range(first, last + 1):
        value = load_floats(sums + (row - first) * step)
        target = row * out_stride + column
        if present == LANES:
            if bias:
                value = value + load_floats(bias + column)
            if residual:
                value = value + load_floats(residual + target)
            store_floats(out + target, value)
        else:
            if bias:
                value = value + load_first(bias + column, present)
            if residual:
                value = value + load_first(residual + target, present)
            store_first(out + target, value, present)


def block_function(name: str, activations: str) -> Any:
    """`multiply_block` for a format and a kind of activations."""
    layout, way = LAYOUTS[name], way_of(name, activations)
    steps = BLOCK // UNIT if layout.decode is None else 1
    decoded = decoded_bytes(name, way)
    chunk = max(NEAR // decoded, 1)
    wide = chunk * WIDE_RECORD if way == "words" else 0
    constants = {
        "FORMAT": name, "ACTIVATIONS": activations, "WAY": way, "CHUNK": chunk, "CODES": layout.block_bytes // steps,
        "SCALES": layout.scale_step, "STEP": RECORDS.get(activations, BLOCK * 4) // steps, "STEPS": steps, "DECODED": decoded,
        "SCRATCH": chunk * decoded, "TOTALS": RUN // PANELS * SUMS, "WIDE": max(ROWS * wide, 8), "WIDE_ROW": wide,
    }  # fmt: skip
    tiles = {
        f"meet_{word}": inner(
            specialize(meet_rows, f"meet_{word}_{name}_{activations}", **constants, TOKENS=size, TILE=size * PANELS)
        )
        for word, size in (("six", 6), ("four", 4), ("two", 2))
    }
    return inner(specialize(multiply_block, f"multiply_block_{name}_{activations}", **constants, **tiles))
