"""A forward pass, written down as operations of the kernels, fused where that saves a pass over memory."""

from __future__ import annotations

import weakref
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from numba_kernels.cpu.attention import attention_op
from numba_kernels.cpu.embedding import embedding_op
from numba_kernels.cpu.experts import combine, group_by_expert, route, route_by_score
from numba_kernels.cpu.kv_pages import store_op
from numba_kernels.cpu.latent import latent_attention_op, store_latents_op
from numba_kernels.cpu.linear import linear_op, panels_at_once
from numba_kernels.cpu.op import Op
from numba_kernels.cpu.records import quantizing_to
from numba_kernels.cpu.rows import gated_op, gelu, join_heads, layer_norm, quantize, rms_norm, scaled_sum
from numba_kernels.cpu.team import Program
from oss_tools.engine.backend import Options
from oss_tools.engine.numba_cache import POSITIONS, Pool
from oss_tools.engine.numba_values import CHUNK, Buffers, Routing, State, Value
from oss_tools.engine.numba_weights import NumbaWeights, Stack
from oss_tools.engine.stream.replaying import ExpertStop
from oss_tools.engine.stream.streamed import StreamedExperts
from oss_tools.errors import BadRequest
from oss_tools.models.operations import SILU, Gate, Heads, Latent, Operations, Rope, Router


class Model(Protocol):
    """What a recorder needs of the backend.

    Attributes:
        dense_kind: what the inputs of dense layers are quantized to, or "f32".
        element: of the KV cache.
        pools: by the layers' window.
        streamed: the experts, if they are not all in memory.
    """

    options: Options
    threads: int
    dense_kind: str
    element: str
    buffers: Buffers
    weights: NumbaWeights
    pools: dict[int | None, Pool]
    state: State

    streamed: StreamedExperts | None

    def rope_tables(self, rope: Rope) -> tuple[np.ndarray, np.ndarray]: ...
    def scratch(self, size: int) -> dict[str, Any]: ...


class Recorder(Operations[Any]):
    """Records operations on up to `rows` tokens (1 or CHUNK) into a program; loads the weights that they name. `height` is the
    rows that its values have memory for."""

    def __init__(self, model: Model, rows: int, height: int = CHUNK) -> None:
        self.model, self.rows, self.height = model, rows, height
        self.program = Program()
        self.dense = model.state.all_rows
        self.counts: list[tuple[int, int]] = []  # operations with an argument `rows`, and their rows for each token
        self.attentions: list[tuple[int, Heads | Latent]] = []
        self.stops: list[ExpertStop] = []

    # ---- values -----------------------------------------------------------------------------------------------------

    def _value(self, columns: int, rows: int = 1, on_demand: bool = False) -> Value:
        value = Value(self.program, np.empty((0, 0), np.float32), columns, rows, on_demand=on_demand)
        value.floats = self.model.buffers.lend(value, "floats", self.height * rows, columns)
        if on_demand:  # taken now: memory that is free later may be in use between then and now
            kinds = {"int8", self.model.dense_kind, self.model.options.activations} - {"f32"}
            value.records = {k: self.model.buffers.lend(value, k, self.height * rows, columns) for k in sorted(kinds)}
        return value

    def _add(self, op: Op, rows: int = 1, /, **arguments: Any) -> int:
        if "rows" in op.names:
            self.counts.append((len(self.program.ops), rows))
            arguments["rows"] = 0
        return self.program.add(op, **arguments)

    def _floats(self, value: Value) -> np.ndarray:
        """The value's float32 rows."""
        if value.on_demand and "out" not in value.filled:
            value.program.set(value.producer, "out", value.floats)
            value.filled.add("out")
        return value.floats

    def _padded(self, value: Value) -> np.ndarray:
        """The value's float32 rows with zeros up to a multiple of 32 columns, which kernels for floats read."""
        if value.floats.shape[1] % 32 == 0:
            return self._floats(value)
        whole = self._value(value.columns)
        self._scaled_sum(value, None, whole)
        return whole.floats

    def _records(self, value: Value, kind: str) -> np.ndarray:
        """The value's records of a kind, filled by its producer if it fills no others, else by an operation of their own."""
        if kind in value.filled:
            return value.records[kind]
        if value.on_demand and not value.filled - {"out"}:
            records, program = value.records[kind], value.program
            program.replace(value.producer, quantizing_to(program.ops[value.producer], kind))
            program.set(value.producer, "records", records)
            program.set(value.producer, "record_stride", records.strides[0])
        else:
            floats = self._floats(value)
            records = self.model.buffers.lend(value, kind, len(value.floats), value.columns)
            self._add(
                quantizing_to(quantize, kind), value.rows, x=floats, x_stride=value.stride, records=records,
                record_stride=records.strides[0], columns=value.columns,
            )  # fmt: skip
            value.records[kind] = records
        value.filled.add(kind)
        return records

    # ---- operations -------------------------------------------------------------------------------------------------

    def embed(self, name: str) -> Value:
        return self._rows_of(name, self.model.state.tokens)

    def positions(self, name: str) -> Value:
        if (rows := self.model.weights.heights((name.removesuffix(".weight"),))[0]) < self.model.options.context:
            raise BadRequest(f"{name} has {rows} positions; the context has {self.model.options.context}")
        return self._rows_of(name, self.model.state.positions)

    def _rows_of(self, name: str, numbers: np.ndarray) -> Value:
        (stack,) = self.model.weights.stacks((name.removesuffix(".weight"),))
        p, out = stack.packed, self._value(stack.packed.columns)
        self._add(
            embedding_op(p.format), weights=p.data, panel_bytes=p.panel_bytes, scales_at=p.scales_at, blocks=p.blocks,
            shift=p.shift, tokens=numbers, out=out.floats, out_stride=out.stride,
        )  # fmt: skip
        return out

    def rms_norm(self, x: Value, name: str, epsilon: float) -> Value:
        out = self._value(x.columns, on_demand=True)
        out.producer = self._add(
            rms_norm, x=self._floats(x), x_stride=x.stride, weight=self.model.weights.vector(name), out=None,
            out_stride=out.stride, records=None, record_stride=0, columns=x.columns, eps=epsilon,
        )  # fmt: skip
        return out

    def layer_norm(self, x: Value, name: str, epsilon: float) -> Value:
        out, vector = self._value(x.columns, on_demand=True), self.model.weights.vector
        out.producer = self._add(
            layer_norm, x=self._floats(x), x_stride=x.stride, weight=vector(f"{name}.weight"), bias=vector(f"{name}.bias"),
            out=None, out_stride=out.stride, records=None, record_stride=0, columns=x.columns, eps=epsilon,
        )  # fmt: skip
        return out

    def _multiply(
        self,
        stack: Stack,
        x: Value,
        out: np.ndarray,
        groups: dict[str, np.ndarray],
        kind: str,
        each: int = 1,
        exact: bool = False,
    ) -> int:
        """out = weights · x (+ bias) for the groups' rows, x quantized to `kind` or "f32"; each: the matrices that a token meets;
        exact: weights in floats meet float32 in any case. Returns the operation's number."""
        p, bias = stack.packed, stack.bias
        if p.format == "bf16" and self.model.options.activations == "bf16" and not exact:
            kind = "bf16"
        op = linear_op(p.format, kind, many=self.rows > 1)
        kind = op.constants["ACTIVATIONS"]  # weights in a float format take floats
        given = self._padded(x) if kind == "f32" else self._records(x, kind)
        return self._add(
            op, weights=p.data, matrix_bytes=p.matrix_bytes, panel_bytes=p.panel_bytes, scales_at=p.scales_at,
            blocks=p.blocks, shift=p.shift, height=p.rows, panels_at_once=panels_at_once(p, self.model.threads, self.rows, each),
            **groups, x=given, x_stride=given.strides[0], bias=bias, bias_stride=0 if bias is None else bias.strides[0],
            residual=None, out=out, out_stride=out.strides[0],
        )  # fmt: skip

    def linear(self, x: Value, name: str, exact: bool = False) -> Value:
        (stack,) = self.model.weights.stacks((name,))
        out = self._value(stack.packed.rows)
        out.producer = self._multiply(stack, x, out.floats, self.dense, self.model.dense_kind, exact=exact)
        return out

    def linears(self, x: Value, names: tuple[str, ...]) -> tuple[Value, ...]:
        heights = self.model.weights.heights(names)
        whole, at = self._value(sum(heights)), 0
        for stack in self.model.weights.stacks(names):
            self._multiply(stack, x, whole.floats[:, at:], self.dense, self.model.dense_kind)
            at += stack.packed.rows
        return self.split(whole, tuple(heights))

    def split(self, x: Value, widths: tuple[int, ...]) -> tuple[Value, ...]:
        edges = np.cumsum([0, *widths]).tolist()
        floats = self._floats(x)
        values = [Value(self.program, floats[:, a:b], b - a) for a, b in pairwise(edges)]
        for value in values:
            weakref.finalize(value, id, x)  # the buffer is lent for as long as any part of it lives
        return tuple(values)

    def gated(self, x: Value, gate: str, up: str) -> Value:
        (stack,) = self.model.weights.stacks((gate, up), interleave=True)
        both = self._value(stack.packed.rows)
        self._multiply(stack, x, both.floats, self.dense, self.model.dense_kind)
        return self._gate(both, SILU)

    def _gate(self, both: Value, gate: Gate) -> Value:
        """From rows that alternate gate and up."""
        out = self._value(both.columns // 2, both.rows, on_demand=True)
        out.producer = self._add(
            gated_op({"silu": "silu", "swiglu_oai": "swiglu"}[gate.form]), both.rows, x=both.floats, x_stride=both.stride,
            out=None, out_stride=out.stride, records=None, record_stride=0, columns=out.columns, limit=gate.limit,
            alpha=gate.alpha,
        )  # fmt: skip
        return out

    def activated(self, x: Value, name: str, activation: str = "gelu_tanh") -> Value:
        given = self.linear(x, name)
        out = self._value(given.columns, on_demand=True)
        out.producer = self._add(
            gelu, x=given.floats, x_stride=given.stride, out=None, out_stride=out.stride, records=None, record_stride=0,
            columns=out.columns,
        )  # fmt: skip
        return out

    # ---- attention --------------------------------------------------------------------------------------------------

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

    # ---- experts ----------------------------------------------------------------------------------------------------

    def route(self, x: Value, name: str, router: Router) -> Routing:
        logits, chosen = self.linear(x, name, exact=True), router.chosen
        if logits.columns != router.experts:
            raise BadRequest(f"{name} gives {logits.columns} logits for {router.experts} experts")
        pairs, experts = CHUNK * chosen, logits.columns
        ids, place, index = (np.zeros(pairs, np.int32) for _ in range(3))
        weights = np.zeros(pairs, np.float32)
        groups, group_expert, group_start = (np.zeros(n, np.int32) for n in (1, experts, experts + 1))
        arguments = {
            "logits": logits.floats, "logits_stride": logits.stride, "experts": experts, "top": chosen, "ids": ids,
            "weights": weights,
        }  # fmt: skip
        if router.is_softmax_of_chosen:
            self._add(route, **arguments)
        else:
            scratch = self._value(3 * -(-experts // 32) * 32)
            self._add(
                route_by_score, is_sigmoid=router.score == "sigmoid", is_renormalized=router.renormalized,
                correction=self.model.weights.vector(router.correction) if router.correction else None, groups=router.groups,
                groups_chosen=router.groups_chosen, group_best={"top2": 2, "max": 1}[router.group_score],
                epsilon=router.epsilon, scale=router.scale, scratch=scratch.floats, scratch_stride=scratch.stride, **arguments,
            )  # fmt: skip
        self._add(
            group_by_expert, ids=ids, top=chosen, experts=experts, groups=groups, group_expert=group_expert,
            group_start=group_start, index=index, place=place,
        )  # fmt: skip
        sorted_rows = {"groups": groups, "group_matrix": group_expert, "group_start": group_start, "index": index}
        return Routing(x.producer, chosen, ids, weights, place, sorted_rows)

    def _expert_stacks(self, name: str) -> tuple[Stack, Stack]:
        """A layer's matrices before and after the gate."""
        if self.model.streamed:
            return self.model.streamed.stacks(name)
        if self.model.weights.has(f"{name}.gate_up_proj"):
            (first,) = self.model.weights.stacks((f"{name}.gate_up_proj",))
        else:
            (first,) = self.model.weights.stacks((f"{name}.gate_proj", f"{name}.up_proj"), interleave=True)
        (second,) = self.model.weights.stacks((f"{name}.down_proj",))
        return first, second

    def _expert_kind(self, stack: Stack) -> str:
        """What the inputs of experts are quantized to: a scale for each 16 values where their weights have one as well."""
        if self.model.options.activations == "f32":
            return "f32"
        return "int8_g16" if stack.packed.layout.halves else "int8"

    def experts(self, x: Value, routing: Routing, name: str, gate: Gate) -> Value:
        (first, second), groups = self._expert_stacks(name), routing.groups
        sorted_by = groups["groups"], groups["group_matrix"], groups["group_start"]
        stop = ExpertStop(name, routing.begins, routing.chosen, routing.ids, *sorted_by)
        if self.model.streamed:
            groups = groups | {"groups": stop.count, "group_matrix": stop.matrix}
        both = self._value(first.packed.rows, routing.chosen)
        stop.first = self._multiply(first, x, both.floats, groups, self._expert_kind(first), routing.chosen)
        self.stops.append(stop)
        inner = self._gate(both, gate)
        down = self._value(second.packed.rows, routing.chosen)
        in_order = {"index": np.arange(CHUNK * routing.chosen, dtype=np.int32)}
        last = self._multiply(second, inner, down.floats, groups | in_order, self._expert_kind(second), routing.chosen)
        if (inner.producer, last) != (stop.first + 1, stop.first + 2):
            raise TypeError("an expert's products have the gate alone between them")
        out = self._value(down.columns)
        out.producer = self._add(
            combine, x=down.floats, x_stride=down.stride, place=routing.place, weights=routing.weights, top=routing.chosen,
            columns=down.columns, residual=None, out=out.floats, out_stride=out.stride,
        )  # fmt: skip
        return out

    def scaled_by_gate(self, x: Value, y: Value, name: str) -> Value:
        gate, out = self.linear(x, name), self._value(y.columns)
        out.producer = self._scaled_sum(y, gate, out)
        return out

    def _scaled_sum(self, x: Value, gate: Value | None, out: Value) -> int:
        """out = x · σ(gate), to which a residual may be added; returns the operation's number."""
        return self._add(
            scaled_sum, x=self._floats(x), x_stride=x.stride, gate=gate.floats if gate else None,
            gate_stride=gate.stride if gate else 0, columns=x.columns, residual=None, out=out.floats, out_stride=out.stride,
        )  # fmt: skip

    def add(self, x: Value, y: Value) -> Value:
        adding, target = y.producer, self._floats(x)
        if adding < 0 or y.stride != x.stride or "residual" not in self.program.ops[adding].names:
            adding = self._scaled_sum(y, None, x)
        for argument in ("residual", "out"):
            self.program.set(adding, argument, target)
        x.producer = -1  # what made x is not what filled it last
        return x
