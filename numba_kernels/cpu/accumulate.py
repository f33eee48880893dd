"""Register tiles plus the products of one block: what the loops of `linear` do at each step, for all formats and activations."""

from __future__ import annotations

from typing import Any

from numba.extending import intrinsic

from numba_kernels.cpu.blocks import BLOCK, HEAD, LAYOUTS
from numba_kernels.cpu.float_products import times_bf16, times_block, times_float, times_unit
from numba_kernels.cpu.int8_products import times_int8
from numba_kernels.cpu.records import OFFSETS, RECORDS
from numba_kernels.simd.instructions import I64, Builder, Value
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.tiles import Places, Tile, tile_of
from numba_kernels.simd.values import Int


@intrinsic(prefer_literal=True)
def accumulate(
    typing_context: Any, name: Any, activations: Any, tile: Any, panels: Any, codes: Any, scales: Any, block: Any, rows: Any,
    at: Any,
) -> Any:  # fmt: skip
    """The tile plus the products of one block (of UNIT columns for float formats) of some panels and some rows of activations.

    `name` is a format and `activations` a kind of records or "f32", compile-time constants; `panels` are the panels' addresses,
    `codes` and `scales` the offsets of the block's codes and scales in them, and `block` its number; `rows` are the
    rows' addresses and `at` the block's offset in them, all in bytes. The accumulator for row t and panel i is number
    t · panels + i.
    """
    format_name, kind = name.literal_value, activations.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, _, totals, bases, codes, scales, block, addresses, at = args
        accumulators = [b.extract_value(totals, n) for n in range(tile.count)]
        their_codes, their_scales = _moved(b, panels, bases, codes), _moved(b, panels, bases, scales)
        places = _moved(b, rows, addresses, at)
        values = _times(b, format_name, kind, their_codes, their_scales, block, places, accumulators)
        return tile_of(b, tile, values)

    if not (isinstance(tile, Tile) and isinstance(rows, Places) and isinstance(panels, Places)):
        return None
    _require_sizes(kind, tile, panels, rows)
    return tile(name, activations, tile, panels, Int, Int, Int, rows, Int), lower


def _require_sizes(kind: str, tile: Tile, panels: Places, rows: Places) -> None:
    if tile.count != panels.count * rows.count or (kind in OFFSETS and panels.count > 1):
        raise TypeError(f"a tile of {tile.count} for {rows.count} rows ({kind}) and {panels.count} panels")


@intrinsic(prefer_literal=True)
def accumulate_head(
    typing_context: Any, name: Any, activations: Any, tile: Any, panels: Any, codes: Any, scales: Any, rows: Any, at: Any
) -> Any:
    """The same for the HEAD blocks whose scales a k-quant's head holds, from the first one's codes and activations: the head
    is read once, and which block is meant is known beforehand."""
    format_name, kind = name.literal_value, activations.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, _, totals, bases, codes, scales, addresses, at = args
        values = [b.extract_value(totals, n) for n in range(tile.count)]
        their_scales = _moved(b, panels, bases, scales)
        for block in range(HEAD):
            their_codes = _moved(b, panels, bases, b.add(codes, I64(block * LAYOUTS[format_name].block_bytes)))
            places = _moved(b, rows, addresses, b.add(at, I64(block * RECORDS.get(kind, 4 * BLOCK))))
            values = _times(b, format_name, kind, their_codes, their_scales, I64(block), places, values)
        return tile_of(b, tile, values)

    return tile(name, activations, tile, panels, Int, Int, rows, Int), lower


def _moved(b: Builder, places: Any, addresses: Value, offset: Value) -> list[Value]:
    """Addresses of type `places`, each with an offset added."""
    return [b.add(b.extract_value(addresses, i), offset) for i in range(places.count)]


def _times(
    b: Builder, name: str, kind: str, codes: list[Value], scales: list[Value], block: Value, places: list[Value],
    totals: list[Value],
) -> list[Value]:  # fmt: skip
    """The accumulators plus the products of one block; see `accumulate`."""
    if kind == "bf16" and ACTIVE.matrix_registers:
        return times_block(b, codes, places, totals)
    if kind == "bf16":
        return times_bf16(b, codes, places, totals)
    if LAYOUTS[name].decode is None:
        return times_unit(b, name, codes, places, totals)
    if kind in RECORDS:
        return times_int8(b, name, kind, codes[0], scales[0], block, places, totals)
    return times_float(b, name, codes, scales, block, places, totals)
