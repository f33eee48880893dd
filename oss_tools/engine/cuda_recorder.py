"""A forward pass on a GPU, written down as launches of kernels, fused where that saves a pass over memory.

`OneToken` is for a decode step: matrices meet one vector, and the launches are the same at every position, so that they can be
recorded in a graph. `ManyTokens` is for prompts and batches: activations go through the tensor cores in bfloat16.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from numba_kernels.cuda.attention import PAGE, Attention, attend_kernel, partial_size
from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.choice import Choice
from numba_kernels.cuda.device import Device
from numba_kernels.cuda.experts import SILU as SILU_GATE
from numba_kernels.cuda.experts import SWIGLU as SWIGLU_GATE
from numba_kernels.cuda.experts import down_kernel, gate_up_kernel, route_kernel
from numba_kernels.cuda.heads import turn_heads_kernel
from numba_kernels.cuda.latent import attend_latents_kernel, head_products_kernel, store_latents_kernel
from numba_kernels.cuda.matmul import SWIGLU, matmul_grid, matmul_kernel
from numba_kernels.cuda.matvec import ADD, GELU, SILU, STORE, matvec_kernel
from numba_kernels.cuda.prefill import (
    attend_many_kernel,
    combine_kernel,
    group_kernel,
    most_tiles,
    round_kernel,
    store_many_kernel,
)
from numba_kernels.cuda.rows import add_rows_kernel, embed_kernel, layer_norm_kernel
from numba_kernels.cuda.seam import SIMULATED, Kernel
from oss_tools.engine.cuda_cache import Pool
from oss_tools.engine.cuda_weights import CudaWeights, Stack
from oss_tools.errors import BadRequest
from oss_tools.models.operations import Gate, Heads, Latent, Operations, Rope, Router

WARPS = 2 if SIMULATED else 8  # of a block
SPLITS = 2 if SIMULATED else 32  # blocks, at most, among which a head's positions are divided
FEW, MANY = 16, 64  # tokens in a tile of the tensor cores
NO_LIMIT, NO_ALPHA = np.float32(0), np.float32(0)


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
    context: int

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
    """The output of a layer that is not written yet: `emit` adds it to values, or stores it there. `name` tells it from others
    that may be in memory at the same time."""

    name: str
    columns: int
    emit: Callable[[Floats, bool], None]


@dataclass(frozen=True)
class Turned:
    """Queries or keys that are still to be normed, by head, and rotated, from value `first` of each head on."""

    x: Floats
    norm: tuple[str, float] | None = None
    rope: Rope | None = None
    first: int = 0


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
            out = self._floats(f"output {value.name}", value.columns)
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

    @property
    @abstractmethod
    def position_numbers(self) -> Any:
        """The tokens' positions, on the device."""

    @property
    @abstractmethod
    def sequence_numbers(self) -> Any:
        """Which sequence each token belongs to."""

    @abstractmethod
    def page_tables(self, window: int | None) -> Any:
        """The sequences' tables of pages."""

    def embed(self, name: str) -> Floats:
        (stack,) = self.model.weights.stacks((name,))
        out = self._floats("x", stack.columns)
        self._rows_of(stack, self.token_numbers, out, add=False)
        return out

    def positions(self, name: str) -> Pending:
        (stack,) = self.model.weights.stacks((name,))
        if stack.rows < self.model.context:
            raise BadRequest(f"{name} has {stack.rows} positions; the context has {self.model.context}")
        return Pending(
            "positions", stack.columns, lambda out, add: self._rows_of(stack, self.position_numbers, out, add=add)
        )

    def _rows_of(self, stack: Stack, numbers: Any, out: Floats, *, add: bool) -> None:
        """The rows of a table that have these numbers."""
        kernel = self._kernel(embed_kernel(stack.format, stack.columns, WARPS, add=add))
        parts = -(-stack.columns // kernel.threads)
        arguments = (stack.codes, stack.scales, numbers, stack.rows, out.stride, out.view)
        self._add(kernel, lambda tokens: (parts, tokens), *arguments)

    def rms_norm(self, x: Value, name: str, epsilon: float) -> Normed:
        return Normed(self.floats(x), self.model.weights.vector(name), epsilon)

    def layer_norm(self, x: Value, name: str, epsilon: float) -> Floats:
        given = self.floats(x)
        out = self._floats("layer normed", given.columns)
        weight, bias = (self.model.weights.vector(f"{name}.{part}") for part in ("weight", "bias"))
        kernel = self._kernel(layer_norm_kernel(given.columns, WARPS))
        arguments = (given.view, given.stride, weight, bias, np.float32(epsilon), out.view, out.stride)
        self._add(kernel, lambda tokens: tokens, *arguments)
        return out

    def linear(self, x: Value, name: str) -> Pending:
        (stack,) = self.model.weights.stacks((name,))
        return Pending(
            name.rpartition(".")[2], stack.rows, lambda out, add: self._multiply(stack, x, out, ADD if add else STORE)
        )

    def activated(self, x: Value, name: str, activation: str = "gelu_tanh") -> Floats:
        (stack,) = self.model.weights.stacks((name,))
        out = self._floats("activated", stack.rows)
        self._multiply(stack, x, out, GELU)
        return out

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

    def split(self, x: Value, widths: tuple[int, ...]) -> tuple[Floats, ...]:
        whole = self.floats(x)
        edges = np.cumsum([0, *widths]).tolist()
        return tuple(
            Floats(whole.array, width, whole.stride, whole.start + a) for a, width in zip(edges, widths, strict=False)
        )

    def add(self, x: Value, y: Value) -> Value:
        if isinstance(x, Pending):
            return Pending(x.name, x.columns, lambda out, add: self._both(x, y, out, add))
        out = self.floats(x)
        self._both(None, y, out, True)
        return out

    def _both(self, x: Pending | None, y: Value, out: Floats, add: bool) -> None:
        """Adds x and y to values, or stores their sum there."""
        if x:
            x.emit(out, add)
        if isinstance(y, Pending):
            y.emit(out, True)
        else:
            self._add_rows(self.floats(y), None, out, True)

    def _add_rows(self, x: Floats, gate: Floats | None, out: Floats, add: bool) -> None:
        kernel = self._kernel(add_rows_kernel(x.columns, gated=gate is not None, add=add, warps=WARPS))
        parts = -(-x.columns // kernel.threads)
        arguments = (x.view, x.stride, (gate or x).view, out.view, out.stride)
        self._add(kernel, lambda tokens: (parts, tokens), *arguments)

    # ---- attention --------------------------------------------------------------------------------------------------

    def head_norm(self, x: Value, heads: int, name: str, epsilon: float) -> Turned:
        return Turned(self.floats(x), (name, epsilon))

    def rope(self, x: Value, heads: int, rope: Rope, first: int = 0) -> Turned:
        return replace(x if isinstance(x, Turned) else Turned(self.floats(x)), rope=rope, first=first)

    def _tables_of(self, rope: Rope | None, nothing: Any) -> tuple[Any, Any]:
        """cos and sin on the device."""
        return self.model.rope_tables(rope) if rope else (nothing, nothing)

    def _projections(self, query: Value, key: Value, value: Floats, heads: Heads) -> tuple[Floats, Attention, Any, Any]:
        """(queries, keys and values, the layer's shape, cos, sin). Heads are normed, and rotated otherwise than the attention's
        kernels do it, in place."""
        q, k = (v if isinstance(v, Turned) else Turned(v) for v in (query, key))
        places = [(v.array, v.stride, v.start) for v in (q.x, k.x, value)]
        edges = (0, heads.queries * heads.size, (heads.queries + heads.keys) * heads.size)
        if places != [(value.array, value.stride, edge) for edge in edges] or q.rope is not k.rope or q.first or k.first:
            raise TypeError("the kernels take queries, keys and values from one projection, rotated alike from the first on")
        whole = replace(q.x, columns=value.start + value.columns)
        cos, sin = self._tables_of(q.rope, whole.array)
        shape, norms = self.model.pools[heads.window].shape, (q.norm, k.norm)
        pairs = len(q.rope.frequencies) if q.rope else 0
        if q.rope and 2 * pairs == heads.size and not q.rope.interleaved and norms == (None, None):
            return whole, shape, cos, sin
        if pairs or norms != (None, None):
            if len({norm[1] for norm in norms if norm}) > 1:
                raise TypeError("the kernels norm the heads of queries and keys with one epsilon")
            names = tuple(norm[0] for norm in norms if norm)
            weights = self.model.weights.vector(*names) if names else whole.array
            kernel = self._kernel(
                turn_heads_kernel(
                    heads.queries, heads.keys, heads.size, norms=(q.norm is not None, k.norm is not None), pairs=pairs,
                    interleaved=bool(q.rope and q.rope.interleaved), warps=min(WARPS, 4),
                )
            )  # fmt: skip
            parts = -(-(heads.queries + heads.keys) // min(WARPS, 4))
            epsilon = np.float32(next((norm[1] for norm in norms if norm), 0))
            arguments = (whole.view, whole.stride, weights, epsilon, cos, sin, self.position_numbers)
            self._add(kernel, lambda tokens: (parts, tokens), *arguments)
        return whole, replace(shape, turned=False), cos, sin

    def latent_attention(self, query: Value, latent: Value, key: Value, name: str, heads: Latent) -> Floats:
        """In the absorbed form, see `numba_kernels.cuda.latent`."""
        q, k = (v if isinstance(v, Turned) else Turned(self.floats(v)) for v in (query, key))
        if q.rope is not k.rope or (q.rope and (q.first, k.first) != (heads.nope, 0)) or q.norm or k.norm:
            raise TypeError("the kernels rotate the last values of queries, and keys, alike")
        pool = self.model.pools[heads.window]
        to_latent, to_value = self.model.weights.latent_stacks(name, heads, pool.element)
        x, weight, epsilon, norm = self._source(latent)
        cos, sin = self._tables_of(q.rope, x.array)
        size = pool.shape.size
        absorbed, sums = (self._floats(role, heads.queries * size) for role in ("absorbed", "latent sums"))
        out = self._floats("attended", heads.queries * heads.value)
        store = self._kernel(
            store_latents_kernel(
                pool.shape, heads.rank, heads.rope, heads.nope, pairs=len(q.rope.frequencies) if q.rope else 0,
                interleaved=bool(q.rope and q.rope.interleaved), norm=norm,
            )
        )  # fmt: skip
        self._add(
            store, lambda tokens: tokens, x.view, x.stride, weight, epsilon, k.x.view, k.x.stride, q.x.view, q.x.stride, cos, sin,
            pool.memory[heads.layer], self.page_tables(heads.window), self.position_numbers, self.sequence_numbers,
            absorbed.view,
        )  # fmt: skip
        self._head_products(to_latent, heads.queries, q.x, heads.nope + heads.rope, absorbed, size)
        self._attend_latents(heads, absorbed, sums)
        self._head_products(to_value, heads.queries, sums, size, out, heads.value)
        return out

    def _head_products(self, stack: Stack, heads: int, x: Floats, step: int, out: Floats, out_step: int) -> None:
        """Each head's matrix times its part of x, which begin `step` values apart."""
        kernel = self._kernel(head_products_kernel(stack.format, heads, stack.rows, stack.columns, WARPS))
        parts = -(-heads * stack.rows // WARPS)
        arguments = (stack.codes, x.view, x.stride, step, out.view, out.stride, out_step)
        self._add(kernel, lambda tokens: (parts, tokens), *arguments)

    @abstractmethod
    def _attend_latents(self, heads: Latent, absorbed: Floats, out: Floats) -> None: ...

    # ---- experts ----------------------------------------------------------------------------------------------------

    def route(self, x: Value, name: str, router: Router) -> Routing:
        chosen = router.chosen
        (stack,) = self.model.weights.stacks((name,))
        if stack.rows != router.experts:
            raise BadRequest(f"{name} gives {stack.rows} logits for {router.experts} experts")
        source, weight, epsilon, norm = self._source(x)
        choice = Choice(
            router.experts, chosen, router.score == "sigmoid", router.renormalized, router.correction is not None,
            router.groups, router.groups_chosen, {"top2": 2, "max": 1}[router.group_score],
        )  # fmt: skip
        kernel = self._kernel(
            route_kernel(self.model.shape(stack), choice, norm=norm, bias=stack.bias is not None, warps=WARPS)
        )
        logits, normed = self._floats("router", stack.rows), self._floats("normed", stack.columns)
        ids, shares = self._ints("ids", self.tokens * chosen), self._floats("shares", chosen).array
        counters = self._ints("counters", self.tokens)
        bias = source.array if stack.bias is None else stack.bias
        correction = self.model.weights.vector(router.correction) if router.correction else source.array
        blocks = self._blocks(-(-stack.rows // 2), kernel)
        self._add(
            kernel, lambda tokens: (blocks(), tokens), stack.codes, stack.scales, bias, source.view, source.stride, weight,
            epsilon, logits.view, counters, normed.view, ids, shares, correction, np.float32(router.scale),
            np.float32(router.epsilon),
        )  # fmt: skip
        return Routing(chosen, stack.rows, ids, shares, normed)

    def _expert_stacks(self, name: str) -> tuple[Stack, Stack]:
        """The experts' first projections, rows of gate and up in turn, and their second."""
        weights = self.model.weights
        if weights.has(f"{name}.gate_up_proj"):
            (first,) = weights.stacks((f"{name}.gate_up_proj",))
        else:
            (first,) = weights.stacks((f"{name}.gate_proj", f"{name}.up_proj"), interleave=True)
        (second,) = weights.stacks((f"{name}.down_proj",))
        return first, second

    def scaled_by_gate(self, x: Value, y: Value, name: str) -> Pending:
        gate, values = self.floats(replace(self.linear(x, name), name="gate")), self.floats(y)
        return Pending("scaled", values.columns, lambda out, add: self._add_rows(values, gate, out, add))


class OneToken(Recorder):
    """A decode step of one sequence."""

    tokens = 1

    @property
    def token_numbers(self) -> Any:
        return self.model.step.token

    @property
    def position_numbers(self) -> Any:
        return self.model.step.state

    @property
    def sequence_numbers(self) -> Any:
        return self._ints("none", 1)

    def page_tables(self, window: int | None) -> Any:
        return self.model.step.table(window)

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

    def attention(self, query: Value, key: Value, value: Floats, heads: Heads) -> Floats:
        given, shape, cos, sin = self._projections(query, key, value, heads)
        sinks = self.model.weights.vector(heads.sinks) if heads.sinks else cos
        out = self._floats("attended", heads.queries * heads.size)
        self._attend(heads, shape, given, cos, sin, sinks, out)
        return out

    def _attend(
        self, heads: Heads | Latent, shape: Attention, given: Floats, cos: Any, sin: Any, sinks: Any, out: Floats
    ) -> None:
        model, parts = self.model, splits(shape)
        kernel = self._kernel(attend_kernel(shape, parts))
        partial = model.buffer("parts", partial_size(shape, parts), np.float32)
        counters = self._ints("head counters", shape.keys)
        self._add(
            kernel, lambda tokens: (shape.keys, parts), given.array, cos, sin, np.float32(heads.factor), sinks,
            model.pools[heads.window].memory[heads.layer], model.step.table(heads.window), model.step.state, partial, counters,
            out.view,
        )  # fmt: skip

    def _attend_latents(self, heads: Latent, absorbed: Floats, out: Floats) -> None:
        nothing = absorbed.array
        self._attend(heads, self.model.pools[heads.window].shape, absorbed, nothing, nothing, nothing, out)

    def experts(self, x: Value, routing: Routing, name: str, gate: Gate) -> Pending:
        first, second = self._expert_stacks(name)
        inner, top = first.rows // 2, routing.chosen
        between = self._floats("expert inner", top * inner)
        form = {"silu": SILU_GATE, "swiglu_oai": SWIGLU_GATE}[gate.form]
        kernel = self._kernel(
            gate_up_kernel(self.model.shape(first), top=top, bias=first.bias is not None, gate=form, warps=WARPS)
        )
        bias = between.array if first.bias is None else first.bias
        blocks = self._blocks(top * inner, kernel)
        self._add(
            kernel, lambda tokens: blocks(), first.codes, first.scales, bias, routing.normed.view, routing.ids, inner, inner,
            np.float32(gate.limit), np.float32(gate.alpha), between.view,
        )  # fmt: skip
        return Pending("experts", second.rows, lambda out, add: self._down(second, between, routing, out, add))

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

    @property
    def position_numbers(self) -> Any:
        return self.model.batch.positions

    @property
    def sequence_numbers(self) -> Any:
        return self.model.batch.sequences

    def page_tables(self, window: int | None) -> Any:
        return self.model.batch.tables(window)

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
                stack.rows, NO_LIMIT, NO_ALPHA, none if out is None else out, none if words is None else words, stride,
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

    def attention(self, query: Value, key: Value, value: Floats, heads: Heads) -> Words:
        given, shape, cos, sin = self._projections(query, key, value, heads)
        model, batch = self.model, self.model.batch
        stride = heads.queries * heads.size // 2
        queries = model.buffer("many queries", self.tokens * stride, np.uint32)
        out = Words(model.buffer("many attended", self.tokens * stride, np.uint32), 2 * stride, stride)
        sinks = model.weights.vector(heads.sinks) if heads.sinks else cos
        cache, tables = model.pools[heads.window].memory[heads.layer], batch.tables(heads.window)
        store = self._kernel(store_many_kernel(shape))
        self._add(
            store, lambda tokens: tokens, given.array, given.stride, cos, sin, np.float32(heads.factor), cache,
            tables, batch.positions, batch.sequences, queries,
        )  # fmt: skip
        attend = self._kernel(attend_many_kernel(shape))
        arguments = (queries, sinks, cache, tables, batch.tiles(heads.window), out.array)
        self._add(attend, lambda tokens: (batch.tile_count(heads.window), heads.keys), *arguments)
        return out

    def _attend_latents(self, heads: Latent, absorbed: Floats, out: Floats) -> None:
        pool, batch = self.model.pools[heads.window], self.model.batch
        kernel, groups = self._kernel(attend_latents_kernel(pool.shape)), pool.shape.keys
        self._add(
            kernel, lambda tokens: (groups, tokens), absorbed.view, np.float32(heads.factor), pool.memory[heads.layer],
            batch.tables(heads.window), batch.positions, batch.sequences, out.view,
        )  # fmt: skip

    def experts(self, x: Value, routing: Routing, name: str, gate: Gate) -> Pending:
        first, second = self._expert_stacks(name)
        top, pairs = routing.chosen, self.tokens * routing.chosen
        inner = first.rows // 2
        stride = -(-inner // 8) * 4
        between = Words(self.model.buffer("many expert inner", pairs * stride, np.uint32), inner, stride)
        parts = self._floats("parts", top * second.rows)
        order, place = self._ints("order", pairs), self._ints("place", pairs)
        tiles = self._ints("expert tiles", 3 * most_tiles(pairs, routing.experts, FEW))
        count = self._ints("expert tile count", 1)
        self._group(routing, order, place, tiles, count)
        given, finish = self.words(x), {"silu": SILU, "swiglu_oai": SWIGLU}[gate.form]
        self._expert_matmul(first, routing, given, finish, order, tiles, count, gate, self._anything, between.array, stride)
        nothing = self.model.buffer("nothing", 1, np.uint32)
        self._expert_matmul(second, routing, between, STORE, None, tiles, count, gate, parts.array, nothing, second.rows)
        return Pending("experts", second.rows, lambda out, add: self._combine(parts, second.rows, routing, place, out, add))

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
        self, stack: Stack, routing: Routing, x: Words, finish: int, order: Any, tiles: Any, count: Any, gate: Gate, out: Any, words: Any, stride: int,
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
            count if order is None else order, tiles, count, 0, stack.rows, np.float32(gate.limit), np.float32(gate.alpha), out, words,
            stride,
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
