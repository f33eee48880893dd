"""A forward pass on a GPU, written down as launches of kernels, fused where that saves a pass over memory.

`OneToken` is for a decode step: matrices meet one vector, and the launches are the same at every position, so that they can be
recorded in a graph. `ManyTokens` is for prompts and batches: activations go through the tensor cores in bfloat16.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from numba_kernels.cuda.attention import PAGE, Attention, attend_kernel, partial_size
from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.device import Device
from numba_kernels.cuda.experts import down_kernel, gate_up_kernel, route_kernel
from numba_kernels.cuda.matmul import SWIGLU, matmul_grid, matmul_kernel
from numba_kernels.cuda.matvec import ADD, SILU, STORE, matvec_kernel
from numba_kernels.cuda.prefill import (
    attend_many_kernel,
    combine_kernel,
    group_kernel,
    most_tiles,
    round_kernel,
    store_many_kernel,
)
from numba_kernels.cuda.rows import embed_kernel
from numba_kernels.cuda.seam import SIMULATED, Kernel
from oss_tools.engine.cuda_cache import Pool
from oss_tools.engine.cuda_weights import CudaWeights, Stack
from oss_tools.errors import Unsupported
from oss_tools.models.operations import Gate, Heads, Latent, Operations, Rope, Router

WARPS = 2 if SIMULATED else 8  # of a block
SPLITS = 2 if SIMULATED else 32  # blocks, at most, among which a head's positions are divided
FEW, MANY = 16, 64  # tokens in a tile of the tensor cores
SWIGLU_ALPHA = np.float32(1.702)  # gpt-oss
NO_LIMIT = np.float32(0)


def no_kernel(what: str) -> Unsupported:
    """The error for an operation that the GPU's kernels lack."""
    return Unsupported(f"the CUDA backend has no {what} yet: use --device cpu for this model")


def expert_limit(gate: Gate) -> np.float32:
    """The limit of gpt-oss's experts. Raises Unsupported for others."""
    if gate.form != "swiglu_oai" or np.float32(gate.alpha) != SWIGLU_ALPHA:
        raise no_kernel("experts with this activation")
    return np.float32(gate.limit)


Launch = tuple[Kernel, "int | tuple[int, ...]", tuple[Any, ...]]


def splits(shape: Attention) -> int:
    """Blocks among which a head's positions are divided: one for each page that a window touches, or SPLITS."""
    return min(SPLITS, -(-shape.window // PAGE) + 1) if shape.window else SPLITS


class Model(Protocol):
    """What recorders need of the backend."""

    device: Device
    weights: CudaWeights
    pools: dict[int | None, Pool]
    step: Any
    batch: Any
    chunk: int

    def buffer(self, role: str, count: int, dtype: Any) -> Any: ...
    def shape(self, stack: Stack) -> Shape: ...
    def rope_tables(self, rope: Rope) -> tuple[Any, Any]: ...
    def kernel(self, kernel: Kernel) -> Kernel: ...


# ---- values ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floats:
    """float32 on the device: for each token `columns` values from `start` on, a token every `stride`."""

    array: Any
    columns: int
    stride: int
    start: int = 0

    @property
    def view(self) -> Any:
        """From the first value on."""
        return self.array[self.start :]


@dataclass(frozen=True)
class Words:
    """bfloat16 on the device, two in a word: for each token `stride` words, zeros beyond `columns` values."""

    array: Any
    columns: int
    stride: int


@dataclass(frozen=True, eq=False)
class Normed:
    """x normalized by its root mean square, to be computed by whoever takes it."""

    x: Floats
    weight: Any
    epsilon: float


@dataclass(frozen=True)
class Pending:
    """The output of a layer that is not written yet: `emit` adds it to values, or stores it there."""

    columns: int
    emit: Callable[[Floats, bool], None]


@dataclass(frozen=True)
class Rotated:
    """A query or key that the attention still has to rotate."""

    x: Floats
    rope: Rope


@dataclass(frozen=True)
class Routing:
    """The experts that the device chose for each token, their number, and what they are to meet."""

    chosen: int
    experts: int
    ids: Any
    shares: Any
    normed: Floats


Value = Any  # one of these


class Recorder(Operations[Value]):
    """What both recorders share. `tokens` is the most tokens of a pass."""

    prefix = ""
    tokens: int

    def __init__(self, model: Model) -> None:
        self.model = model
        self.launches: list[Callable[[int], Launch]] = []
        self.kernels: dict[str, Kernel] = {}

    def play(self, tokens: int = 1, only: tuple[str, ...] = ()) -> None:
        """Puts the launches for so many tokens on the device's stream; all of them, or those of the named kernels."""
        for launch in self.launches:
            kernel, grid, arguments = launch(tokens)
            if not only or kernel.function.__name__ in only:
                self.model.device.launch(kernel, grid, *arguments)

    def _kernel(self, kernel: Kernel) -> Kernel:
        """The kernel, or the one like it that there already is."""
        return self.kernels.setdefault(kernel.name, self.model.kernel(kernel))

    def _blocks(self, warps_of_work: int, kernel: Kernel) -> Callable[[], int]:
        """How many blocks the kernel gets, known when it is compiled."""
        return lambda: self.model.device.blocks(warps_of_work, kernel)

    def _add(self, kernel: Kernel, grid: Callable[[int], Any], *arguments: Any) -> None:
        """A launch whose grid depends on the number of tokens."""
        self.launches.append(lambda tokens: (kernel, grid(tokens), arguments))

    def _floats(self, role: str, columns: int) -> Floats:
        return Floats(self.model.buffer(self.prefix + role, self.tokens * columns, np.float32), columns, columns)

    def floats(self, value: Value) -> Floats:
        """A value that lies in memory."""
        if isinstance(value, Floats):
            return value
        if isinstance(value, Pending):
            out = self._floats("output", value.columns)
            value.emit(out, False)
            return out
        raise TypeError(f"a {type(value).__name__} lies nowhere")

    def _ints(self, role: str, count: int) -> Any:
        return self.model.buffer(self.prefix + role, count, np.int32)

    def _source(self, value: Value) -> tuple[Floats, Any, np.float32, bool]:
        """(where x is, norm's weight, epsilon, whether it is to be normalized)."""
        if isinstance(value, Normed):
            return value.x, value.weight, np.float32(value.epsilon), True
        x = self.floats(value)
        return x, x.array, np.float32(0), False

    # ---- operations that both carry out alike -----------------------------------------------------------------------

    @property
    @abstractmethod
    def token_numbers(self) -> Any:
        """The tokens of a pass, on the device."""

    def embed(self, name: str) -> Floats:
        (stack,) = self.model.weights.stacks((name,))
        out = self._floats("x", stack.columns)
        kernel = self._kernel(embed_kernel(stack.format, stack.columns, WARPS))
        parts = -(-stack.columns // kernel.threads)
        arguments = (stack.codes, stack.scales, self.token_numbers, stack.rows, out.stride, out.view)
        self._add(kernel, lambda tokens: (parts, tokens), *arguments)
        return out

    def rms_norm(self, x: Value, name: str, epsilon: float) -> Normed:
        return Normed(self.floats(x), self.model.weights.vector(name), epsilon)

    def linear(self, x: Value, name: str) -> Pending:
        (stack,) = self.model.weights.stacks((name,))
        return Pending(stack.rows, lambda out, add: self._multiply(stack, x, out, ADD if add else STORE))

    def linears(self, x: Value, names: tuple[str, ...]) -> tuple[Floats, ...]:
        heights = self.model.weights.heights(names)
        whole, at = self._floats("projections", sum(heights)), 0
        for stack in self.model.weights.stacks(names):
            self._multiply(stack, x, Floats(whole.array, stack.rows, whole.stride, at), STORE)
            at += stack.rows
        edges = np.cumsum([0, *heights]).tolist()
        return tuple(Floats(whole.array, height, whole.stride, a) for a, height in zip(edges, heights, strict=False))

    @abstractmethod
    def _multiply(self, stack: Stack, value: Value, out: Floats, finish: int) -> None: ...

    def rope(self, x: Floats, heads: int, rope: Rope, first: int = 0) -> Rotated:
        if rope.interleaved or first or 2 * len(rope.frequencies) * heads != x.columns:
            raise no_kernel("rotation of a part of a head or of neighbours")
        return Rotated(x, rope)

    def positions(self, name: str) -> Value:
        raise no_kernel("learned positions")

    def layer_norm(self, x: Value, name: str, epsilon: float) -> Value:
        raise no_kernel("layer normalization")

    def head_norm(self, x: Value, heads: int, name: str, epsilon: float) -> Value:
        raise no_kernel("normalization of heads")

    def split(self, x: Floats, widths: tuple[int, ...]) -> tuple[Floats, ...]:
        edges = np.cumsum([0, *widths]).tolist()
        return tuple(Floats(x.array, width, x.stride, x.start + a) for a, width in zip(edges, widths, strict=False))

    def latent_attention(self, query: Value, latent: Value, key: Value, name: str, heads: Latent) -> Value:
        raise no_kernel("latent attention")

    def activated(self, x: Value, name: str, activation: str = "gelu_tanh") -> Value:
        raise no_kernel("GELU")

    def scaled_by_gate(self, x: Value, y: Value, name: str) -> Value:
        raise no_kernel("gated shared experts")

    def _check_heads(self, query: Value, key: Value, value: Floats, heads: Heads) -> None:
        if not isinstance(query, Rotated) or not isinstance(key, Rotated):
            raise no_kernel("attention without rotary positions")
        if query.rope is not key.rope or query.x.array is not value.array or query.x.start:
            raise TypeError("the kernels take queries, keys and values from one projection, rotated alike")

    def route(self, x: Value, name: str, router: Router) -> Routing:
        if not router.is_softmax_of_chosen:
            raise no_kernel("this model's choice of experts")
        chosen = router.chosen
        (stack,) = self.model.weights.stacks((name,))
        source, weight, epsilon, norm = self._source(x)
        kernel = self._kernel(
            route_kernel(
                self.model.shape(stack), experts=stack.rows, top=chosen, norm=norm, bias=stack.bias is not None, warps=WARPS
            )
        )
        logits, normed = self._floats("router", stack.rows), self._floats("normed", stack.columns)
        ids, shares = self._ints("ids", self.tokens * chosen), self._floats("shares", chosen).array
        counters = self._ints("counters", self.tokens)
        bias = source.array if stack.bias is None else stack.bias
        blocks = self._blocks(-(-stack.rows // 2), kernel)
        self._add(
            kernel, lambda tokens: (blocks(), tokens), stack.codes, stack.scales, bias, source.view, source.stride, weight,
            epsilon, logits.view, counters, normed.view, ids, shares,
        )  # fmt: skip
        return Routing(chosen, stack.rows, ids, shares, normed)

    def add(self, x: Floats, y: Value) -> Floats:
        if not isinstance(y, Pending):
            raise TypeError("only outputs of layers are added")
        y.emit(x, True)
        return x


class OneToken(Recorder):
    """A decode step of one sequence."""

    tokens = 1

    @property
    def token_numbers(self) -> Any:
        return self.model.step.token

    def _multiply(self, stack: Stack, value: Value, out: Floats, finish: int) -> None:
        x, weight, epsilon, norm = self._source(value)
        kernel = self._kernel(
            matvec_kernel(self.model.shape(stack), norm=norm, bias=stack.bias is not None, finish=finish, warps=WARPS)
        )
        bias = x.array if stack.bias is None else stack.bias
        blocks = self._blocks(-(-stack.rows // 2), kernel)
        arguments = (stack.codes, stack.scales, bias, x.view, weight, epsilon, stack.rows, out.view)
        self._add(kernel, lambda tokens: blocks(), *arguments)

    def gated(self, x: Value, gate: str, up: str) -> Floats:
        (stack,) = self.model.weights.stacks((gate, up), interleave=True)
        out = self._floats("inner", stack.rows // 2)
        self._multiply(stack, x, out, SILU)
        return out

    def attention(self, query: Rotated, key: Rotated, value: Floats, heads: Heads) -> Floats:
        self._check_heads(query, key, value, heads)
        model, pool = self.model, self.model.pools[heads.window]
        parts = splits(pool.shape)
        kernel = self._kernel(attend_kernel(pool.shape, parts))
        out = self._floats("attended", heads.queries * heads.size)
        partial = model.buffer("parts", partial_size(pool.shape, parts), np.float32)
        counters = self._ints("head counters", heads.keys)
        cos, sin = model.rope_tables(query.rope)
        sinks = model.weights.vector(heads.sinks) if heads.sinks else cos
        self._add(
            kernel, lambda tokens: (heads.keys, parts), query.x.array, cos, sin, np.float32(heads.factor), sinks,
            pool.memory[heads.layer], model.step.table(heads.window), model.step.state, partial, counters, out.view,
        )  # fmt: skip
        return out

    def experts(self, x: Value, routing: Routing, name: str, gate: Gate) -> Pending:
        limit = expert_limit(gate)
        (first,) = self.model.weights.stacks((f"{name}.gate_up_proj",))
        (second,) = self.model.weights.stacks((f"{name}.down_proj",))
        inner, top = first.rows // 2, routing.chosen
        between = self._floats("inner", top * inner)
        kernel = self._kernel(gate_up_kernel(self.model.shape(first), top=top, bias=first.bias is not None, warps=WARPS))
        bias = between.array if first.bias is None else first.bias
        blocks = self._blocks(top * inner, kernel)
        self._add(
            kernel, lambda tokens: blocks(), first.codes, first.scales, bias, routing.normed.view, routing.ids, inner, inner,
            limit, SWIGLU_ALPHA, between.view,
        )  # fmt: skip
        return Pending(second.rows, lambda out, add: self._down(second, between, routing, out, add))

    def _down(self, stack: Stack, between: Floats, routing: Routing, out: Floats, add: bool) -> None:
        if not add:
            raise TypeError("the experts' outputs are only added to something")
        kernel = self._kernel(
            down_kernel(self.model.shape(stack), top=routing.chosen, bias=stack.bias is not None, warps=WARPS)
        )
        bias = between.array if stack.bias is None else stack.bias
        blocks = self._blocks(stack.rows, kernel)
        self._add(
            kernel, lambda tokens: blocks(), stack.codes, stack.scales, bias, between.view, stack.columns, routing.ids,
            routing.shares, stack.rows, out.view,
        )  # fmt: skip


class ManyTokens(Recorder):
    """Tokens of any number of sequences. With `selected`, only the rows whose numbers lie there are multiplied."""

    prefix = "many "

    def __init__(self, model: Model, selected: Any = None, tokens: int = 0) -> None:
        super().__init__(model)
        self.tokens = tokens or model.chunk
        self._selected = selected
        self._rounded: dict[int, tuple[Any, Words]] = {}

    @property
    def token_numbers(self) -> Any:
        return self.model.batch.tokens

    def words(self, value: Value) -> Words:
        """A value in bfloat16."""
        if isinstance(value, Words):
            return value
        if id(value) not in self._rounded:
            x, weight, epsilon, norm = self._source(value)
            stride = -(-x.columns // 8) * 4
            out = Words(self.model.buffer("many rounded", self.model.chunk * stride, np.uint32), x.columns, stride)
            kernel = self._kernel(round_kernel(x.columns, norm=norm, warps=WARPS))
            grid = (lambda tokens: tokens) if self._selected is None else (lambda tokens: self.model.batch.rows)
            self._add(kernel, grid, x.view, x.stride, weight, epsilon, out.array, stride)
            self._rounded = {id(value): (value, out)}  # the buffer is used again for the next value
        return self._rounded[id(value)][1]

    def _multiply(self, stack: Stack, value: Value, out: Floats, finish: int) -> None:
        self._matmul(stack, self.words(value), finish, out.view, out.stride, None)

    def _matmul(self, stack: Stack, x: Words, finish: int, out: Any, stride: int, words: Any) -> None:
        """A dense layer, into float32 or words."""
        bias = stack.bias is not None
        few, many = (
            self._kernel(
                matmul_kernel(
                    self.model.shape(stack),
                    finish=finish,
                    bias=bias,
                    tokens=n,
                    indexed=self._selected is not None,
                    warps=WARPS,
                )
            )
            for n in (FEW, MANY)
        )
        index = self._ints("none", 1) if self._selected is None else self._selected
        none = self.model.buffer("nothing", 1, np.float32 if out is None else np.uint32)

        def launch(tokens: int) -> Launch:
            kernel, size = (few, FEW) if tokens <= 2 * FEW else (many, MANY)
            arguments = (
                stack.codes, stack.scales, stack.bias if bias else self._anything, x.array, x.stride, index, index, index, tokens,
                stack.rows, NO_LIMIT, SWIGLU_ALPHA, none if out is None else out, none if words is None else words, stride,
            )  # fmt: skip
            return kernel, matmul_grid(kernel, -(-tokens // size), stack.rows), arguments

        self.launches.append(launch)

    @property
    def _anything(self) -> Any:
        """An array of float32 for a parameter that is not read."""
        return self.model.buffer("nothing", 1, np.float32)

    def gated(self, x: Value, gate: str, up: str) -> Words:
        (stack,) = self.model.weights.stacks((gate, up), interleave=True)
        columns = stack.rows // 2
        stride = -(-columns // 8) * 4
        out = Words(self.model.buffer("many inner", self.tokens * stride, np.uint32), columns, stride)
        self._matmul(stack, self.words(x), SILU, None, stride, out.array)
        return out

    def attention(self, query: Rotated, key: Rotated, value: Floats, heads: Heads) -> Words:
        self._check_heads(query, key, value, heads)
        model, pool, batch = self.model, self.model.pools[heads.window], self.model.batch
        stride = heads.queries * heads.size // 2
        queries = model.buffer("many queries", self.tokens * stride, np.uint32)
        out = Words(model.buffer("many attended", self.tokens * stride, np.uint32), 2 * stride, stride)
        cos, sin = model.rope_tables(query.rope)
        sinks = model.weights.vector(heads.sinks) if heads.sinks else cos
        cache, tables = pool.memory[heads.layer], batch.tables(heads.window)
        store = self._kernel(store_many_kernel(pool.shape))
        self._add(
            store, lambda tokens: tokens, query.x.array, query.x.stride, cos, sin, np.float32(heads.factor), cache,
            tables, batch.positions, batch.sequences, queries,
        )  # fmt: skip
        attend = self._kernel(attend_many_kernel(pool.shape))
        arguments = (queries, sinks, cache, tables, batch.tiles(heads.window), out.array)
        self._add(attend, lambda tokens: (batch.tile_count(heads.window), heads.keys), *arguments)
        return out

    def experts(self, x: Value, routing: Routing, name: str, gate: Gate) -> Pending:
        limit = expert_limit(gate)
        (first,) = self.model.weights.stacks((f"{name}.gate_up_proj",))
        (second,) = self.model.weights.stacks((f"{name}.down_proj",))
        top, pairs = routing.chosen, self.tokens * routing.chosen
        inner = first.rows // 2
        stride = -(-inner // 8) * 4
        between = Words(self.model.buffer("many inner", pairs * stride, np.uint32), inner, stride)
        parts = self._floats("parts", top * second.rows)
        order, place = self._ints("order", pairs), self._ints("place", pairs)
        tiles = self._ints("expert tiles", 3 * most_tiles(pairs, routing.experts, FEW))
        count = self._ints("expert tile count", 1)
        self._group(routing, order, place, tiles, count)
        given = self.words(x)
        self._expert_matmul(first, routing, given, SWIGLU, order, tiles, count, limit, self._anything, between.array, stride)
        nothing = self.model.buffer("nothing", 1, np.uint32)
        self._expert_matmul(second, routing, between, STORE, None, tiles, count, limit, parts.array, nothing, second.rows)
        return Pending(second.rows, lambda out, add: self._combine(parts, second.rows, routing, place, out, add))

    def _tile(self, tokens: int, routing: Routing) -> int:
        """Tokens in a tile of the experts: small ones where an expert has few."""
        return FEW if tokens * routing.chosen <= 2 * FEW * routing.experts else MANY

    def _group(self, routing: Routing, order: Any, place: Any, tiles: Any, count: Any) -> None:
        kernels = {
            n: self._kernel(group_kernel(routing.experts, routing.chosen, n)) for n in (FEW, MANY)
        }  # fmt: skip

        def launch(tokens: int) -> Launch:
            kernel = kernels[self._tile(tokens, routing)]
            return kernel, 1, (routing.ids, tokens * routing.chosen, order, place, tiles, count)

        self.launches.append(launch)

    def _expert_matmul(
        self, stack: Stack, routing: Routing, x: Words, finish: int, order: Any, tiles: Any, count: Any, limit: np.float32,
        out: Any, words: Any, stride: int,
    ) -> None:  # fmt: skip
        bias = stack.bias is not None
        kernels = {
            n: self._kernel(
                matmul_kernel(
                    self.model.shape(stack), finish=finish, bias=bias, tokens=n, grouped=True, indexed=order is not None,
                    warps=WARPS,
                )
            )
            for n in (FEW, MANY)
        }  # fmt: skip
        arguments = (
            stack.codes, stack.scales, stack.bias if bias else self._anything, x.array, x.stride,
            count if order is None else order, tiles, count, 0, stack.rows, limit, SWIGLU_ALPHA, out, words, stride,
        )  # fmt: skip

        def launch(tokens: int) -> Launch:
            size = self._tile(tokens, routing)
            most = most_tiles(tokens * routing.chosen, routing.experts, size)
            return kernels[size], matmul_grid(kernels[size], most, stack.rows), arguments

        self.launches.append(launch)

    def _combine(self, parts: Floats, columns: int, routing: Routing, place: Any, out: Floats, add: bool) -> None:
        if not add:
            raise TypeError("the experts' outputs are only added to something")
        kernel = self._kernel(combine_kernel(columns, routing.chosen, WARPS))
        blocks = -(-columns // kernel.threads)
        arguments = (parts.array, columns, routing.shares, place, out.view, out.stride)
        self._add(kernel, lambda tokens: (blocks, tokens), *arguments)
