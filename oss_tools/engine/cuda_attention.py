"""Attention in a forward pass on a GPU, written down: what comes before it, and its latent form."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np

from numba_kernels.cuda.attention import Attention
from numba_kernels.cuda.heads import turn_heads_kernel
from numba_kernels.cuda.latent import store_latents_kernel
from numba_kernels.cuda.products import products_kernel
from oss_tools.engine.cuda_recorder import Recorder
from oss_tools.engine.cuda_values import WARPS, Floats, Turned, Value
from oss_tools.engine.cuda_weights import Stack
from oss_tools.models.operations import Heads, Latent, Rope


class AttentionRecorder(Recorder):
    """What both recorders share of attention."""

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
        self._products(to_latent, heads.queries, q.x, heads.nope + heads.rope, absorbed, size)
        self._attend_latents(heads, absorbed, sums)
        self._products(to_value, heads.queries, sums, size, out, heads.value)
        return out

    def _products(
        self, stack: Stack, heads: int, x: Floats, step: int, out: Floats, out_step: int, *, add: bool = False
    ) -> None:
        """Each head's matrix times its part of x, which begin `step` values apart."""
        kernel = self._kernel(
            products_kernel(
                stack.format, heads, stack.rows, stack.columns, bias=stack.bias is not None, add=add, warps=WARPS,
                aligned=not any(n % 4 for n in (x.start, x.stride, step)),
            )
        )  # fmt: skip
        parts, bias = -(-heads * stack.rows // WARPS), x.array if stack.bias is None else stack.bias
        arguments = (stack.codes, bias, x.view, x.stride, step, out.view, out.stride, out_step)
        self._add(kernel, lambda tokens: (parts, tokens), *arguments)

    @abstractmethod
    def _attend_latents(self, heads: Latent, absorbed: Floats, out: Floats) -> None: ...
