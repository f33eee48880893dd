"""Matrix × matrix where one instruction multiplies two rows by two tokens: Arm's smmla for int8 and bfmmla for bf16 activations.

It wants eight columns of a row, or of a token, beside eight of the next (four of bfloat16). Panels and records stay as they are
for the dot product: two vectors of codes, interleaved lane by lane, are the rows' operands, and the tokens' are laid in pairs on
the stack, once for all panels of a piece of work. Sums of integers are the same, and so is every step in float32 after them;
bfmmla adds as two dot products of pairs do. So results have the bits of the other kernel's.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numba_kernels.cpu.blocks import BLOCK, LAYOUTS, Layout, scales_of
from numba_kernels.cpu.records import OFFSETS, RECORD, RECORDS
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I8, I32, Builder, Value, same
from numba_kernels.simd.memory import prefetch, stack
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.tiles import Tile, row_addresses, spill, tile_of, zero_tile
from numba_kernels.simd.values import LANES, Address, Floats, Int, Words

LAID = 1024  # blocks of a row that are laid in pairs at a time: 32,768 columns
HALF = LANES // 2  # rows whose sums with two tokens fill a vector


def in_pairs(layout: Layout, activations: str, tokens: int) -> bool:
    """Whether tiles of so many tokens are multiplied here."""
    return ACTIVE.multiplies_pairs and activations in RECORDS and tokens % 2 == 0


# ---- activations ----------------------------------------------------------------------------------------------------


def _halves(layout: Layout, kind: str) -> int:
    """How many sums a block has: one, or one for each 16 columns."""
    return 2 if layout.halves or kind == "int8_g16" else 1


def _scales_of(kind: str) -> int:
    return 2 if kind == "int8_g16" else 1


def pair_bytes(layout: Layout, kind: str) -> int:
    """Of a block of two tokens: its operands, then, of int8, four float32 for each scale, [x, x, y, y], and where weights have
    minima the blocks' sums in the same way, or those of both halves."""
    if kind == "bf16":
        return 4 * BLOCK
    return 2 * BLOCK + 16 * _scales_of(kind) + (16 * (2 if layout.halves else 1) if layout.has_minimum else 0)


def _beside(b: Builder, x: Value, y: Value) -> Value:
    """[x, x, y, y]."""
    both = emit.constant(F32, [0.0, 0.0])
    both = b.insert_element(b.insert_element(both, x, I32(0)), y, I32(1))
    return emit.shuffle(b, both, both, (0, 0, 1, 1))


def _half_starts(b: Builder, kind: str, row: Value) -> list[Value]:
    """−offset · Σ codes of both halves of a record, as float32."""
    start_at = OFFSETS[kind][1]
    given = [emit.load(b, emit.advance(b, row, start_at + 4 * h), I32, 4) for h in range(_scales_of(kind))]
    if len(given) == 1:  # the record has only the whole sum
        codes = b.sext(emit.load(b, row, emit.vector(I8, BLOCK // 2)), emit.vector(I32, BLOCK // 2))
        first = b.mul(emit.reduce(b, codes, lambda p, q: b.add(p, q)), I32(-ACTIVE.offset))
        given = [first, b.sub(given[0], first)]
    return [b.sitofp(start, F32) for start in given]


def _lay_pair(b: Builder, layout: Layout, kind: str, rows: tuple[Value, Value], out: Value) -> None:
    size = 2 * BLOCK if kind == "bf16" else BLOCK  # bytes of a token's codes
    codes = [emit.load(b, row, emit.vector(I8, size)) for row in rows]
    for g in range(size // 8):
        lanes = [8 * g + i + size * token for token in (0, 1) for i in range(8)]
        emit.store(b, emit.shuffle(b, codes[0], codes[1], lanes), emit.advance(b, out, 16 * g), 16)
    if kind == "bf16":
        return
    scale_at, _, sum_at = OFFSETS[kind]
    numbers = [[emit.load(b, emit.advance(b, r, scale_at + 4 * h), F32, 4) for r in rows] for h in range(_scales_of(kind))]
    if layout.has_minimum and layout.halves:
        numbers += map(list, zip(*(_half_starts(b, kind, row) for row in rows), strict=True))
    elif layout.has_minimum:
        numbers.append([emit.load(b, emit.advance(b, row, sum_at), F32, 4) for row in rows])
    for i, (x, y) in enumerate(numbers):
        emit.store(b, _beside(b, x, y), emit.advance(b, out, 2 * BLOCK + 16 * i), 16)


def pair_constants(layout: Layout, kind: str, tokens: int) -> dict[str, int]:
    """What `multiply_pairs` is specialized with beside `multiply_panels`' constants."""
    step = tokens // 2 * pair_bytes(layout, kind)
    return {"PAIR_STEP": step, "ROOM": step * LAID}


@intrinsic(prefer_literal=True)
def lay_pairs(typing_context: Any, name: Any, activations: Any, rows: Any, at: Any, out: Any) -> Any:
    """Writes the block at offset `at` of each row of records to the address `out`, each two rows as `pair_bytes` describes.

    `name` and `activations` are compile-time constants, and `rows` the rows' addresses, an even number.
    """
    layout, kind = LAYOUTS[name.literal_value], activations.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, _, addresses, at, out = args
        places = [b.add(b.extract_value(addresses, t), at) for t in range(rows.count)]
        for p in range(rows.count // 2):
            target = emit.advance(b, out, p * pair_bytes(layout, kind))
            _lay_pair(b, layout, kind, (places[2 * p], places[2 * p + 1]), target)
        return context.get_dummy_value()

    return types.void(name, activations, rows, Int, Address), lower


# ---- products -------------------------------------------------------------------------------------------------------


def _operands(b: Builder, layout: Layout, codes: Value) -> list[list[Value]]:
    """A block's codes for each pair of rows: four times eight columns of the one, then of the other."""
    assert layout.decode is not None
    quads = {column: b.bitcast(v, Words.llvm) for column, v in layout.decode(b, codes, 0)}
    return _interleaved(b, [quads[column] for column in range(0, BLOCK, 4)])


def _interleaved(b: Builder, words: list[Value]) -> list[list[Value]]:
    """Vectors of columns that follow each other, a lane for each row, as operands: of each pair of rows."""
    result = []
    for i in range(0, LANES, 2):
        both = (i, i + LANES, i + 1, i + 1 + LANES)
        pairs = zip(words[::2], words[1::2], strict=True)
        result.append([b.bitcast(emit.shuffle(b, x, y, both), emit.vector(I8, 16)) for x, y in pairs])
    return result


def _for_pairs(b: Builder, x: Value, part: int) -> Value:
    """HALF lanes, of rows, as they stand beside each other for two tokens: 0, 1, 0, 1, 2, 3, 2, 3."""
    lanes = [HALF * part + i + j for i in range(0, HALF, 2) for _ in (0, 1) for j in (0, 1)]
    return emit.shuffle(b, x, x, lanes)


def _four_times(b: Builder, address: Value) -> Value:
    """Four float32 of two tokens, for each pair of rows."""
    four = emit.load(b, address, emit.vector(F32, 4), 16)
    return emit.shuffle(b, four, four, [i % 4 for i in range(LANES)])


@intrinsic(prefer_literal=True)
def accumulate_pairs(
    typing_context: Any, name: Any, activations: Any, tile: Any, codes: Any, scales: Any, block: Any, pairs: Any
) -> Any:
    """The tile plus the products of one block of a panel and of pairs of tokens, which `lay_pairs` wrote to the address `pairs`.

    Accumulator 2p + h has the rows of half h of the panel and the tokens of pair p: for each two rows the first token's two sums
    and then the second's. `rows_apart` puts them in order. `codes` and `scales` are addresses, `block` the block's number.
    """
    format_name, kind = name.literal_value, activations.literal_value
    layout = LAYOUTS[format_name]

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, _, totals, codes, scales, block, pairs = args
        accumulators = [b.extract_value(totals, n) for n in range(tile.count)]
        if kind == "bf16":
            return tile_of(b, tile, _times_bf16(b, codes, pairs, accumulators))
        operands = _operands(b, layout, codes)
        scale, added = scales_of(b, format_name, scales, block)
        for part in (0, 1):
            rows = operands[part * HALF // 2 : (part + 1) * HALF // 2]
            s, a = ([_for_pairs(b, v, part) for v in values] for values in (scale, added))
            for p in range(tile.count // 2):
                at = emit.advance(b, pairs, p * pair_bytes(layout, kind))
                accumulators[2 * p + part] = _add_pair(b, layout, kind, rows, s, a, at, accumulators[2 * p + part])
        return tile_of(b, tile, accumulators)

    return tile(name, activations, tile, Address, Address, Int, Address), lower


def _times_bf16(b: Builder, codes: Value, pairs: Value, accumulators: list[Value]) -> list[Value]:
    """A block of bf16 weights. A sum is one chain over all columns, in their order."""
    sums = [[emit.shuffle(b, v, v, range(4 * i, 4 * i + 4)) for i in range(HALF // 2)] for v in accumulators]
    for g in range(BLOCK // 4):
        words = [emit.load(b, emit.advance(b, codes, 4 * LANES * (2 * g + i)), Words.llvm) for i in (0, 1)]
        rows = [operands[0] for operands in _interleaved(b, words)]
        for n, parts in enumerate(sums):
            x = emit.load(b, emit.advance(b, pairs, n // 2 * 4 * BLOCK + 16 * g), emit.vector(I8, 16), 16)
            for i in range(len(parts)):
                parts[i] = ACTIVE.multiply_bf16_pairs(b, parts[i], x, rows[n % 2 * len(parts) + i])
    return [emit.shuffle(b, low, high, range(LANES)) for low, high in sums]


def _add_pair(
    b: Builder, layout: Layout, kind: str, rows: list[list[Value]], scale: list[Value], added: list[Value], at: Value,
    total: Value,
) -> Value:  # fmt: skip
    """One accumulator plus the products of half a panel's block and two tokens: the steps of `int8_products`."""
    halves = _halves(layout, kind)
    x = [emit.load(b, emit.advance(b, at, 16 * g), emit.vector(I8, 16), 16) for g in range(4)]
    numbers = emit.advance(b, at, 2 * BLOCK)
    extra = emit.advance(b, numbers, 16 * _scales_of(kind))
    for h in range(halves):
        sums = []
        for eights in rows:
            four = same(emit.vector(I32, 4), 0)
            for g in range(4 * h // halves, 4 * (h + 1) // halves):
                four = ACTIVE.multiply_pairs(b, four, x[g], eights[g])
            sums.append(four)
        products = emit.shuffle(b, sums[0], sums[1], range(LANES))
        x_scale = _four_times(b, emit.advance(b, numbers, 16 * h if kind == "int8_g16" else 0))
        total = ACTIVE.fma(b, b.sitofp(products, Floats.llvm), b.fmul(scale[h % len(scale)], x_scale), total)
        if added and layout.halves:
            each = b.fmul(b.fmul(added[h], x_scale), same(Floats.llvm, -1.0 / ACTIVE.offset))
            total = ACTIVE.fma(b, _four_times(b, emit.advance(b, extra, 16 * h)), each, total)
    if added and not layout.halves:
        total = ACTIVE.fma(b, added[0], _four_times(b, extra), total)
    return total


@intrinsic
def rows_apart(typing_context: Any, tile: Any) -> Any:
    """A tile of `accumulate_pairs` as the other kernels have it: accumulator t has the rows of a panel, in order, for token t."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        first = [i for i in range(2 * LANES) if i % 4 < 2]
        results = []
        for p in range(0, tile.count, 2):
            both = [b.extract_value(args[0], p + h) for h in (0, 1)]
            results += [emit.shuffle(b, both[0], both[1], [i + 2 * token for i in first]) for token in (0, 1)]
        return tile_of(b, tile, results)

    return (tile(tile), lower) if isinstance(tile, Tile) and isinstance(tile.llvm, ir.ArrayType) else None


# ---- the kernel -----------------------------------------------------------------------------------------------------

FORMAT, ACTIVATIONS, TOKENS = "mxfp4", "int8", 2
CODES, SCALES, STEP, STEPS, AHEAD = 256, 16, RECORD, 1, 0  # as in `linear`
PAIR_STEP, ROOM = 80, 80 * LAID  # bytes of a block of all pairs, and of all blocks that are laid at a time
finish: Any = None  # `linear.finish`


def multiply_pairs(  # type: ignore[no-untyped-def]
    matrix, panel_bytes, scales_at, blocks, shift, height, low, high,
    index, first, last, x, x_stride, bias, residual, out, out_stride,
):  # fmt: skip
    """`linear.multiply_panels` for TOKENS rows of records, an even number."""
    rows = row_addresses(TOKENS, index, first, last, x, x_stride)
    pairs = stack(ROOM)
    for p in range(low, high):
        codes = matrix + p * panel_bytes
        tile = zero_tile(TOKENS)
        for begin in range(0, blocks, LAID):
            end = min(begin + LAID, blocks)
            if p == low or blocks > LAID:
                for k in range(begin, end):
                    lay_pairs(FORMAT, ACTIVATIONS, rows, k * STEPS * STEP, pairs + (k - begin) * PAIR_STEP)
            for k in range(begin, end):
                if AHEAD > 0:
                    for line in range(AHEAD, AHEAD + CODES * STEPS, 64):
                        prefetch(codes + k * CODES * STEPS + line)
                scales = codes + scales_at + (k >> shift) * SCALES
                at = pairs + (k - begin) * PAIR_STEP
                tile = accumulate_pairs(FORMAT, ACTIVATIONS, tile, codes + k * CODES * STEPS, scales, k, at)
        results = spill(rows_apart(tile))
        finish(results, LANES * 4, p, first, last, height, bias, residual, out, out_stride)
