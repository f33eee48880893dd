"""A pass over prompts or batches on a GPU, written down: activations go through the tensor cores in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from numba_kernels.cuda.attention_many import attend_many_kernel, store_many_kernel
from numba_kernels.cuda.latent import attend_latents_kernel
from numba_kernels.cuda.matmul import matmul_grid, matmul_kernel
from numba_kernels.cuda.matmul_few import matmul_few_kernel
from numba_kernels.cuda.prefill import combine_kernel, group_kernel, most_tiles, round_kernel
from numba_kernels.cuda.seam import SIMULATED, Kernel
from numba_kernels.cuda.token_tiles import SILU, STORE, SWIGLU
from oss_tools.engine.cuda_attention import AttentionRecorder
from oss_tools.engine.cuda_values import WARPS, Floats, Launch, Model, Pending, Routing, Value, Words
from oss_tools.engine.cuda_weights import Stack
from oss_tools.models.operations import Gate, Heads, Latent

FEW, MANY = 32, 64  # tokens in a tile of the tensor cores
MANY_WARPS, SORT_WARPS = (2, 2) if SIMULATED else (4, 32)
NO_LIMIT, NO_ALPHA = np.float32(0), np.float32(0)


class ManyTokens(AttentionRecorder):
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
        indexed = self._selected is not None
        kernel_of = self._kernels(stack, finish, grouped=False, indexed=indexed)
        index = self._ints("none", 1) if self._selected is None else self._selected
        none = self.model.buffer("nothing", 1, np.float32 if out is None else np.uint32)

        def launch(tokens: int) -> Launch:
            kernel, size = kernel_of(tokens)
            arguments = (
                stack.codes, stack.scales, stack.bias if bias else self._anything, x.array, x.stride, index, index, index, tokens,
                stack.rows, NO_LIMIT, NO_ALPHA, none if out is None else out, none if words is None else words, stride,
            )  # fmt: skip
            return kernel, matmul_grid(kernel, -(-tokens // size), stack.rows), arguments

        self.launches.append(launch)

    def _kernels(self, stack: Stack, finish: int, *, grouped: bool, indexed: bool) -> Callable[[int], tuple[Kernel, int]]:
        """How many tokens meet a matrix: the kernel, and the most tokens of a tile. One matrix has too few rows to be
        divided into large blocks; the chosen experts have many together."""
        shape, most_few = self.model.shape(stack), FEW if grouped else 2 * FEW
        bias = stack.bias is not None
        few, many = (
            self._kernel(make(shape, finish=finish, bias=bias, tokens=tokens, grouped=grouped, indexed=indexed, warps=warps))
            for make, tokens, warps in ((matmul_few_kernel, FEW, WARPS), (matmul_kernel, MANY, MANY_WARPS))
        )
        return lambda tokens: (few, FEW) if tokens <= most_few else (many, MANY)

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
        routing.emit(True)
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

    def _group(self, routing: Routing, order: Any, place: Any, tiles: Any, count: Any) -> None:
        few, many = (
            self._kernel(group_kernel(routing.experts, routing.chosen, n, SORT_WARPS)) for n in (FEW, MANY)
        )  # fmt: skip

        def launch(tokens: int) -> Launch:
            return few if tokens <= FEW else many, 1, (routing.ids, tokens * routing.chosen, order, place, tiles, count)

        self.launches.append(launch)

    def _expert_matmul(
        self, stack: Stack, routing: Routing, x: Words, finish: int, order: Any, tiles: Any, count: Any, gate: Gate,
        out: Any, words: Any, stride: int,
    ) -> None:  # fmt: skip
        bias = stack.bias is not None
        kernel_of = self._kernels(stack, finish, grouped=True, indexed=order is not None)
        arguments = (
            stack.codes, stack.scales, stack.bias if bias else self._anything, x.array, x.stride,
            count if order is None else order, tiles, count, 0, stack.rows, np.float32(gate.limit), np.float32(gate.alpha), out,
            words, stride,
        )  # fmt: skip

        def launch(tokens: int) -> Launch:
            kernel, size = kernel_of(tokens)
            most = most_tiles(tokens * routing.chosen, routing.experts, size)
            return kernel, matmul_grid(kernel, most, stack.rows), arguments

        self.launches.append(launch)

    def _combine(self, parts: Floats, columns: int, routing: Routing, place: Any, out: Floats, add: bool) -> None:
        if not add:
            raise TypeError("the experts' outputs are only added to something")
        kernel = self._kernel(combine_kernel(columns, routing.chosen, WARPS))
        blocks = -(-columns // kernel.threads)
        arguments = (parts.array, columns, routing.shares, place, out.view, out.stride)
        self._add(kernel, lambda tokens: (blocks, tokens), *arguments)
