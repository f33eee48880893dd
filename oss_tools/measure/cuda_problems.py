"""What each CUDA kernel is timed at: matrices, caches and prompts of a model's sizes, filled with noise.

Matrices lie one behind another in more memory than caches hold, and each launch takes the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from numba_kernels.cuda.attention import PAGE, Attention, partial_size
from numba_kernels.cuda.attention_tiles import one_token_kernel
from numba_kernels.cuda.blocks import GROUP, Shape
from numba_kernels.cuda.choice import Choice
from numba_kernels.cuda.device import Device
from numba_kernels.cuda.experts import down_kernel, gate_up_coded_kernel, gate_up_kernel, may_choose, takes_codes
from numba_kernels.cuda.matmul import matmul_grid, matmul_kernel
from numba_kernels.cuda.matvec import STORE, matvec_kernel
from numba_kernels.cuda.prefill import group_kernel, most_tiles
from numba_kernels.cuda.seam import WARP, Kernel
from numba_kernels.cuda.token_tiles import SWIGLU
from oss_tools.engine.cuda_one_token import splits

FORMATS = ("mxfp4", "int8", "q8_0", "q4_0", "bf16")
EPSILON, LIMIT, ALPHA = np.float32(1e-5), np.float32(7), np.float32(1.702)


@dataclass(frozen=True)
class Sizes:
    """How large the problems are: by default gpt-oss-20b's.

    Attributes:
        bytes: of the matrices that launches take turns at.
        rows: of matrices: a projection's and the output's.
        tokens: of a prompt's pass.
        depths: positions that attention looks back at.
    """

    bytes: int = 1 << 30
    hidden: int = 2880
    rows: tuple[int, ...] = (5120, 201088)
    experts: int = 32
    top: int = 4
    heads: tuple[int, int, int] = (64, 8, 64)
    depths: tuple[int, ...] = (4096, 32768)
    tokens: int = 512
    formats: tuple[str, ...] = FORMATS
    expert_formats: tuple[str, ...] = ("mxfp4", "q8_0", "bf16")


SIZES = Sizes()


@dataclass(frozen=True)
class Problem:
    """A kernel at work: what its launches read at least, in bytes, or how many operations they are, on average."""

    name: str
    nbytes: float
    operations: float
    launches: list[Callable[[], None]]


def problems(sizes: Sizes) -> Iterator[Callable[[Device], Problem]]:
    """Each is made when its turn comes, so that its memory is free again for the next."""
    for format in sizes.formats:
        for rows in sizes.rows:
            yield lambda device, f=format, r=rows: matrix_vector(device, sizes, f, r)  # type: ignore[misc]
    for format in sizes.expert_formats:
        yield lambda device, f=format: first_projection(device, sizes, f)  # type: ignore[misc]
        yield lambda device, f=format: second_projection(device, sizes, f)  # type: ignore[misc]
    for depth in sizes.depths:
        yield lambda device, d=depth: attention(device, sizes, d)  # type: ignore[misc]
    for format in sizes.expert_formats:
        yield lambda device, f=format: dense_matmul(device, sizes, f)  # type: ignore[misc]
        yield lambda device, f=format: expert_matmul(device, sizes, f)  # type: ignore[misc]


class Matrices:
    """Random rows of one shape, in memory that several launches take turns at.

    Attributes:
        row_bytes: of one row's codes and scales.
    """

    def __init__(self, device: Device, shape: Shape, rows: int, least: int = 0) -> None:
        """A matrix of so many rows, again and again until there are `least` bytes."""
        layout = shape.layout
        self._rows, self._words, self._scales = rows, layout.row_words(shape.columns), layout.row_scales(shape.columns)
        self.row_bytes = 4 * self._words + layout.scale_dtype.itemsize * self._scales
        self.count = max(-(-least // (rows * self.row_bytes)), 1)
        self.codes = noise(device, self.count * rows * self._words, np.uint32)
        self.scales = noise(device, self.count * rows * self._scales, layout.scale_dtype)

    def matrix(self, i: int) -> tuple[Any, Any]:
        """Codes and scales from matrix i on."""
        first = i * self._rows
        return self.codes[first * self._words :], self.scales[first * self._scales :] if self._scales else self.scales


def noise(device: Device, count: int, dtype: Any) -> Any:
    """Random bits, without the patterns of NaN and infinity; a few MB of them again and again."""
    array, size = device.empty(count, dtype), np.dtype(dtype).itemsize
    random = np.random.default_rng().integers(0, 256, min(count * size, 4 << 20), np.uint8) & np.uint8(0xBF)
    random = random[: len(random) // size * size].view(dtype)
    for start in range(0, count, len(random) or 1):
        device.upload(array, random[: count - start], start)
    return array


def matrix_vector(device: Device, sizes: Sizes, format: str, rows: int) -> Problem:
    """A normalized vector meets a matrix."""
    shape = Shape(format, sizes.hidden, "int8")
    kernel = matvec_kernel(shape, norm=True, bias=True, finish=STORE)
    held = Matrices(device, shape, rows, sizes.bytes)
    x, bias, out = (device.array(np.ones(n, np.float32)) for n in (sizes.hidden, rows, rows))
    blocks = device.blocks(-(-rows // 2), kernel)

    def launch(codes: Any, scales: Any) -> Callable[[], None]:
        return lambda: device.launch(kernel, blocks, codes, scales, bias, x, x, EPSILON, rows, out)

    launches = [launch(*held.matrix(i)) for i in range(held.count)]
    return Problem(f"matvec {format} {rows} × {sizes.hidden}", rows * held.row_bytes, 0, launches)


def chosen_experts(device: Device, sizes: Sizes) -> list[tuple[Any, Any]]:
    """Sets of experts that launches take turns at, each expert in one, and logits that lead to them."""
    order = np.random.default_rng().permutation(sizes.experts).astype(np.int32)
    sets = order.reshape(-1, sizes.top)
    return [(device.array(part), device.array(np.isin(np.arange(sizes.experts), part).astype(np.float32))) for part in sets]


def first_projection(device: Device, sizes: Sizes, format: str) -> Problem:
    """Gate and up of the chosen experts."""
    shape, codes, out = between(device, sizes, format)
    if takes_codes(shape):
        choice = Choice(sizes.experts, sizes.top)
        kernel: Kernel = gate_up_coded_kernel(
            shape, shape, top=sizes.top, bias=True, choice=choice if may_choose(choice, shape, shape) else None
        )
        blocks = device.blocks(sizes.top * sizes.hidden // GROUP * (kernel.threads // WARP), kernel)
        after: tuple[Any, ...] = (sizes.hidden, LIMIT, ALPHA, codes, out)
    else:
        kernel = gate_up_kernel(shape, top=sizes.top, bias=True)
        blocks = device.blocks(sizes.top * sizes.hidden, kernel)
        after = (sizes.hidden, sizes.hidden, LIMIT, ALPHA, out)
    rows = 2 * sizes.hidden
    held = Matrices(device, shape, sizes.experts * rows)
    x, bias = device.array(np.ones(sizes.hidden, np.float32)), device.zeros(sizes.experts * rows, np.float32)

    def launch(ids: Any, logits: Any) -> Callable[[], None]:
        given = (x, x, EPSILON, logits, ids) if takes_codes(shape) else (x, ids)
        return lambda: device.launch(kernel, blocks, held.codes, held.scales, bias, *given, *after)

    nbytes = sizes.top * rows * held.row_bytes
    return Problem(
        f"experts' gate and up {format}", nbytes, 0, [launch(*chosen) for chosen in chosen_experts(device, sizes)]
    )


def between(device: Device, sizes: Sizes, format: str) -> tuple[Shape, Any, Any]:
    """The experts' shape, and the inner values of the chosen ones: codes, and scales or float32 values."""
    shape = Shape(format, sizes.hidden, "int8")
    quads = sizes.top * shape.quads
    return shape, device.zeros(4 * quads, np.uint32), device.zeros(max(quads, sizes.top * sizes.hidden), np.float32)


def second_projection(device: Device, sizes: Sizes, format: str) -> Problem:
    """Down of the chosen experts, added up."""
    shape, codes, values = between(device, sizes, format)
    coded = takes_codes(shape)
    choice = Choice(sizes.experts, sizes.top)
    late = choice if may_choose(choice, shape, shape) else None
    kernel: Kernel = down_kernel(shape, top=sizes.top, bias=True, coded=coded, choice=late)
    held = Matrices(device, shape, sizes.experts * sizes.hidden)
    bias = device.zeros(sizes.experts * sizes.hidden, np.float32)
    shares, out = device.array(np.full(sizes.top, 0.25, np.float32)), device.zeros(sizes.hidden, np.float32)
    blocks = device.blocks(sizes.hidden, kernel)

    def launch(ids: Any, logits: Any) -> Callable[[], None]:
        return lambda: device.launch(
            kernel, blocks, held.codes, held.scales, bias, codes if coded else values, values, sizes.hidden, logits,
            np.float32(1), ids, shares, sizes.hidden, out,
        )  # fmt: skip

    nbytes = sizes.top * sizes.hidden * held.row_bytes
    return Problem(f"experts' down {format}", nbytes, 0, [launch(*chosen) for chosen in chosen_experts(device, sizes)])


def attention(device: Device, sizes: Sizes, depth: int) -> Problem:
    """One token looks back at `depth` positions; as many layers as fill the memory."""
    queries, keys, size = sizes.heads
    pages = -(-depth // PAGE)
    shape = Attention(queries, keys, size, None, pages, "bf16", sinks=True)
    parts = splits(shape)
    kernel = one_token_kernel(shape, parts)
    nbytes = 4 * keys * size * depth
    count = min(max(sizes.bytes // nbytes, 1), 24)
    caches = [device.zeros(pages * shape.page_words, np.uint32) for _ in range(count)]
    qkv = device.array(np.ones((queries + 2 * keys) * size, np.float32))
    angles = device.zeros(depth * size // 2, np.float32)
    sinks, out = device.zeros(queries, np.float32), device.zeros(queries * size, np.float32)
    table, state = device.array(np.arange(pages, dtype=np.int32)), device.array(np.array([depth - 1, 0], np.int32))
    partial, counters = device.zeros(partial_size(shape, parts), np.float32), device.zeros(keys, np.int32)
    scale = np.float32(1 / math.sqrt(size))

    def launch(cache: Any) -> Callable[[], None]:
        return lambda: device.launch(
            kernel, (keys, parts), qkv, angles, angles, scale, sinks, cache, table, state, partial, counters, out
        )

    return Problem(f"attention at {depth}", nbytes, 0, [launch(cache) for cache in caches])


def dense_matmul(device: Device, sizes: Sizes, format: str) -> Problem:
    """Many tokens meet a matrix."""
    rows, tokens, shape = sizes.rows[0], sizes.tokens, Shape(format, sizes.hidden, "int8")
    kernel = matmul_kernel(shape, finish=STORE, bias=True)
    held = Matrices(device, shape, rows)
    x, bias = device.zeros(tokens * sizes.hidden // 2, np.uint32), device.zeros(rows, np.float32)
    none, nothing, out = device.zeros(1, np.int32), device.zeros(1, np.uint32), device.zeros(tokens * rows, np.float32)
    grid = matmul_grid(kernel, -(-tokens // 64), rows)
    arguments = (
        held.codes, held.scales, bias, x, sizes.hidden // 2, none, none, none, tokens, rows, LIMIT, ALPHA, out, nothing, rows,
    )  # fmt: skip
    operations = 2 * rows * sizes.hidden * tokens
    return Problem(f"{tokens} tokens × {format}", 0, operations, [lambda: device.launch(kernel, grid, *arguments)] * 4)


def expert_matmul(device: Device, sizes: Sizes, format: str) -> Problem:
    """Many tokens, sorted by expert, meet gate and up of their experts."""
    rows, tokens, shape = 2 * sizes.hidden, sizes.tokens, Shape(format, sizes.hidden, "int8")
    pairs, words = tokens * sizes.top, sizes.hidden // 2
    rng = np.random.default_rng()
    ids = device.array(np.stack([rng.permutation(sizes.experts)[: sizes.top] for _ in range(tokens)]).astype(np.int32))
    order, place, count = (device.zeros(n, np.int32) for n in (pairs, pairs, 1))
    most = most_tiles(pairs, sizes.experts, 64)
    tiles = device.zeros(3 * most, np.int32)
    device.launch(group_kernel(sizes.experts, sizes.top, 64), 1, ids, pairs, order, place, tiles, count)
    kernel = matmul_kernel(shape, finish=SWIGLU, bias=True, grouped=True, indexed=True)
    held = Matrices(device, shape, sizes.experts * rows)
    x, bias = device.zeros(tokens * words, np.uint32), device.zeros(sizes.experts * rows, np.float32)
    out, nothing = device.zeros(pairs * words, np.uint32), device.zeros(1, np.float32)
    arguments = (held.codes, held.scales, bias, x, words, order, tiles, count, 0, rows, LIMIT, ALPHA, nothing, out, words)
    grid = matmul_grid(kernel, most, rows)
    operations = 2 * rows * sizes.hidden * pairs
    return Problem(
        f"experts of {tokens} tokens × {format}", 0, operations, [lambda: device.launch(kernel, grid, *arguments)] * 4
    )
