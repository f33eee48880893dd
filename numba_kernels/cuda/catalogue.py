"""The kernels as the published gpt-oss models and a small Llama need them, and what their PTX has to contain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from numba_kernels.cuda.attention import Attention, attend_kernel
from numba_kernels.cuda.blocks import LAYOUTS, Shape
from numba_kernels.cuda.experts import down_kernel, gate_up_kernel, route_kernel
from numba_kernels.cuda.matmul import SWIGLU, matmul_kernel
from numba_kernels.cuda.matvec import ADD, SILU, STORE, matvec_kernel
from numba_kernels.cuda.prefill import attend_many_kernel, combine_kernel, group_kernel, round_kernel, store_many_kernel
from numba_kernels.cuda.rows import choose_kernel, embed_kernel
from numba_kernels.cuda.seam import Kernel

HIDDEN, INNER, QUERIES, KEYS, SIZE, WINDOW, TOP = 2880, 2880, 64, 8, 64, 128, 4  # gpt-oss-20b and 120b
WIDE = "ld.global.nc.L1::no_allocate.v4.u32"
MATRIX = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"


@dataclass(frozen=True)
class Example:
    """A kernel of a published model, and instructions that have to be in its PTX."""

    name: str
    kernel: Kernel
    contains: tuple[str, ...] = field(default=())


def examples() -> Iterator[Example]:
    """All kinds of kernels, at the sizes that count."""
    yield from one_token()
    yield from many_tokens()


def one_token() -> Iterator[Example]:
    """Of a decode step."""
    for format, layout in LAYOUTS.items():
        columns = 2816 if format == "int8_g128" else HIDDEN
        for activations in ("f32",) if layout.is_float else ("int8", "f32"):
            dots = ("dp4a.s32.s32",) if activations == "int8" else ()
            kernel = matvec_kernel(Shape(format, columns, activations), norm=True, bias=True, finish=STORE)
            yield Example(f"matvec {format} × {activations}", kernel, (WIDE, *dots))
    attention = Shape("bf16", QUERIES * SIZE, "f32")
    yield Example("attention output", matvec_kernel(attention, norm=False, bias=True, finish=ADD), (WIDE,))
    gated = matvec_kernel(Shape("q8_0", 576, "int8"), norm=True, bias=False, finish=SILU)
    yield Example("Llama gate and up", gated, (WIDE, "dp4a.s32.s32"))
    router = Shape("bf16", HIDDEN, "f32")
    for experts in (32, 128):
        kernel = route_kernel(router, experts=experts, top=TOP, norm=True, bias=True)
        yield Example(f"router of {experts}", kernel, (WIDE, "atom.global.add.u32"))
    for format, activations in (("mxfp4", "int8"), ("q8_0", "int8"), ("mxfp4", "f32"), ("bf16", "f32")):
        dots = ("dp4a.s32.s32",) if activations == "int8" else ()
        shape = Shape(format, INNER, activations)
        first, second = gate_up_kernel(shape, top=TOP, bias=True), down_kernel(shape, top=TOP, bias=True)
        yield Example(f"gate and up {format} × {activations}", first, (WIDE, *dots))
        yield Example(f"down {format} × {activations}", second, (WIDE, *dots))
    for window, element in ((WINDOW, "bf16"), (None, "bf16"), (None, "f32")):
        heads = Attention(QUERIES, KEYS, SIZE, window, 3 if window else 64, element, sinks=True)
        wide = "ld.global.v4.u32" if element == "bf16" else "ld.global.v4.f32"
        yield Example(
            f"attention {element}, window {window}", attend_kernel(heads, 3 if window else 32), (wide, "atom.global.add.u32")
        )
    for format in ("bf16", "q8_0", "mxfp4"):
        yield Example(f"embedding {format}", embed_kernel(format, HIDDEN))
    yield Example("choice of a token", choose_kernel(), ("atom.global.add.u32",))


def many_tokens() -> Iterator[Example]:
    """Of a prompt."""
    for format in LAYOUTS:
        columns = 2816 if format == "int8_g128" else HIDDEN
        for tokens in (16, 64):
            kernel = matmul_kernel(Shape(format, columns, "int8"), finish=STORE, bias=True, tokens=tokens)
            yield Example(f"matmul {format} × {tokens} tokens", kernel, (WIDE, MATRIX))
    for format in ("mxfp4", "q8_0", "bf16"):
        shape = Shape(format, HIDDEN, "int8")
        first = matmul_kernel(shape, finish=SWIGLU, bias=True, grouped=True, indexed=True)
        yield Example(f"experts' gate and up {format}", first, (WIDE, MATRIX))
        yield Example(f"experts' down {format}", matmul_kernel(shape, finish=STORE, bias=True, grouped=True), (WIDE, MATRIX))
    gated = matmul_kernel(Shape("q8_0", 576, "int8"), finish=SILU, bias=False)
    yield Example("Llama gate and up, many tokens", gated, (WIDE, MATRIX))
    for window in (WINDOW, None):
        heads = Attention(QUERIES, KEYS, SIZE, window, 11 if window else 64, "bf16", sinks=True)
        yield Example(f"store of many tokens, window {window}", store_many_kernel(heads))
        yield Example(f"attention of many tokens, window {window}", attend_many_kernel(heads), ("ld.global.v4.u32", MATRIX))
    yield Example("norm to bfloat16", round_kernel(HIDDEN, norm=True))
    yield Example("tokens by expert", group_kernel(128, TOP, 64))
    yield Example("experts put together", combine_kernel(HIDDEN, TOP))
