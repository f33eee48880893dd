"""Weights decoded once for many tokens, and the register tiles that multiply them.

A block of 32 columns (UNIT of them in float formats) of PANELS panels lies in memory as its codes, vector after vector, those of
the panels side by side, then its scales and what is added to its values, as float32. What a code is there depends on how the
path sums products best:

- narrow: bytes, raised to be unsigned, whose products are summed in 16 bits.
- words: int16, against activations in int16 (`widen_record`); for 8-bit codes, whose products do not fit 16 bits.
- dot: bytes for a dot product of bytes in 32 bits.
- floats: float32.

Each sum of a row and a token is the same chain of additions as in `int8_products` and `float_products`: results do not depend on
the tokens that are computed together.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numba_kernels.cpu.blocks import (
    BLOCK,
    LAYOUTS,
    UNIT,
    Shorts,
    code_values,
    float_weights,
    has_signed_codes,
    is_narrow,
    raised_by,
    scales_of,
)
from numba_kernels.cpu.float_products import add_products
from numba_kernels.cpu.int8_products import add_scaled, four_bytes, starts_of, widened
from numba_kernels.cpu.records import OFFSETS, RECORDS
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I32, Builder, Value, same
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.tiles import Places, Tile
from numba_kernels.simd.values import LANES, Address, Bytes, Floats, Int, Words

PANELS = 2  # that a tile of tokens meets at a time, so that each activation is loaded for two
WIDE_RECORD = 72  # bytes of a block of int16 activations: codes, two scales
VECTOR = 4 * LANES  # bytes of a vector
NIBBLE_ORDER = (0, 16, 4, 20, 8, 24, 12, 28)  # of columns, where low and high nibbles are taken from a byte
CODE_BYTES = {"narrow": 1, "dot": 1, "words": 2, "floats": 4}


def way_of(name: str, activations: str) -> str:
    """How the products of a format and a kind of activations are summed."""
    if LAYOUTS[name].decode is None or activations == "f32":
        return "floats"
    if is_narrow(name):
        return "narrow"
    return "words" if ACTIVE.narrow_sums else "dot"


def _columns(name: str) -> list[int]:
    """The first columns of the quads of a block, in the order in which they are decoded."""
    order = NIBBLE_ORDER if LAYOUTS[name].code_bytes in (16, 20, 24) else range(0, BLOCK, 4)
    return list(order)


def _halves(name: str, kind: str) -> int:
    return 2 if LAYOUTS[name].halves or kind == "int8_g16" else 1


def _scales_apart(name: str, way: str) -> bool:
    """Whether scales are kept beside decoded codes: not where there are none, or where floats hold them."""
    layout = LAYOUTS[name]
    if way == "floats" and (layout.has_minimum or layout.halves):
        return False
    return layout.scale != "none"


def decoded_bytes(name: str, way: str) -> int:
    """Bytes of a decoded block of PANELS panels."""
    layout = LAYOUTS[name]
    columns = UNIT if layout.decode is None else BLOCK
    apart = (1 + layout.has_minimum) * (1 + layout.halves) if _scales_apart(name, way) else 0
    return PANELS * LANES * (columns * CODE_BYTES[way] + 4 * apart)


@intrinsic(prefer_literal=True)
def decode_panels(
    typing_context: Any, name: Any, way: Any, panels: Any, codes: Any, scales: Any, block: Any, out: Any
) -> Any:  # fmt: skip
    """Writes block number `block` of the panels at the addresses `panels`, decoded, to the address `out`; `codes` and `scales`
    are the block's offsets in a panel."""
    format_name, kind = name.literal_value, way.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, _, bases, codes, scales, block, out = args
        for i in range(PANELS):
            base = b.extract_value(bases, i)
            _decode(b, format_name, kind, b.add(base, codes), b.add(base, scales), block, emit.advance(b, out, VECTOR * i))
        return context.get_dummy_value()

    if not (isinstance(panels, Places) and panels.count == PANELS):
        return None
    return types.void(name, way, panels, Int, Int, Int, Address), lower


def _decode(b: Builder, name: str, way: str, codes: Value, scales: Value, block: Value, out: Value) -> None:
    """One panel's part: every PANELS-th vector."""
    layout = LAYOUTS[name]
    vectors: list[Value] = []
    if layout.decode is None:
        vectors = list(float_weights(b, name, codes))
    elif way == "floats":
        found, added = scales_of(b, name, scales, block)
        for column, v in code_values(b, layout, codes):
            half = column // 16 if layout.halves else 0
            if not _scales_apart(name, way):
                v = ACTIVE.fma(b, v, found[half], added[half]) if added else b.fmul(v, found[half])
            vectors.append(v)
    else:
        quads = list(layout.decode(b, codes, raised_by(name)))
        assert [column for column, _ in quads] == _columns(name)
        for _, v in sorted(quads, key=lambda quad: quad[0]):
            vectors += _as_words(b, v) if way == "words" else [v]
    if _scales_apart(name, way):
        found, added = scales_of(b, name, scales, block)
        vectors += [*found, *added]
    for i, v in enumerate(vectors):
        emit.store(b, v, emit.advance(b, out, i * PANELS * VECTOR))


def _as_words(b: Builder, v: Value) -> list[Value]:
    """Four signed bytes of each lane as int16: the first and the third, the second and the fourth."""
    words = b.bitcast(v, Shorts)
    eight = same(Shorts, 8)
    return [b.ashr(b.shl(words, eight), eight), b.ashr(words, eight)]


@intrinsic(prefer_literal=True)
def widen_record(typing_context: Any, kind: Any, record: Any, out: Any) -> Any:
    """Writes a record of activations with its codes as int16: pairs of columns 4j and 4j + 2, then 4j + 1 and 4j + 3, each in 32
    bits, and its scales."""
    scale_at, start_at, _ = OFFSETS[kind.literal_value]

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, record, out = args
        codes = emit.load(b, record, emit.vector(ir.IntType(8), BLOCK))
        shorts = emit.vector(ir.IntType(16), BLOCK // 2)
        words, eight = b.bitcast(codes, shorts), same(shorts, 8)
        emit.store(b, b.ashr(b.shl(words, eight), eight), out)
        emit.store(b, b.ashr(words, eight), emit.advance(b, out, BLOCK))
        for i in range((start_at - scale_at) // 4):
            emit.store(
                b, emit.load(b, emit.advance(b, record, scale_at + 4 * i), I32), emit.advance(b, out, 2 * BLOCK + 4 * i)
            )
        return context.get_dummy_value()

    return types.void(kind, Address, Address), lower


@intrinsic(prefer_literal=True)
def multiply_decoded(
    typing_context: Any, name: Any, activations: Any, way: Any, tile: Any, decoded: Any, rows: Any, at: Any
) -> Any:  # fmt: skip
    """The tile plus the products of a decoded block and `at` bytes into some rows of activations, whose addresses are `rows`. The
    accumulator for row t and panel i is number t · PANELS + i."""
    format_name, kind, how = name.literal_value, activations.literal_value, way.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, _, _, totals, decoded, addresses, at = args
        accumulators = [b.extract_value(totals, n) for n in range(tile.count)]
        places = [b.add(b.extract_value(addresses, t), at) for t in range(rows.count)]
        if how == "floats":
            results = _float_products(b, format_name, kind, decoded, places, accumulators)
        else:
            results = _products(b, format_name, kind, how, decoded, places, accumulators)
        result = ir.Constant(tile.llvm, ir.Undefined)
        for n, value in enumerate(results):
            result = b.insert_value(result, value, n)
        return result

    if not (isinstance(tile, Tile) and isinstance(rows, Places)):
        return None
    if tile.count != PANELS * rows.count or (how != "floats" and kind not in RECORDS):
        raise TypeError(f"a tile of {tile.count} for {rows.count} rows ({kind})")
    return tile(name, activations, way, tile, Address, rows, Int), lower


def _vectors(b: Builder, decoded: Value, number: int, kind: ir.Type) -> list[Value]:
    """Vector `number` of each panel."""
    return [emit.load(b, emit.advance(b, decoded, (number * PANELS + i) * VECTOR), kind) for i in range(PANELS)]


def _products(
    b: Builder, name: str, kind: str, way: str, decoded: Value, rows: list[Value], totals: list[Value]
) -> list[Value]:  # fmt: skip
    """One block of int8 activations, half after half where halves have scales of their own."""
    layout = LAYOUTS[name]
    halves, steps = _halves(name, kind), BLOCK // 4 * (2 if way == "words" else 1)
    starts = [starts_of(b, name, kind, row) for row in rows]
    totals = list(totals)
    count = 1 + layout.halves
    for h in range(halves):
        part = range(h * steps // halves, (h + 1) * steps // halves)
        first = [s[h] if raised_by(name) else None for s in starts]
        products = _sums(b, name, way, decoded, rows, part, first)
        scales = [_vectors(b, decoded, steps + i, Floats.llvm) for i in range(count)]
        added = [_vectors(b, decoded, steps + count + i, Floats.llvm) for i in range(count if layout.has_minimum else 0)]
        for n, total in enumerate(totals):
            t, i = divmod(n, PANELS)
            record = (2 * BLOCK, 0, 0) if way == "words" else ()
            its = [v[i] for v in scales], [v[i] for v in added]
            totals[n] = add_scaled(b, name, kind, rows[t], h, products[n], *its, starts[t], total, record)
    return totals


def _sums(
    b: Builder, name: str, way: str, decoded: Value, rows: list[Value], steps: range, starts: list[Value | None]
) -> list[Value]:  # fmt: skip
    """Σ code · x over some steps, Words, for each row and panel."""
    each = 4 if way == "narrow" and LAYOUTS[name].reach > 16 else len(steps)
    zero = same(Shorts if way == "narrow" else Words.llvm, 0)
    results: list[Value] = []
    for begin in range(steps.start, steps.stop, each):
        sums = [zero if start is None else start for start in starts for _ in range(PANELS)]
        for step in range(begin, begin + each):
            weights = _vectors(b, decoded, step, Bytes.llvm)
            for t, row in enumerate(rows):
                x = four_bytes(b, emit.advance(b, row, 4 * step if way != "words" else 4 * (step // 2) + BLOCK * (step % 2)))
                its = slice(t * PANELS, (t + 1) * PANELS)
                new = [_dot(b, name, way, s, w, x) for s, w in zip(sums[its], weights, strict=True)]
                sums[its] = ACTIVE.in_order(b, new)
        if way == "narrow":
            sums = [widened(b, s) for s in sums]
        results = [b.add(r, s) for r, s in zip(results, sums, strict=True)] if results else sums
    return results


def _dot(b: Builder, name: str, way: str, sums: Value, w: Value, x: Value) -> Value:
    if way == "narrow":
        return ACTIVE.dot_narrow(b, sums, w, x)
    if way == "words":
        return ACTIVE.dot_words(b, sums, b.bitcast(w, Shorts), b.bitcast(x, Shorts))
    return (ACTIVE.dot_signed if has_signed_codes(name) else ACTIVE.dot_unsigned)(b, sums, w, x)


def _float_products(
    b: Builder, name: str, kind: str, decoded: Value, rows: list[Value], totals: list[Value]
) -> list[Value]:  # fmt: skip
    """One block, or UNIT columns, of activations in float32 or bf16."""
    quads = [0, 4] if LAYOUTS[name].decode is None else _columns(name)
    columns = [quad + i for quad in quads for i in range(4)]
    apart = _scales_apart(name, "floats")
    sums = [same(Floats.llvm, 0.0)] * len(totals) if apart else list(totals)
    for number, column in enumerate(columns):
        weights = _vectors(b, decoded, number, Floats.llvm)
        for t, row in enumerate(rows):
            x = _number(b, kind, row, column)
            its = slice(t * PANELS, (t + 1) * PANELS)
            sums[its] = ACTIVE.in_order(b, add_products(b, weights, [x], sums[its]))
    if not apart:
        return sums
    scales = _vectors(b, decoded, len(columns), Floats.llvm)
    return [ACTIVE.fma(b, s, scales[n % PANELS], total) for n, (s, total) in enumerate(zip(sums, totals, strict=True))]


def _number(b: Builder, kind: str, row: Value, column: int) -> Value:
    """An activation, in all lanes."""
    if kind != "bf16":
        return emit.splat(b, emit.load(b, emit.advance(b, row, 4 * column), F32, 4), LANES)
    pair = emit.splat(b, emit.load(b, emit.advance(b, row, 2 * (column - column % 2)), I32, 4), LANES)
    return emit.bf16_halves(b, pair)[column % 2]


__all__ = ["CODE_BYTES", "PANELS", "decode_panels", "decoded_bytes", "multiply_decoded", "way_of", "widen_record"]
