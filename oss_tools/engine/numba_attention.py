"""Attention, written down as operations of the kernels: what rotates, norms and stores keys and values, and what reads them."""

from __future__ import annotations

from typing import Any

from numba_kernels.cpu.attention import attention_op
from numba_kernels.cpu.kv_pages import store_op
from numba_kernels.cpu.latent import latent_attention_op, store_latents_op
from numba_kernels.cpu.op import Op
from numba_kernels.cpu.rows import join_heads
from oss_tools.engine.numba_pages import POSITIONS
from oss_tools.engine.numba_program import ProgramRecorder
from oss_tools.engine.numba_values import Value
from oss_tools.models.operations import Heads, Latent, Rope


class AttentionRecorder(ProgramRecorder):
    """Records attention."""

    def head_norm(self, x: Value, heads: int, name: str, epsilon: float) -> Value:
        x.norm = name, epsilon  # carried out when the keys are stored
        return x

    def rope(self, x: Value, heads: int, rope: Rope, first: int = 0) -> Value:
        x.rope, x.rope_first = rope, first  # carried out when the keys are stored
        return x

    def _rotation(self, rope: Rope | None) -> dict[str, Any]:
        """Arguments of what rotates heads."""
        if rope is None:
            return {"cos": None, "sin": None, "pairs": 0, "interleaved": 0}
        cos, sin = self.model.rope_tables(rope)
        return {"cos": cos, "sin": sin, "pairs": cos.shape[1], "interleaved": rope.interleaved}

    def _cache(self, heads: Heads | Latent) -> dict[str, Any]:
        """Arguments of what stores or reads keys and values."""
        pool = self.model.pools[heads.window]
        return {
            "positions": self.model.state.positions, "pages": pool.memory[heads.layer], "page_bytes": pool.pages.nbytes,
            "page_positions": POSITIONS, "tables": pool.table, "table_stride": pool.table.strides[0], "ring": pool.ring,
        }  # fmt: skip

    def _attend(
        self, op: Op, heads: Heads | Latent, value_dim: int, query: Value, out: Value, shared: dict[str, Any]
    ) -> None:
        state = self.model.state
        number = self._add(
            op, qkv=query.floats, stride=query.stride, out=out.floats, out_stride=out.stride, sequences=0,
            first_row=state.first_row, row_count=state.row_count, heads=heads.queries, kv_heads=heads.keys,
            head_dim=heads.size, value_dim=value_dim, window=heads.window or 0, divided=0,
            **self.model.scratch(value_dim), **shared,
        )  # fmt: skip
        self.attentions.append((number, heads))

    def attention(self, query: Value, key: Value, value: Value, heads: Heads) -> Value:
        together = all(v.stride == query.stride for v in (key, value))
        if not together or query.rope is not key.rope or query.rope_first or key.rope_first or value.norm or value.rope:
            raise TypeError(
                "the kernels take queries, keys and values of one projection, and rotate heads from their beginning"
            )
        norms = [v.norm for v in (query, key)]
        if len({norm[1] for norm in norms if norm}) > 1:
            raise TypeError("the kernels norm the heads of queries and keys with one epsilon")
        weights = [self.model.weights.vector(norm[0]) if norm else None for norm in norms]
        epsilon = next((norm[1] for norm in norms if norm), 0.0)
        cache, shape = self._cache(heads), {"heads": heads.queries, "kv_heads": heads.keys, "head_dim": heads.size}
        stored = self._add(
            store_op(self.model.element), qkv=query.floats, stride=query.stride, sequence=self.model.state.sequence,
            scale=heads.factor, query_norm=weights[0], key_norm=weights[1], eps=epsilon, **self._rotation(query.rope),
            **cache, **shape,
        )  # fmt: skip
        self.attentions.append((stored, heads))
        out = self._value(heads.queries * heads.size)
        rounded = {"bf16": "bf16", "q8": "i16"}.get(self.model.element, "f32")  # queries and shares are, for faster products
        products = "f32" if self.model.options.activations == "f32" else rounded
        group = heads.queries // heads.keys
        op = attention_op(group * self.rows, self.model.element, heads.size, products=products)
        sinks = self.model.weights.vector(heads.sinks) if heads.sinks else None
        self._attend(op, heads, heads.size, query, out, cache | {"sinks": sinks})
        return out

    def latent_attention(self, query: Value, latent: Value, key: Value, name: str, heads: Latent) -> Value:
        """In the absorbed form: each head's projection of latents to keys is multiplied with its query, and its projection to
        values with what its softmax sums. Heads lie one under another in between."""
        if query.rope is not key.rope or (query.rope and (query.rope_first, key.rope_first) != (heads.nope, 0)):
            raise TypeError("the kernels rotate the last values of queries, and keys, alike")
        element, kind, cache = self.model.element, self.model.dense_kind, self._cache(heads)
        to_latent, to_value = self.model.weights.latent_stacks(name, heads)
        unrotated, absorbed, sums, values = (
            self._value(columns, heads.queries) for columns in (heads.nope, heads.size, heads.rank, heads.value)
        )
        stored = self._add(
            store_latents_op(element), query=self._floats(query), query_stride=query.stride, latent=self._floats(latent),
            latent_stride=latent.stride, key=self._floats(key), key_stride=key.stride, heads=heads.queries, nope=heads.nope,
            rope=heads.rope, rank=heads.rank, sequence=self.model.state.sequence, scale=heads.factor,
            unrotated=unrotated.floats, unrotated_stride=unrotated.stride, absorbed=absorbed.floats,
            absorbed_stride=absorbed.stride, **self._rotation(query.rope), **cache,
        )  # fmt: skip
        self.attentions.append((stored, heads))
        groups = self.model.state.head_rows(heads.queries)
        self._multiply(to_latent, unrotated, absorbed.floats, groups, kind, heads.queries)
        self._attend(latent_attention_op(element, heads.rank), heads, heads.rank, absorbed, sums, cache | {"sinks": None})
        self._multiply(to_value, sums, values.floats, groups, kind, heads.queries)
        out = self._value(heads.queries * heads.value, on_demand=True)
        out.producer = self._add(
            join_heads, x=values.floats, x_stride=values.stride, size=heads.value, out=None, out_stride=out.stride,
            records=None, record_stride=0, columns=out.columns,
        )  # fmt: skip
        return out
