"""Operations on tiles of registers: loops that run while the code is emitted, so that every number has a register of its own.

What each computes is said by its plain form, in `plain_tiles`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba.cuda.extending import intrinsic

from numba_kernels.cuda.instructions import MULTIPLY_TILES, PACK_BF16
from numba_kernels.cuda.seam import types

WORD, FLOAT, LONG = ir.IntType(32), ir.FloatType(), ir.IntType(64)
INT, F32 = types.int64, types.float32
LOWEST = ir.Constant(FLOAT, float("-inf"))


class Emit:
    """A builder with what the emitters below need."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.b = context, builder

    def parts(self, value: Any, count: int) -> list[Any]:
        return [self.b.extract_value(value, i) for i in range(count)]

    def tuple(self, kind: Any, values: list[Any]) -> Any:
        return self.context.make_tuple(self.b, kind, values)

    def element(self, kind: Any, array: Any, index: Any) -> Any:
        """A pointer to an element."""
        return self.b.gep(self.context.make_array(kind)(self.context, self.b, array).data, [index])

    def plus(self, index: Any, times: int, stride: Any = None) -> Any:
        """index + times · stride."""
        if not times:
            return index
        return self.b.add(index, LONG(times) if stride is None else self.b.mul(stride, LONG(times)))

    def pair(self, kind: Any, array: Any, index: Any) -> list[Any]:
        """Two words, by one load."""
        vector = ir.VectorType(WORD, 2)
        loaded = self.b.load(self.b.bitcast(self.element(kind, array, index), vector.as_pointer()))
        loaded.align = 8
        return [self.b.extract_element(loaded, WORD(i)) for i in range(2)]

    def four(self, kind: Any, array: Any, index: Any) -> list[Any]:
        """Four words, by one load."""
        vector = ir.VectorType(WORD, 4)
        loaded = self.b.load(self.b.bitcast(self.element(kind, array, index), vector.as_pointer()))
        loaded.align = 16
        return [self.b.extract_element(loaded, WORD(i)) for i in range(4)]

    def store_four(self, kind: Any, array: Any, index: Any, words: list[Any]) -> None:
        """Four words, by one store."""
        vector: Any = ir.Constant(ir.VectorType(WORD, 4), ir.Undefined)
        for i, word in enumerate(words):
            vector = self.b.insert_element(vector, word, WORD(i))
        self.b.store(vector, self.b.bitcast(self.element(kind, array, index), vector.type.as_pointer())).align = 16

    def multiply(self, a: list[Any], b: list[Any], c: list[Any]) -> list[Any]:
        """mma.m16n8k16 on single registers."""
        result = ir.LiteralStructType([FLOAT] * 4)
        kind = ir.FunctionType(result, [v.type for v in (*a, *b, *c)])
        constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)
        call = self.b.call(ir.InlineAsm(kind, MULTIPLY_TILES, constraints, side_effect=True), [*a, *b, *c])
        call.attributes.add("convergent")
        return self.parts(call, 4)

    def pack(self, low: Any, high: Any) -> Any:
        """Two numbers as bfloat16 in a word."""
        kind = ir.FunctionType(WORD, [FLOAT, FLOAT])
        return self.b.call(ir.InlineAsm(kind, PACK_BF16, "=r,f,f", side_effect=False), [low, high])

    def half_words(self, x: Any, y: Any, odd: bool) -> Any:
        """The lower, or upper, halves of two words in one."""
        kind = ir.FunctionType(WORD, [WORD, WORD, WORD])
        selector = WORD(0x7632 if odd else 0x5410)
        return self.b.call(ir.InlineAsm(kind, "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", side_effect=False), [x, y, selector])

    def larger(self, x: Any, y: Any) -> Any:
        kind = ir.FunctionType(FLOAT, [FLOAT, FLOAT])
        return self.b.call(ir.InlineAsm(kind, "max.f32 $0, $1, $2;", "=f,f,f", side_effect=False), [x, y])

    def power_of_two(self, x: Any) -> Any:
        kind = ir.FunctionType(FLOAT, [FLOAT])
        return self.b.call(ir.InlineAsm(kind, "ex2.approx.ftz.f32 $0, $1;", "=f,f", side_effect=False), [x])


def _typed_as(count: int, positions: dict[int, Any], result: Callable[..., Any], emit: Callable[..., Any]) -> Any:
    """An intrinsic of `count` arguments, of which those at the given positions have fixed types."""
    names = "".join(f", a{i}" for i in range(count))

    def typing(*given: Any) -> Any:
        kinds = [positions.get(i, kind) for i, kind in enumerate(given)]

        def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
            value = emit(Emit(context, b), sig.args, args)
            return context.get_dummy_value() if value is None else value

        return result(*given)(*kinds), lower

    scope: dict[str, Any] = {"typing": typing}
    exec(f"def typed(context{names}):\n    return typing({names[2:]})", scope)
    return intrinsic(scope["typed"])


@cache
def zero_tile(count: int) -> Any:
    kind = types.UniTuple(F32, count)
    return _typed_as(0, {}, lambda *_: kind, lambda e, _, __: e.tuple(kind, [ir.Constant(FLOAT, 0.0)] * count))


@cache
def multiply_unit(stride: int) -> Any:
    def emit(e: Emit, kinds: Any, args: Any) -> Any:
        rows = [e.parts(args[i], 4) for i in range(4)]
        x, at, out = args[4], args[5], e.parts(args[6], len(kinds[6]))
        tiles = len(out) // 8
        for first in range(0, tiles, 2):
            some = range(first, min(first + 2, tiles))
            words = {n: e.four(kinds[4], x, e.plus(at, 8 * stride * n)) for n in some}
            for step in (0, 2):
                for n in some:
                    for i in (0, 1):
                        low, high, to = rows[2 * i], rows[2 * i + 1], 8 * n + 4 * i
                        a = [low[step], high[step], low[step + 1], high[step + 1]]
                        out[to : to + 4] = e.multiply(a, words[n][step : step + 2], out[to : to + 4])
        return e.tuple(kinds[6], out)

    return _typed_as(7, {5: INT}, lambda *given: given[6], emit)


def _multiply_far(e: Emit, kinds: Any, args: Any) -> Any:
    rows, out = [e.parts(args[i], 4) for i in range(4)], e.parts(args[9], len(kinds[9]))
    x, starts, starts_at, word, wanted = args[4:9]
    words = []
    for n in range(len(out) // 8):
        start = e.b.sext(e.b.load(e.element(kinds[5], starts, e.plus(starts_at, 8 * n))), LONG)
        four = e.four(kinds[4], x, e.b.select(wanted, e.b.add(start, word), LONG(0)))
        words.append([e.b.select(wanted, part, WORD(0)) for part in four])
    for step in (0, 2):
        for n, four in enumerate(words):
            for i in (0, 1):
                low, high, to = rows[2 * i], rows[2 * i + 1], 8 * n + 4 * i
                a = [low[step], high[step], low[step + 1], high[step + 1]]
                out[to : to + 4] = e.multiply(a, four[step : step + 2], out[to : to + 4])
    return e.tuple(kinds[9], out)


multiply_far = _typed_as(10, {6: INT, 7: INT, 8: types.boolean}, lambda *given: given[9], _multiply_far)


@cache
def store_part(first: int, count: int) -> Any:
    def emit(e: Emit, kinds: Any, args: Any) -> None:
        numbers, (array, at, stride) = e.parts(args[0], len(kinds[0])), args[1:]
        for n in range(count):
            for odd in (0, 1):
                four = [e.b.bitcast(numbers[8 * (first + n) + 2 * i + odd], WORD) for i in range(4)]
                e.store_four(kinds[1], array, e.plus(at, 8 * n + odd, stride), four)

    return _typed_as(4, {2: INT, 3: INT}, lambda *_: types.none, emit)


@cache
def load_row(steps: int) -> Any:
    kind = types.UniTuple(types.uint32, 2 * steps)

    def emit(e: Emit, kinds: Any, args: Any) -> Any:
        pairs = [e.pair(kinds[0], args[0], e.plus(args[1], 8 * step)) for step in range(steps)]
        return e.tuple(kind, [word for pair in pairs for word in pair])

    return _typed_as(2, {1: INT}, lambda *_: kind, emit)


def _multiply_rows(e: Emit, kinds: Any, args: Any) -> Any:
    low, high = e.parts(args[0], len(kinds[0])), e.parts(args[1], len(kinds[1]))
    x, at, stride, out = args[2], args[3], args[4], e.parts(args[5], len(kinds[5]))
    for step in range(len(low) // 2):
        a = [low[2 * step], high[2 * step], low[2 * step + 1], high[2 * step + 1]]
        for n in range(len(out) // 4):
            index = e.plus(e.plus(at, 8 * n, stride), 8 * step)
            out[4 * n : 4 * n + 4] = e.multiply(a, e.pair(kinds[2], x, index), out[4 * n : 4 * n + 4])
    return e.tuple(kinds[5], out)


def _multiply_columns(e: Emit, kinds: Any, args: Any) -> Any:
    weights, values, at, stride = e.parts(args[0], len(kinds[0])), args[1], args[2], args[3]
    out = e.parts(args[4], len(kinds[4]))
    for step in range(len(weights) // 8):
        w = weights[8 * step : 8 * step + 8]
        a = [e.pack(w[i], w[i + 1]) for i in (0, 2, 4, 6)]
        rows = [e.plus(at, 16 * step + key, stride) for key in (0, 1, 8, 9)]
        for p in range(len(out) // 8):
            words = [e.b.load(e.element(kinds[1], values, e.plus(row, 8 * p))) for row in rows]
            for odd in (0, 1):
                b = [e.half_words(words[i], words[i + 1], bool(odd)) for i in (0, 2)]
                n = 4 * (2 * p + odd)
                out[n : n + 4] = e.multiply(a, b, out[n : n + 4])
    return e.tuple(kinds[4], out)


def _masked_tile(e: Emit, kinds: Any, args: Any) -> Any:
    numbers, column = e.parts(args[0], len(kinds[0])), args[1]
    out = []
    for i, value in enumerate(numbers):
        at = e.plus(column, 8 * (i // 4) + i % 2)
        low, high = args[2:4] if i % 4 < 2 else args[4:6]
        seen = e.b.and_(e.b.icmp_signed(">=", at, low), e.b.icmp_signed("<", at, high))
        out.append(e.b.select(seen, value, LOWEST))
    return e.tuple(kinds[0], out)


def _by_rows(e: Emit, kinds: Any, args: Any, combine: Callable[[Any, Any], Any]) -> Any:
    numbers = e.parts(args[0], len(kinds[0]))
    results = []
    for first in (0, 2):
        own = [v for i, v in enumerate(numbers) if i % 4 // 2 == first // 2]
        total = own[0]
        for value in own[1:]:
            total = combine(total, value)
        results.append(total)
    return e.tuple(types.UniTuple(F32, 2), results)


def _map(e: Emit, kinds: Any, args: Any, function: Callable[[Any, Any], Any]) -> Any:
    numbers = e.parts(args[0], len(kinds[0]))
    return e.tuple(kinds[0], [function(v, args[1] if i % 4 < 2 else args[2]) for i, v in enumerate(numbers)])


def _store_rows(e: Emit, kinds: Any, args: Any) -> None:
    numbers, array = e.parts(args[0], len(kinds[0])), args[1]
    for row, (place, valid) in enumerate(((args[2], args[4]), (args[3], args[5]))):
        with e.b.if_then(valid):
            for p in range(len(numbers) // 8):
                a, b, c, d = (numbers[8 * p + 2 * row + i] for i in (0, 4, 1, 5))
                e.b.store(e.pack(a, b), e.element(kinds[1], array, e.plus(place, 8 * p)))
                e.b.store(e.pack(c, d), e.element(kinds[1], array, e.plus(place, 8 * p + 1)))


_two = types.UniTuple(F32, 2)
_same = lambda tile, *_: tile  # noqa: E731


multiply_rows = _typed_as(6, {3: INT, 4: INT}, lambda *given: given[5], _multiply_rows)
multiply_columns = _typed_as(5, {2: INT, 3: INT}, lambda *given: given[4], _multiply_columns)
masked_tile = _typed_as(6, dict.fromkeys(range(1, 6), INT), _same, _masked_tile)
row_maxima = _typed_as(1, {}, lambda *_: _two, lambda e, k, a: _by_rows(e, k, a, e.larger))
row_sums = _typed_as(1, {}, lambda *_: _two, lambda e, k, a: _by_rows(e, k, a, e.b.fadd))
powers_of_two = _typed_as(
    3, {1: F32, 2: F32}, _same, lambda e, k, a: _map(e, k, a, lambda v, top: e.power_of_two(e.b.fsub(v, top)))
)  # fmt: skip
scaled_tile = _typed_as(3, {1: F32, 2: F32}, _same, lambda e, k, a: _map(e, k, a, e.b.fmul))
store_rows = _typed_as(
    6, {2: INT, 3: INT, 4: types.boolean, 5: types.boolean}, lambda *_: types.none, _store_rows
)  # fmt: skip


# ---- copies into shared memory that go on beside the work -----------------------------------------------------------


def _copy_words(e: Emit, kinds: Any, args: Any) -> None:
    shared = e.b.addrspacecast(e.element(kinds[0], args[0], args[1]), WORD.as_pointer(3))
    source = e.b.ptrtoint(e.element(kinds[2], args[2], args[3]), LONG)
    size = e.b.select(args[4], WORD(16), WORD(0))
    kind = ir.FunctionType(ir.VoidType(), [LONG, LONG, WORD])
    text = "cp.async.cg.shared.global [$0], [$1], 16, $2;"
    e.b.call(ir.InlineAsm(kind, text, "l,l,r,~{memory}", side_effect=True), [e.b.ptrtoint(shared, LONG), source, size])


def _plain(text: str) -> Any:
    """An instruction without operands."""

    def emit(e: Emit, kinds: Any, args: Any) -> None:
        e.b.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), text, "~{memory}", side_effect=True), [])

    return _typed_as(0, {}, lambda *_: types.none, emit)


copy_words = _typed_as(5, {1: INT, 3: INT, 4: types.boolean}, lambda *_: types.none, _copy_words)
commit_copies = _plain("cp.async.commit_group;")
wait_for_copies = _plain("cp.async.wait_group 0;")


# ---- registers ------------------------------------------------------------------------------------------------------


def _anew(e: Emit, kinds: Any, args: Any) -> Any:
    kind = ir.FunctionType(WORD, [WORD])
    return e.b.call(ir.InlineAsm(kind, "mov.u32 $0, $1;", "=r,r", side_effect=True), [args[0]])


anew = _typed_as(1, {0: types.int32}, lambda *_: types.int32, _anew)
