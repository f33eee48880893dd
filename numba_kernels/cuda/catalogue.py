"""The kernels as published models of every family need them, and what their PTX has to contain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from numba_kernels.cuda.attend import attend_kernel
from numba_kernels.cuda.attention import Attention
from numba_kernels.cuda.attention_ahead import attend_ahead_kernel
from numba_kernels.cuda.attention_many import attend_many_kernel, store_many_kernel
from numba_kernels.cuda.attention_tiles import attend_tiles_kernel
from numba_kernels.cuda.blocks import LAYOUTS, Shape
from numba_kernels.cuda.choice import Choice
from numba_kernels.cuda.experts import SILU as SILU_GATE
from numba_kernels.cuda.experts import down_kernel, gate_up_coded_kernel, gate_up_kernel, takes_codes
from numba_kernels.cuda.heads import turn_heads_kernel
from numba_kernels.cuda.latent import attend_latents_kernel, latent_shape, store_latents_kernel
from numba_kernels.cuda.matmul import matmul_kernel
from numba_kernels.cuda.matmul_few import matmul_few_kernel
from numba_kernels.cuda.matvec import ADD, GELU, SILU, STORE, matvec_kernel
from numba_kernels.cuda.prefill import combine_kernel, group_kernel, round_kernel
from numba_kernels.cuda.products import products_kernel
from numba_kernels.cuda.routing import route_kernel
from numba_kernels.cuda.rows import add_rows_kernel, choose_kernel, embed_kernel, layer_norm_kernel
from numba_kernels.cuda.seam import Kernel
from numba_kernels.cuda.token_tiles import SWIGLU

HIDDEN, INNER, QUERIES, KEYS, SIZE, WINDOW, TOP = 2880, 2880, 64, 8, 64, 128, 4  # gpt-oss-20b and 120b
EARLY = "ld.global.L1::no_allocate.v4.u32"
SETTLED = "ld.relaxed.gpu.global.v4.u32"
WIDE = "ld.global.nc.L1::no_allocate.v4.u32"
COPY = "cp.async.cg.shared.global"
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
    yield from other_families()


def one_token() -> Iterator[Example]:
    """Of a decode step."""
    for format, layout in LAYOUTS.items():
        columns = 2816 if format == "int8_g128" else HIDDEN
        for activations in ("f32",) if layout.is_float else ("int8", "f32"):
            dots = ("dp4a.s32.s32",) if activations == "int8" else ()
            kernel = matvec_kernel(Shape(format, columns, activations), norm=True, bias=True, finish=STORE)
            yield Example(f"matvec {format} × {activations}", kernel, (EARLY, *dots))
    attention = Shape("bf16", QUERIES * SIZE, "f32")
    yield Example("attention output", matvec_kernel(attention, norm=False, bias=True, finish=ADD), (EARLY,))
    gated = matvec_kernel(Shape("q8_0", 576, "int8"), norm=True, bias=False, finish=SILU)
    yield Example("Llama gate and up", gated, (EARLY, "dp4a.s32.s32"))
    kernel = route_kernel(Shape("f32", HIDDEN, "f32"), Choice(32, TOP), norm=True, bias=True)
    yield Example("router of 32 in f32", kernel, (EARLY, "atom.acq_rel.gpu.global.add.s32"))
    router = Shape("bf16", HIDDEN, "f32")
    for experts in (32, 128):
        kernel = route_kernel(router, Choice(experts, TOP), norm=True, bias=True)
        yield Example(f"router of {experts}", kernel, (EARLY, "atom.acq_rel.gpu.global.add.s32"))
        yield Example(
            f"router of {experts}, logits", route_kernel(router, Choice(experts, TOP), norm=True, bias=True, chooses=False)
        )
        shape, choice = Shape("mxfp4", INNER, "int8"), Choice(experts, TOP)
        first = gate_up_coded_kernel(shape, shape, top=TOP, bias=True, choice=choice)
        yield Example(f"gate and up of {experts}", first, (EARLY, "redux.sync.max.u32", "ld.relaxed.gpu.global.v4.f32"))
        second = down_kernel(shape, top=TOP, bias=True, coded=True, choice=choice)
        yield Example(f"down of {experts}", second, (EARLY, "redux.sync.max.u32"))
    for format, activations in (("mxfp4", "int8"), ("q8_0", "int8"), ("mxfp4", "f32"), ("bf16", "f32")):
        dots = ("dp4a.s32.s32",) if activations == "int8" else ()
        shape = Shape(format, INNER, activations)
        coded = takes_codes(shape)
        first, second = gate_up_kernel(shape, top=TOP, bias=True), down_kernel(shape, top=TOP, bias=True, coded=coded)
        if coded:
            first = gate_up_coded_kernel(shape, shape, top=TOP, bias=True)
        yield Example(f"gate and up {format} × {activations}", first, (EARLY, *dots))
        yield Example(f"down {format} × {activations}", second, (EARLY, *dots))
    for window, element in ((WINDOW, "bf16"), (None, "bf16"), (None, "f32")):
        heads = Attention(QUERIES, KEYS, SIZE, window, 3 if window else 64, element, sinks=True)
        wide = "ld.global.v4.u32" if element == "bf16" else "ld.global.v4.f32"
        yield Example(
            f"attention {element}, window {window}",
            attend_kernel(heads, 3 if window else 64),
            (wide, "atom.acq_rel.gpu.global.add.s32"),
        )
        if element == "bf16":
            ahead = attend_ahead_kernel(heads, 3 if window else 64)
            yield Example(f"attention ahead, window {window}", ahead, (SETTLED, "atom.acq_rel.gpu.global.add.s32"))
            tiles = attend_tiles_kernel(heads, 3 if window else 64)
            yield Example(
                f"attention by tiles, window {window}", tiles, (SETTLED, MATRIX, "atom.acq_rel.gpu.global.add.s32")
            )
    for format in ("bf16", "q8_0", "mxfp4"):
        yield Example(f"embedding {format}", embed_kernel(format, HIDDEN))
    yield Example("choice of a token", choose_kernel(), ("atom.acq_rel.gpu.global.add.s32",))


def many_tokens() -> Iterator[Example]:
    """Of a prompt."""
    for format in LAYOUTS:
        columns = 2816 if format == "int8_g128" else HIDDEN
        shape = Shape(format, columns, "int8")
        many = matmul_kernel(shape, finish=STORE, bias=True)
        yield Example(f"matmul {format} × 64 tokens", many, (WIDE, MATRIX, COPY))
        yield Example(f"matmul {format} × 32 tokens", matmul_few_kernel(shape, finish=STORE, bias=True), (WIDE, MATRIX))
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
        yield Example(f"attention of many tokens, window {window}", attend_many_kernel(heads), (COPY, MATRIX))
    yield Example("norm to bfloat16", round_kernel(HIDDEN, norm=True))
    yield Example("tokens by expert", group_kernel(128, TOP, 64))
    yield Example("experts put together", combine_kernel(HIDDEN, TOP))


CHOICES = {  # (hidden size, choice)
    "Qwen2-57B-A14B": (3584, Choice(64, 8, renormalized=False)),
    "DeepSeek-V2": (5120, Choice(160, 6, renormalized=False, groups=8, groups_chosen=3, group_best=1)),
    "DeepSeek-V3": (7168, Choice(256, 8, sigmoid=True, corrected=True, groups=8, groups_chosen=4)),
}


def other_families() -> Iterator[Example]:
    """What gpt-oss and Llama do not need."""
    for name, (hidden, choice) in CHOICES.items():
        router = route_kernel(Shape("bf16", hidden, "int8"), choice, norm=True, bias=False)
        yield Example(f"router of {name}", router, (EARLY, "atom.acq_rel.gpu.global.add.s32"))
    for format in ("q4_0", "bf16"):
        shape, dots = Shape(format, 2048, "int8"), () if format == "bf16" else ("dp4a.s32.s32",)
        yield Example(f"SiLU experts {format}", gate_up_kernel(shape, top=8, bias=False, gate=SILU_GATE), (EARLY, *dots))
        many = matmul_kernel(shape, finish=SILU, bias=False, grouped=True, indexed=True)
        yield Example(f"SiLU experts {format}, many tokens", many, (WIDE, MATRIX))
    shape = Shape("bf16", 768, "int8")
    yield Example("GPT-2 up", matvec_kernel(shape, norm=False, bias=True, finish=GELU), (EARLY,))
    yield Example("GPT-2 up, many tokens", matmul_kernel(shape, finish=GELU, bias=True), (WIDE, MATRIX))
    yield Example("GPT-2 positions", embed_kernel("f32", 768, add=True))
    yield Example("GPT-2 norm", layer_norm_kernel(1600))
    heads = Attention(12, 12, 64, None, 16, "bf16", turned=False)
    yield Example("GPT-2 attention", attend_kernel(heads, 64), ("ld.global.v4.u32", "atom.acq_rel.gpu.global.add.s32"))
    yield Example("GPT-2 store of many tokens", store_many_kernel(heads))
    yield Example("gated shared expert", add_rows_kernel(3584, gated=True, add=True))
    turn = turn_heads_kernel(32, 4, 128, norms=(True, True), pairs=64, interleaved=False)
    yield Example("Qwen3 norms of heads", turn)
    for queries, nope, element in ((16, 128, "bf16"), (128, 128, "bf16"), (128, 128, "f32")):
        latents, what = latent_shape(queries, 512, 64, 64, element), f"{queries} heads {element}"
        wide = "ld.global.v4.u32" if element == "bf16" else "ld.global.v4.f32"
        store = store_latents_kernel(latents, 512, 64, nope, pairs=32, interleaved=True, norm=True)
        yield Example(f"DeepSeek latents, {what}", store)
        yield Example(f"DeepSeek attention, {what}", attend_kernel(latents, 64), (wide, "atom.acq_rel.gpu.global.add.s32"))
        yield Example(
            f"DeepSeek queries to latents, {what}", products_kernel(element, queries, 512, nope, aligned=True), (WIDE,)
        )
        yield Example(
            f"DeepSeek latents to values, {what}", products_kernel(element, queries, 128, 512, aligned=True), (WIDE,)
        )
    yield Example(
        "DeepSeek attention, many tokens", attend_latents_kernel(latent_shape(16, 512, 64, 64)), ("ld.global.v4.u32",)
    )
