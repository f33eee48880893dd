"""Matrix × vector and matrix × matrix on packed weights, for one matrix or for a stack of experts.

Every case is the same work list: groups of activation rows, each group with the matrix it meets. A dense layer is one
group; an expert layer has a group for each expert that was chosen, so every expert's weights are read once. A piece of
work is a run of panels of one group; inside it, register tiles of up to max(TILES) tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.cpu import blocked, matrix_floats, matrix_tiles
from numba_kernels.cpu.accumulate import accumulate, accumulate_head
from numba_kernels.cpu.blocked import finish
from numba_kernels.cpu.blocks import BLOCK, HEAD, LAYOUTS, UNIT, Layout
from numba_kernels.cpu.decoded import PANELS as PANELS_AT_A_TIME
from numba_kernels.cpu.groups import Groups
from numba_kernels.cpu.op import Op, inner, maker, specialize
from numba_kernels.cpu.packed import Packed, kernel_format
from numba_kernels.cpu.pairs import in_pairs, multiply_pairs, pair_constants
from numba_kernels.cpu.records import OFFSETS, RECORD, RECORDS
from numba_kernels.cpu.team import Program, take
from numba_kernels.simd.memory import get_i32, prefetch
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.tiles import TILES, panel_addresses, row_addresses, spill, zero_tile
from numba_kernels.simd.values import LANES

FORMAT, ACTIVATIONS, TOKENS = "mxfp4", "int8", 1
CODES, SCALES, STEP, STEPS = 256, 16, RECORD, 1  # bytes from step to step of codes, scales and activations; steps in a block
PANELS, SUMS = 1, 1  # panels that the rows meet at a time; a sum for each of both
MOST_PANELS = 4
UNPACKED_ONCE = ("q4_k",)  # where that was measured to be faster; groups of 16 columns run out of registers
AHEAD_BYTES, MUCH = 4096, 7  # `ahead_for`: how far, and from how many multiplications of bytes for each byte of weights on
FEW = 5  # rows of a group from which on blocks are worth their while
PIECES = 4  # of a matrix for each thread
CACHED = 1 << 18  # bytes of weights that stay in a core's cache from tile to tile
AHEAD = 0  # bytes by which weights are asked for before they are used; 0 leaves it to the machine
ASKED = 256  # bytes that each step asks for: a block's codes, and its share of a k-quant's head


def multiply_panels(  # type: ignore[no-untyped-def]
    matrix, panel_bytes, scales_at, blocks, shift, height, low, high,
    index, first, last, x, x_stride, bias, residual, out, out_stride,
):  # fmt: skip
    """Panels [low, high) of a matrix times the activation rows index[first … last], at most TOKENS of them."""
    rows = row_addresses(TOKENS, index, first, last, x, x_stride)
    for p in range(low, high, PANELS):
        codes = matrix + p * panel_bytes
        panels = panel_addresses(PANELS, codes, panel_bytes, high - 1 - p)
        tile = zero_tile(SUMS)
        for k in range(blocks * STEPS):
            if AHEAD > 0:
                for line in range(AHEAD, AHEAD + ASKED, 64):
                    for i in range(PANELS):
                        prefetch(codes + i * panel_bytes + k * ASKED + line)
            scales = scales_at + (k >> shift) * SCALES
            tile = accumulate(FORMAT, ACTIVATIONS, tile, panels, k * CODES, scales, k, rows, k * STEP)
        results = spill(tile)
        for i in range(min(PANELS, high - p)):
            sums = results + i * LANES * 4
            finish(sums, PANELS * LANES * 4, p + i, first, last, height, bias, residual, out, out_stride)


def multiply_heads(  # type: ignore[no-untyped-def]
    matrix, panel_bytes, scales_at, blocks, shift, height, low, high,
    index, first, last, x, x_stride, bias, residual, out, out_stride,
):  # fmt: skip
    """`multiply_panels` for one row and a k-quant, whose rows divide into HEAD blocks: no scale is unpacked twice."""
    rows = row_addresses(1, index, first, last, x, x_stride)
    for p in range(low, high, PANELS):
        panels = panel_addresses(PANELS, matrix + p * panel_bytes, panel_bytes, high - 1 - p)
        tile = zero_tile(PANELS)
        for k in range(0, blocks, HEAD):
            for line in range(AHEAD, AHEAD + HEAD * ASKED, 64):
                for i in range(PANELS):
                    prefetch(matrix + (p + i) * panel_bytes + k * ASKED + line)
            tile = accumulate_head(
                FORMAT, ACTIVATIONS, tile, panels, k * CODES, scales_at + (k >> shift) * SCALES, rows, k * STEP
            )
        results = spill(tile)
        for i in range(min(PANELS, high - p)):
            finish(results + i * LANES * 4, 0, p + i, first, first, height, bias, residual, out, out_stride)


# The six tile sizes, ascending, and the functions for them; `linear_op` sets them.
SIZE_A, SIZE_B, SIZE_C, SIZE_D, SIZE_E, SIZE_F = 1, 1, 1, 1, 1, 1
multiply_a: Any = multiply_panels
multiply_b: Any = multiply_panels
multiply_c: Any = multiply_panels
multiply_d: Any = multiply_panels
multiply_e: Any = multiply_panels
multiply_f: Any = multiply_panels
FROM, ROWS, MULTIPLE = (
    1 << 62,
    1,
    1,
)  # so many rows are met in blocks of up to ROWS, and fewer than FROM of them not beside MULTIPLE
multiply_block: Any = multiply_panels


def linear(  # type: ignore[no-untyped-def]
    weights, matrix_bytes, panel_bytes, scales_at, blocks, shift, height, panels_at_once,
    groups, group_matrix, group_start, index, x, x_stride, bias, bias_stride, residual, out, out_stride, team, thread,
):  # fmt: skip
    """out[i] = W[matrix of i's group] · x[index[i]] (+ bias[matrix]) (+ residual[i]), for all rows i of all groups.

    weights … height: a Packed and its geometry; panels_at_once: the panels of a piece of work.
    groups: int32, how many; group_matrix: int32 [groups]; group_start: int32 [groups + 1], rows in order of their groups.
    index: int32, the row of x for each i; x: rows of activations, x_stride bytes apart (records of `records` or float32).
    bias: float32 [matrices, height], bias_stride bytes apart, or 0; residual, out: float32, rows out_stride bytes apart.
    """
    count = get_i32(groups)
    panels = (height + LANES - 1) // LANES
    pieces = (panels + panels_at_once - 1) // panels_at_once
    item = take(team)
    while item < count * pieces:
        group = item // pieces
        low = (item - group * pieces) * panels_at_once
        high = min(low + panels_at_once, panels)
        number = get_i32(group_matrix + 4 * group)
        matrix = weights + number * matrix_bytes
        its_bias = bias + number * bias_stride if bias else 0
        row = get_i32(group_start + 4 * group)
        stop = get_i32(group_start + 4 * group + 4)
        while row < stop:
            left = stop - row
            if left >= FROM:
                rows = min(left, ROWS)
                if rows % MULTIPLE < FROM:
                    rows -= rows % MULTIPLE
                multiply_block(matrix, panel_bytes, scales_at, blocks, shift, height, low, high, index, row,
                               row + rows - 1, x, x_stride, its_bias, residual, out, out_stride)  # fmt: skip
                row += rows
            elif left > SIZE_E:
                multiply_f(matrix, panel_bytes, scales_at, blocks, shift, height, low, high, index, row,
                           min(row + SIZE_F, stop) - 1, x, x_stride, its_bias, residual, out, out_stride)  # fmt: skip
                row += SIZE_F
            elif left > SIZE_D:
                multiply_e(matrix, panel_bytes, scales_at, blocks, shift, height, low, high, index, row,
                           min(row + SIZE_E, stop) - 1, x, x_stride, its_bias, residual, out, out_stride)  # fmt: skip
                row += SIZE_E
            elif left > SIZE_C:
                multiply_d(matrix, panel_bytes, scales_at, blocks, shift, height, low, high, index, row,
                           min(row + SIZE_D, stop) - 1, x, x_stride, its_bias, residual, out, out_stride)  # fmt: skip
                row += SIZE_D
            elif left > SIZE_B:
                multiply_c(matrix, panel_bytes, scales_at, blocks, shift, height, low, high, index, row,
                           min(row + SIZE_C, stop) - 1, x, x_stride, its_bias, residual, out, out_stride)  # fmt: skip
                row += SIZE_C
            elif left > SIZE_A:
                multiply_b(matrix, panel_bytes, scales_at, blocks, shift, height, low, high, index, row,
                           min(row + SIZE_B, stop) - 1, x, x_stride, its_bias, residual, out, out_stride)  # fmt: skip
                row += SIZE_B
            else:
                multiply_a(matrix, panel_bytes, scales_at, blocks, shift, height, low, high, index, row,
                           row, x, x_stride, its_bias, residual, out, out_stride)  # fmt: skip
                row += 1
        item = take(team)


@maker
def linear_op(format_name: str, activations: str = "int8", many: bool = True) -> Op:
    """The operation `linear` for a format.

    Args:
        format_name: as `packed.all_formats` names it.
        activations: "int8" or "int8_g16" for rows of records, "f32" for rows of float32; float formats take float32 in any
            case, but for bf16, which takes "bf16" too: records that hold bfloat16.
        many: whether groups may have more than one row; without it, less is compiled.
    """
    name = kernel_format(format_name)
    layout = LAYOUTS[name]
    if layout.decode is None:
        activations = "bf16" if (name, activations) == ("bf16", "bf16") else "f32"
        columns = BLOCK if activations == "bf16" and ACTIVE.matrix_registers else UNIT
        step, steps = columns * (2 if activations == "bf16" else 4), BLOCK // columns
    elif activations == "bf16":
        raise ValueError(f"{format_name} weights meet no bf16 activations")
    else:
        step, steps = RECORDS.get(activations, BLOCK * 4), 1
    in_blocks = many and ACTIVE.blocked
    sizes = [t for t in TILES if t == 1 or (many and not (in_blocks and t >= FEW))]
    sizes += sizes[-1:] * (6 - len(sizes))
    functions = {size: _multiply(name, layout, activations, size, step, steps) for size in sorted(set(sizes))}
    constants: dict[str, Any] = {"FORMAT": name, "ACTIVATIONS": activations, "MANY": "many" if many else "one"}
    for letter, size in zip("abcdef", sizes, strict=True):
        constants[f"SIZE_{letter.upper()}"] = size
        constants[f"multiply_{letter}"] = functions[size]
    constants["multiply_block"] = functions[1]
    if in_blocks:
        constants |= {"multiply_block": blocked.block_function(name, activations), "FROM": FEW, "ROWS": blocked.ROWS}
    elif many and ACTIVE.matrix_registers and activations in OFFSETS:
        constants |= {"multiply_block": matrix_tiles.block_function(name, activations)}
        constants |= {"FROM": matrix_tiles.fewest(name), "ROWS": matrix_tiles.ROWS, "MULTIPLE": matrix_tiles.TOKENS}
    elif many and ACTIVE.matrix_registers and activations == "bf16":
        constants |= {
            "multiply_block": matrix_floats.block_function(),
            "FROM": matrix_floats.FROM,
            "ROWS": matrix_tiles.ROWS,
        }
    return Op(linear, **constants)


def _multiply(name: str, layout: Layout, activations: str, rows: int, step: int, steps: int) -> Any:
    """`multiply_panels` for a format and so many rows."""
    panels = panels_for(layout, activations, rows)
    multiply = multiply_pairs if in_pairs(layout, activations, rows) else multiply_panels
    if rows == 1 and name in UNPACKED_ONCE:
        multiply = multiply_heads
    return inner(
        specialize(
            multiply, f"multiply_{name}_{activations}_{rows}", FORMAT=name, ACTIVATIONS=activations,
            TOKENS=rows, CODES=layout.block_bytes // steps, SCALES=layout.scale_step, STEP=step,
            STEPS=steps, PANELS=panels, SUMS=rows * panels, AHEAD=ahead_for(layout, activations, rows),
            ASKED=layout.block_bytes // steps + (layout.scale_step // HEAD if layout.scale == "k" else 0),
            finish=finish, **pair_constants(layout, activations, rows),
        )
    )  # fmt: skip


def panels_for(layout: Layout, activations: str, tokens: int) -> int:
    """How many panels a tile of so many tokens meets at a time. With activations in floats and few tokens a single sum would wait
    for itself; bytes, which take several instructions each, do not let it wait."""
    if activations not in ("f32", "bf16") or layout.is_byte:
        return 1
    return min(max(ACTIVE.accumulators // tokens, 1), MOST_PANELS)


def ahead_for(layout: Layout, activations: str, tokens: int) -> int:
    """By how many bytes weights are asked for beforehand: the processor by itself looks too few bytes ahead, and computing and
    reading would take turns. A k-quant's codes and scales are read by more instructions than it can follow at all. Two or more
    tokens that need little for each byte are better off without."""
    if tokens == 1:
        return 2 * AHEAD_BYTES if layout.scale == "k" else AHEAD_BYTES // 2
    if ACTIVE.matrix_registers:  # Intel's servers wait long for memory
        return AHEAD_BYTES
    longer = {"f32": 4, "bf16": 2}.get(activations, 1)  # a multiplication of floats takes as long as four of bytes
    return AHEAD_BYTES if tokens * BLOCK * longer >= MUCH * layout.code_bytes else 0


def panels_at_once(packed: Packed, threads: int, rows: int, groups: int = 1) -> int:
    """Panels of a piece of work: several pieces for every thread, yet large ones, as each begins slowly. With several tiles of
    rows, each of which reads them again, no more than stay in a core's cache.

    Args:
        rows: of a group: 1, or any number.
        groups: so many matrices are met by one row each; the pieces of all of them are divided among the threads.
    """
    whole = packed.panels * groups
    most = min(packed.panels, max(1, -(-whole // threads)))
    if rows == 1:
        even = whole // ((PIECES if groups == 1 else 2 * PIECES) * threads)
        return min(max(1, even, (1 << 15) // packed.panel_bytes), most)
    even = max(1, packed.panels // (PIECES * threads))
    if ACTIVE.blocked:  # which reads them again for ROWS rows only
        return min(max(even // PANELS_AT_A_TIME, 1) * PANELS_AT_A_TIME, blocked.RUN, most)
    if ACTIVE.matrix_registers:
        return min(even, matrix_tiles.RUN, max(4, matrix_tiles.NEAR // packed.panel_bytes), most)
    return min(even, max(4, CACHED // packed.panel_bytes), most)


def add_linear(
    program: Program,
    packed: Packed,
    groups: Groups,
    x: np.ndarray,
    out: np.ndarray,
    *,
    activations: str = "int8",
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    index: np.ndarray | None = None,
    single: bool | None = None,
    threads: int,
) -> int:
    """Records out = x · Wᵀ (+ bias) (+ residual) for all rows of the groups.

    Args:
        program: to which it is added.
        packed: the weights.
        groups: which rows meet which matrix.
        x: rows of activations: float32 [n, columns padded to 32] or records (`records.empty_records`), as `activations` says;
            float formats take float32, unless it says bf16.
        out: float32 [groups.rows, packed.rows] or wider.
        activations: "int8" or "f32"; "bf16" for weights in bf16.
        bias: float32 [matrices, rows], or [rows] for one matrix.
        residual: rows like those of `out`; may be `out`.
        index: another index than the groups' (an expert layer's second projection takes the rows in their order).
        single: whether no group has more than one row (less to compile); by default when there is one row.
        threads: of the team that will run it.

    Returns:
        The operation's number in the program.
    """
    operation = linear_op(packed.format, activations, not (groups.rows == 1 if single is None else single))
    return program.add(
        operation, weights=packed.data, matrix_bytes=packed.matrix_bytes, panel_bytes=packed.panel_bytes,
        scales_at=packed.scales_at, blocks=packed.blocks, shift=packed.shift, height=packed.rows,
        panels_at_once=panels_at_once(packed, threads, groups.rows), groups=groups.count, group_matrix=groups.matrix,
        group_start=groups.start, index=groups.index if index is None else index, x=x, x_stride=x.strides[0], bias=bias,
        bias_stride=packed.rows * 4, residual=residual, out=out, out_stride=out.strides[0],
    )  # fmt: skip
