"""PTX instructions as functions for kernels. What each computes is said by its plain form, in `plain`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.cuda.extending import intrinsic

from numba_kernels.cuda.seam import cuda, types

U32, I32, U16, F32 = types.uint32, types.int32, types.uint16, types.float32
FOUR_WORDS, FOUR_FLOATS = types.UniTuple(U32, 4), types.UniTuple(F32, 4)
REGISTER = {U32: "r", I32: "r", U16: "h", F32: "f"}
ALL = 0xFFFFFFFF  # threads of a warp
PREFETCH_SPAN = "cp.async.bulk.prefetch.L2.global [$0], $1;"
PACK_BF16 = "cvt.rn.bf16x2.f32 $0, $2, $1;"
MULTIPLY_TILES = (
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
)


def _instruction(
    assembly: str, result: Any, *parameters: Any, convergent: bool = False, effect: bool = False, memory: bool = False
) -> Any:
    """An intrinsic that is one inline PTX instruction on registers: $0… are the results, then the parameters.

    A pure one may be moved, merged and dropped by the compiler; one with an `effect` may not; a `convergent` one stays where
    all threads of a warp meet. No access to memory is moved over one that concerns `memory`.
    """
    many = isinstance(result, types.BaseTuple)
    results = tuple(result) if many else (() if result == types.none else (result,))
    clobbered = ["~{memory}"] if memory else []
    constraints = ",".join(["=" + REGISTER[t] for t in results] + [REGISTER[t] for t in parameters] + clobbered)

    def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
        kinds = [context.get_value_type(t) for t in results]
        returned = ir.LiteralStructType(kinds) if many else kinds[0] if kinds else ir.VoidType()
        kind = ir.FunctionType(returned, [a.type for a in args])
        call = b.call(ir.InlineAsm(kind, assembly, constraints, side_effect=effect or convergent), args)
        if convergent:
            call.attributes.add("convergent")
        if many:
            return context.make_tuple(b, result, [b.extract_value(call, i) for i in range(len(results))])
        return call if kinds else context.get_dummy_value()

    return intrinsic(_typed(len(parameters), lambda *_: (result(*parameters), lower)))


def _typed(count: int, typing: Callable[..., Any]) -> Any:
    """A typing function of exactly `count` arguments after the context: Numba reads its signature."""
    names = ", ".join(f"a{i}" for i in range(count))
    scope: dict[str, Any] = {"typing": typing}
    exec(f"def typed(context, {names}):\n    return typing(context, {names})", scope)
    return scope["typed"]


def _bitcast(result: Any, parameter: Any) -> Any:
    def typing(context: Any, value: Any) -> Any:
        return result(parameter), lambda ctx, b, sig, args: b.bitcast(args[0], ctx.get_value_type(result))

    return intrinsic(typing)


def _address(context: Any, b: Any, array_type: Any, array: Any, index: Any) -> Any:
    """A pointer to an element."""
    data = context.make_array(array_type)(context, b, array).data
    return b.gep(data, [index])


def _pointer_instruction(assembly: str, result: Any, effect: bool, memory: bool = False) -> Any:
    """An intrinsic (array, index) that is one PTX instruction on the element's address."""
    results = () if result == types.none else tuple(result) if isinstance(result, types.BaseTuple) else (result,)

    def typing(typing_context: Any, array: Any, index: Any) -> Any:
        def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
            address = b.ptrtoint(_address(context, b, array, *args), ir.IntType(64))
            kinds = [context.get_value_type(t) for t in results]
            returned = ir.LiteralStructType(kinds) if len(kinds) > 1 else kinds[0] if kinds else ir.VoidType()
            constraints = ",".join(["=" + REGISTER[t] for t in results] + ["l"] + ["~{memory}"] * memory)
            kind = ir.FunctionType(returned, [address.type])
            call = b.call(ir.InlineAsm(kind, assembly, constraints, side_effect=effect), [address])
            if len(kinds) > 1:
                return context.make_tuple(b, result, [b.extract_value(call, i) for i in range(len(kinds))])
            return call if kinds else context.get_dummy_value()

        return result(array, types.int64), lower

    return intrinsic(typing)


def _prefetch_span() -> Any:
    """An intrinsic (array, index, bytes): both multiples of 16 bytes."""

    def typing(typing_context: Any, array: Any, index: Any, size: Any) -> Any:
        def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
            address = b.ptrtoint(_address(context, b, array, *args[:2]), ir.IntType(64))
            kind = ir.FunctionType(ir.VoidType(), [address.type, args[2].type])
            b.call(ir.InlineAsm(kind, PREFETCH_SPAN, "l,r", side_effect=True), [address, args[2]])
            return context.get_dummy_value()

        return types.none(array, types.int64, U32), lower

    return intrinsic(typing)


def _vector_load(result: Any) -> Any:
    """An intrinsic (array, index) -> several elements, one load from whatever memory the array is in."""

    def typing(typing_context: Any, array: Any, index: Any) -> Any:
        def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
            count = len(result)
            kind = ir.VectorType(context.get_value_type(result.dtype), count)
            loaded = b.load(b.bitcast(_address(context, b, array, *args), kind.as_pointer()))
            loaded.align = 4 * count
            return context.make_tuple(b, result, [b.extract_element(loaded, ir.IntType(32)(i)) for i in range(count)])

        return result(array, types.int64), lower

    return intrinsic(typing)


def _scale_load() -> Any:
    """An intrinsic (array, index) -> a scale of 8 or 16 bits."""

    def typing(typing_context: Any, array: Any, index: Any) -> Any:
        kind = f"u{array.dtype.bitwidth}"

        def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
            address = b.ptrtoint(_address(context, b, array, *args), ir.IntType(64))
            function = ir.FunctionType(ir.IntType(16), [address.type])
            return b.call(
                ir.InlineAsm(function, f"ld.global.L1::no_allocate.{kind} $0, [$1];", "=h,l", side_effect=True), [address]
            )

        return U16(array, types.int64), lower

    return intrinsic(typing)


def _volatile_load(how: str) -> Any:
    """An intrinsic (array, index) -> element that is read from where all blocks see it."""

    def typing(typing_context: Any, array: Any, index: Any) -> Any:
        kind = "f32" if array.dtype == F32 else "u32"

        def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
            address = b.ptrtoint(_address(context, b, array, *args), ir.IntType(64))
            function = ir.FunctionType(context.get_value_type(array.dtype), [address.type])
            constraints = f"={REGISTER[array.dtype]},l"
            return b.call(ir.InlineAsm(function, f"ld.{how}.global.{kind} $0, [$1];", constraints, True), [address])

        return array.dtype(array, types.int64), lower

    return intrinsic(typing)


def _vector_store(element: Any) -> Any:
    def typing(typing_context: Any, array: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            four = ir.Constant(ir.VectorType(context.get_value_type(element), 4), ir.Undefined)
            for i, value in enumerate(args[2:]):
                four = builder.insert_element(four, value, ir.IntType(32)(i))
            address = _address(context, builder, array, args[0], args[1])
            builder.store(four, builder.bitcast(address, four.type.as_pointer())).align = 16
            return context.get_dummy_value()

        return types.none(array, types.int64, element, element, element, element), lower

    return intrinsic(typing)


wait_for_launch_before = _instruction("griddepcontrol.wait;", types.none, effect=True, memory=True)
let_next_begin = _instruction("griddepcontrol.launch_dependents;", types.none, effect=True, memory=True)
dp4a = _instruction("dp4a.s32.s32 $0, $1, $2, $3;", I32, U32, U32, I32)
byte_permute = _instruction("prmt.b32 $0, $1, $2, $3;", U32, U32, U32, U32)
bits_as_float = _bitcast(F32, U32)
float_as_bits = _bitcast(U32, F32)
as_int = _bitcast(I32, U32)
half_as_float = _instruction("cvt.f32.f16 $0, $1;", F32, U16)
pack_bf16 = _instruction(PACK_BF16, U32, F32, F32)
multiply_pairs = _instruction("fma.rn.bf16x2 $0, $1, $2, $3;", U32, U32, U32, U32)
power_of_two = _instruction("ex2.approx.ftz.f32 $0, $1;", F32, F32)
reciprocal = _instruction("rcp.approx.ftz.f32 $0, $1;", F32, F32)
round_to_int = _instruction("cvt.rni.s32.f32 $0, $1;", I32, F32)
stream_words = _pointer_instruction("ld.global.nc.L1::no_allocate.v4.u32 {$0, $1, $2, $3}, [$4];", FOUR_WORDS, effect=False)
early_words = _pointer_instruction("ld.global.L1::no_allocate.v4.u32 {$0, $1, $2, $3}, [$4];", FOUR_WORDS, effect=True)
early_floats = _pointer_instruction("ld.global.L1::no_allocate.v4.f32 {$0, $1, $2, $3}, [$4];", FOUR_FLOATS, effect=True)
early_scale = _scale_load()
settled_floats = _pointer_instruction("ld.relaxed.gpu.global.v4.f32 {$0, $1, $2, $3}, [$4];", FOUR_FLOATS, effect=True)
settled_words = _pointer_instruction("ld.relaxed.gpu.global.v4.u32 {$0, $1, $2, $3}, [$4];", FOUR_WORDS, effect=True)
settled = _volatile_load("relaxed.gpu")
load_words, load_floats = _vector_load(FOUR_WORDS), _vector_load(FOUR_FLOATS)
store_words, store_floats = _vector_store(U32), _vector_store(F32)
load_pair = _vector_load(types.UniTuple(U32, 2))
count_up = _pointer_instruction("atom.acq_rel.gpu.global.add.s32 $0, [$1], 1;", I32, effect=True, memory=True)
load_fresh = _volatile_load("volatile")
largest_of_warp = _instruction("redux.sync.max.u32 $0, $1, 0xffffffff;", U32, U32, convergent=True)
least_of_warp = _instruction("redux.sync.min.u32 $0, $1, 0xffffffff;", U32, U32, convergent=True)
prefetch_span = _prefetch_span()
prefetch = _pointer_instruction("prefetch.global.L2 [$0];", types.none, effect=True)
multiply_tiles = _instruction(
    MULTIPLY_TILES, FOUR_FLOATS, U32, U32, U32, U32, U32, U32, F32, F32, F32, F32, convergent=True,
)  # fmt: skip


@cuda.jit(device=True)
def shuffle_xor(value: Any, mask: Any) -> Any:
    return cuda.shfl_xor_sync(ALL, value, mask)


@cuda.jit(device=True)
def warp_sum(value: Any) -> Any:
    for mask in (16, 8, 4, 2, 1):
        value += cuda.shfl_xor_sync(ALL, value, mask)
    return value


@cuda.jit(device=True)
def warp_max(value: Any) -> Any:
    for mask in (16, 8, 4, 2, 1):
        value = max(value, cuda.shfl_xor_sync(ALL, value, mask))
    return value


@cuda.jit(device=True)
def warp_barrier() -> None:
    cuda.syncwarp(ALL)
