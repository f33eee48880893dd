"""The kernels' backend: a forward pass is recorded once into a program that a team of threads replays without Python.

Two programs are recorded: one for a single token, where every matrix meets one vector, and one for any number of tokens
up to `CHUNK`. What changes between replays (how many rows, their tokens, positions and pages) lies in arrays that
the program points to, or in arguments that `Replay` patches.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

import numba_kernels  # noqa: F401  (sets where compiled code is kept, before anything is compiled)
from numba_kernels.cpu.attention import ELEMENTS, attention_op, attention_scratch, parts_of, store_op, value_stride
from numba_kernels.cpu.copies import copy_pages
from numba_kernels.cpu.experts import combine, group_by_expert, route, route_by_score
from numba_kernels.cpu.latent import latent_attention_op, row_stride, store_latents_op
from numba_kernels.cpu.linear import linear_op, panels_at_once
from numba_kernels.cpu.op import Op
from numba_kernels.cpu.packing import pack_kernel
from numba_kernels.cpu.probe import multiplying, rate, reading
from numba_kernels.cpu.rows import (
    embedding_op,
    empty_records,
    gated_op,
    gelu,
    join_heads,
    layer_norm,
    quantize,
    quantizing_to,
    rms_norm,
    scaled_sum,
)
from numba_kernels.cpu.team import Program, Team
from numba_kernels.parallel import cores
from numba_kernels.simd import path as simd_path
from oss_tools.engine.backend import Backend, Options, Progress, Run
from oss_tools.engine.compiling import compile_all
from oss_tools.engine.numba_cache import POSITIONS, SEQUENCES, Cache, Passing, Pool, parts
from oss_tools.engine.numba_weights import TRANSPOSED, NumbaWeights, Stack, bytes_by_format, kernel_bytes
from oss_tools.errors import BadRequest
from oss_tools.models import Architecture, Checkpoint
from oss_tools.models.operations import SILU, Gate, Heads, Latent, Operations, Rope, Router

CHUNK = 512  # tokens in one pass
OUTPUTS = 64  # rows of logits in one pass
PIECES = 1024  # of attention whose keys are divided among threads, at most
MANY, PART = 64, 16  # with so many tokens, a program is replayed in parts of so many operations


@dataclass(eq=False)
class Value:
    """A value of the recorded forward pass: float32 rows, and their int8 records where a consumer wants those.

    Attributes:
        program, producer: the operation that fills it.
        floats: [rows, columns], padded to 32 columns, or columns of a wider buffer.
        columns, rows: its width, and its rows for each token (the chosen experts of one, usually 1).
        records: memory for the quantized rows by kind ("int8", "int8_g16").
        on_demand: the producer fills floats and one kind of records only when told to.
        filled: what it was told to fill, its arguments "out" and "records".
        norm: weight and epsilon of a norm of heads, which is still to be carried out.
        rope, rope_first: a rotation that is still to be carried out, and the first value of each head that it turns.
    """

    program: Program
    floats: np.ndarray
    columns: int
    rows: int = 1
    producer: int = -1
    records: dict[str, np.ndarray] = field(default_factory=dict)
    on_demand: bool = False
    filled: set[str] = field(default_factory=set)
    norm: tuple[str, float] | None = None
    rope: Rope | None = None
    rope_first: int = 0

    @property
    def stride(self) -> int:
        return self.floats.strides[0]


@dataclass(eq=False)
class Routing:
    """Chosen experts [tokens, chosen], their weights, and the tokens sorted by expert."""

    chosen: int
    weights: np.ndarray
    place: np.ndarray
    groups: dict[str, np.ndarray]


class Buffers:
    """Memory for values, used again when a value is gone. All programs share it, as they never run at the same time."""

    def __init__(self) -> None:
        self._free: dict[tuple[str, int, int], list[np.ndarray]] = {}

    def lend(self, value: Value | None, kind: str, rows: int, columns: int) -> np.ndarray:
        """`floats` [rows, columns padded to 32], zero beyond `columns`, or a kind of records; comes back when the value is
        dropped."""
        free = self._free.setdefault((kind, rows, columns), [])
        if free:
            buffer = free.pop()
        elif kind == "floats":
            buffer = np.zeros((rows, -(-columns // 32) * 32), np.float32)
        else:
            buffer = empty_records(rows, columns, kind)
        if value is not None:
            weakref.finalize(value, free.append, buffer)
        return buffer


class State:
    """What a pass is about, in arrays that the programs point to."""

    def __init__(self) -> None:
        self.tokens = np.zeros(CHUNK, np.int32)
        self.positions = np.zeros(CHUNK, np.int32)
        self.sequence = np.zeros(CHUNK, np.int32)
        self.first_row = np.zeros(SEQUENCES, np.int32)
        self.row_count = np.zeros(SEQUENCES, np.int32)
        self.outputs = np.zeros(OUTPUTS, np.int32)
        one, zero = np.ones(1, np.int32), np.zeros(1, np.int32)
        every = np.arange(CHUNK, dtype=np.int32)
        self.all_rows = {"groups": one, "group_matrix": zero, "group_start": np.zeros(2, np.int32), "index": every}
        self.output_rows = self.all_rows | {"group_start": np.zeros(2, np.int32), "index": self.outputs}
        self._head_rows: dict[int, dict[str, np.ndarray]] = {}

    def head_rows(self, heads: int) -> dict[str, np.ndarray]:
        """Groups of rows for products of which each head has its own matrix: the rows of a head follow each other."""
        if heads not in self._head_rows:
            numbers = np.arange(heads + 1, dtype=np.int32)
            index = np.arange(CHUNK * heads, dtype=np.int32)
            groups = {
                "groups": numbers[-1:].copy(),
                "group_matrix": numbers[:-1],
                "group_start": numbers.copy(),
                "index": index,
            }
            self._head_rows[heads] = groups
        return self._head_rows[heads]

    def fill(self, runs: list[Run]) -> int:
        """Takes the runs in; returns the number of rows."""
        at = 0
        for s, run in enumerate(runs):
            n = len(run.tokens)
            if n == 1:  # as in every pass that generates: a tenth of the time that slices take
                self.tokens[at], self.positions[at], self.sequence[at] = run.tokens[0], run.start, s
            else:
                self.tokens[at : at + n] = run.tokens
                self.positions[at : at + n] = np.arange(run.start, run.start + n)
                self.sequence[at : at + n] = s
            self.first_row[s], self.row_count[s] = at, n
            at += n
        self.all_rows["group_start"][1] = at
        for groups in self._head_rows.values():
            np.multiply(groups["group_matrix"], at, out=groups["group_start"][:-1])
            groups["group_start"][-1] = at * len(groups["group_matrix"])
        return at


class Recorder(Operations[Any]):
    """Records operations on up to `rows` tokens (1 or CHUNK) into a program; loads the weights that they name. `height` is the
    rows that its values have memory for."""

    def __init__(self, model: NumbaBackend, rows: int, height: int = CHUNK) -> None:
        self.model, self.rows, self.height = model, rows, height
        self.program = Program()
        self.dense = model.state.all_rows
        self.counts: list[tuple[int, int]] = []  # operations with an argument `rows`, and their rows for each token
        self.attentions: list[tuple[int, Heads | Latent]] = []

    # ---- values -----------------------------------------------------------------------------------------------------

    def _value(self, columns: int, rows: int = 1, on_demand: bool = False) -> Value:
        value = Value(self.program, np.empty((0, 0), np.float32), columns, rows, on_demand=on_demand)
        value.floats = self.model.buffers.lend(value, "floats", self.height * rows, columns)
        if on_demand:  # taken now: memory that is free later may be in use between then and now
            kinds = {"int8", self.model.dense_kind} - {"f32"}
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

    def _multiply(self, stack: Stack, x: Value, out: np.ndarray, groups: dict[str, np.ndarray], kind: str) -> int:
        """out = weights · x (+ bias) for the groups' rows, x quantized to `kind` or "f32"; returns the operation's number."""
        p, bias = stack.packed, stack.bias
        op = linear_op(p.format, kind, many=self.rows > 1)
        kind = op.constants["ACTIVATIONS"]  # weights in a float format take floats
        given = self._padded(x) if kind == "f32" else self._records(x, kind)
        return self._add(
            op, weights=p.data, matrix_bytes=p.matrix_bytes, panel_bytes=p.panel_bytes, scales_at=p.scales_at,
            blocks=p.blocks, shift=p.shift, height=p.rows, panels_at_once=panels_at_once(p, self.model.threads, self.rows),
            **groups, x=given, x_stride=given.strides[0], bias=bias, bias_stride=0 if bias is None else bias.strides[0],
            residual=None, out=out, out_stride=out.strides[0],
        )  # fmt: skip

    def linear(self, x: Value, name: str) -> Value:
        (stack,) = self.model.weights.stacks((name,))
        out = self._value(stack.packed.rows)
        out.producer = self._multiply(stack, x, out.floats, self.dense, self.model.dense_kind)
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
        areas, counters = self.model.scratch(value_dim)
        state = self.model.state
        number = self._add(
            op, qkv=query.floats, stride=query.stride, out=out.floats, out_stride=out.stride, sequences=0,
            first_row=state.first_row, row_count=state.row_count, heads=heads.queries, kv_heads=heads.keys,
            head_dim=heads.size, value_dim=value_dim, window=heads.window or 0, splits=1, areas=areas, counters=counters,
            **shared,
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
        op = attention_op(heads.queries // heads.keys if self.rows == 1 else 8, self.model.element, heads.size)
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
        self._multiply(to_latent, unrotated, absorbed.floats, groups, kind)
        self._attend(latent_attention_op(element, heads.rank), heads, heads.rank, absorbed, sums, cache | {"sinks": None})
        self._multiply(to_value, sums, values.floats, groups, kind)
        out = self._value(heads.queries * heads.value, on_demand=True)
        out.producer = self._add(
            join_heads, x=values.floats, x_stride=values.stride, size=heads.value, out=None, out_stride=out.stride,
            records=None, record_stride=0, columns=out.columns,
        )  # fmt: skip
        return out

    # ---- experts ----------------------------------------------------------------------------------------------------

    def route(self, x: Value, name: str, router: Router) -> Routing:
        logits, chosen = self.linear(x, name), router.chosen
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
        return Routing(chosen, weights, place, sorted_rows)

    def experts(self, x: Value, routing: Routing, name: str, gate: Gate) -> Value:
        if self.model.weights.has(f"{name}.gate_up_proj"):
            (first,) = self.model.weights.stacks((f"{name}.gate_up_proj",))
        else:
            (first,) = self.model.weights.stacks((f"{name}.gate_proj", f"{name}.up_proj"), interleave=True)
        (second,) = self.model.weights.stacks((f"{name}.down_proj",))
        both, kind = self._value(first.packed.rows, routing.chosen), self.model.options.activations
        self._multiply(first, x, both.floats, routing.groups, kind)
        inner = self._gate(both, gate)
        down = self._value(second.packed.rows, routing.chosen)
        in_order = {"index": np.arange(CHUNK * routing.chosen, dtype=np.int32)}
        self._multiply(second, inner, down.floats, routing.groups | in_order, kind)
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


class Replay:
    """A recorded program with the arguments that change between replays."""

    def __init__(self, recorder: Recorder) -> None:
        self.program = recorder.program
        ops = self.program.ops
        cells = [(number, 1 + ops[number].names.index("rows"), each) for number, each in recorder.counts]
        self._numbers, self._cells, self._each = np.array(cells, np.int64).reshape(-1, 3).T
        self._attentions = [(number, ops[number].names, heads) for number, heads in recorder.attentions]
        tiles = [ops[number].constants.get("ROWS", 0) for number, _ in recorder.attentions]
        self.tile_rows = max(tiles, default=1)
        self._known: dict[str, Any] = {}

    def set_rows(self, rows: int) -> None:
        """How many tokens the next replay has."""
        if self._known.get("rows") != rows:
            self.program.table[self._numbers, self._cells] = rows * self._each
            self._known["rows"] = rows

    def set_attention(self, name: str, values: dict[int | None, int]) -> None:
        """An argument of the attention operations that have it, by the layers' window."""
        if self._known.get(name) != values:
            for number, names, heads in self._attentions:
                if name in names:
                    self.program.table[number, 1 + names.index(name)] = values[heads.window]
            self._known[name] = values

    def set_pages(self, places: dict[int | None, Pool | Passing]) -> None:
        """Where keys and values are stored and read, by the layers' window."""
        layout = [(id(place), place.version) for place in places.values()]
        if self._known.get("layout") == layout:
            return
        for number, names, heads in self._attentions:
            place = places[heads.window]
            arguments = {
                "pages": place.memory[heads.layer].ctypes.data, "tables": place.table.ctypes.data,
                "table_stride": place.table.strides[0], "ring": place.ring,
            }  # fmt: skip
            for name, value in arguments.items():
                self.program.table[number, 1 + names.index(name)] = value
        self._known["layout"] = layout


class NumbaBackend(Backend):
    """The Numba kernels on the CPU."""

    name = "numba"
    chunk = CHUNK
    rows = OUTPUTS
    sequences = SEQUENCES

    def __init__(self, checkpoint: Checkpoint, options: Options, progress: Progress) -> None:
        self.options = options
        self.architecture = checkpoint.architecture
        self.layers = self.architecture.attention_layers()
        if options.activations not in ("int8", "f32"):
            raise BadRequest(f"activations {options.activations!r}: there are int8 and f32")
        self.element = "f32" if options.activations == "f32" else "bf16"  # of the KV cache
        # Dense layers take a scale for each 16 values, which halves the divergence that quantizing costs; experts, where most of
        # the arithmetic is, one for 32.
        self.dense_kind = "f32" if options.activations == "f32" else "int8_g16"
        self.threads = options.threads or cores()
        self.buffers = Buffers()
        transposed = "f32" if options.activations == "f32" else TRANSPOSED
        self.weights = NumbaWeights(checkpoint, self.threads, options.say, transposed)
        self.pools = self._pools()
        self.recent = min((max(w - 1, 1) for w in self.pools if w), default=self.chunk)
        self.state = State()
        self._ropes: dict[int, tuple[Rope, tuple[np.ndarray, np.ndarray]]] = {}
        self._areas: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._kept: list[Value] = []
        self._one, self._one_head = self._record(1)
        self._many, self._many_head = self._record(CHUNK)
        self._compile()
        self.weights.load(progress)
        self.team = Team(self.threads)
        self._last = self._many_head

    def _pools(self) -> dict[int | None, Pool]:
        windows = dict.fromkeys(h.window for h in self.layers)
        options = self.options.context, CHUNK, self.element
        try:
            return {w: Pool([h for h in self.layers if h.window == w], *options) for w in windows}
        except ValueError as error:
            raise BadRequest(f"{error}: use --backend torch for this model") from None

    def _record(self, rows: int) -> tuple[Replay, Program]:
        """The programs for passes of one token or of many: to the hidden states, and from them to the logits."""
        recorder = Recorder(self, rows)
        hidden = self.architecture.forward(recorder)
        head = Recorder(self, rows, OUTPUTS)
        head.dense = self.state.output_rows
        logits = self.architecture.logits(head, hidden)
        self._kept += [hidden, logits]
        self.vocabulary = logits.columns
        return Replay(recorder), head.program

    def _compile(self) -> None:
        """Has all kernels compiled, or taken from the cache, before there is a need for them."""
        programs = (self._one.program, self._one_head, self._many.program, self._many_head)
        ops = dict.fromkeys([op for program in programs for op in program.ops])
        jobs: list[tuple[str, Callable[[], Any]]] = [("threads", Team.functions)]
        jobs += [(f"pack {f}", partial(pack_kernel, f)) for f in self.weights.formats]
        copies = [op for pool in self.pools.values() for op in (*pool.copies, *([copy_pages] if pool.passing else []))]
        jobs += [(op.name, partial(getattr, op, "address")) for op in dict.fromkeys([*ops, *copies])]
        compile_all(jobs, self.options.on_compile)

    # ---- for the recorder -------------------------------------------------------------------------------------------

    def rope_tables(self, rope: Rope) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin for all positions of the context."""
        if id(rope) not in self._ropes:
            self._ropes[id(rope)] = (rope, rope.tables(self.options.context))
        return self._ropes[id(rope)][1]

    def scratch(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Memory for attention whose keys are divided."""
        if size not in self._areas:
            self._areas[size] = attention_scratch(PIECES, size)
        return self._areas[size]

    # ---- the backend ------------------------------------------------------------------------------------------------

    @classmethod
    def weight_bytes(cls, checkpoint: Checkpoint, options: Options) -> int:
        return kernel_bytes(checkpoint)

    @classmethod
    def position_bytes(cls, architecture: Architecture, options: Options) -> int:
        element = "f32" if options.activations == "f32" else "bf16"
        width = ELEMENTS[element]
        layers = [h for h in architecture.attention_layers() if h.window is None]
        return sum(
            row_stride(h.size, element)
            if isinstance(h, Latent)
            else h.keys * (h.size * width + value_stride(h.size, element))
            for h in layers
        )

    def open(self, capacity: int) -> Cache:
        return Cache(self.pools, {w: pool.take(pool.needed(capacity)) for w, pool in self.pools.items()})

    def grow(self, cache: Cache, capacity: int) -> None:
        for window, pool in self.pools.items():
            numbers = cache.numbers[window]
            numbers += pool.take(pool.needed(capacity) - len(numbers))

    def fork(self, cache: Cache, length: int, capacity: int) -> Cache:
        return Cache(self.pools, {w: p.fork(cache.numbers[w], length, capacity) for w, p in self.pools.items()})

    def run(self, runs: list[Run]) -> None:
        rows = self.state.fill(runs)
        replay, self._last = (self._one, self._one_head) if rows == 1 else (self._many, self._many_head)
        places = {window: pool.lay_out(runs) for window, pool in self.pools.items()}
        replay.set_rows(rows)
        replay.set_attention("sequences", dict.fromkeys(self.pools, len(runs)))
        splits = self._splits(runs, replay.tile_rows)
        replay.set_attention("splits", {window: 1 if window else splits for window in self.pools})
        replay.set_pages(places)
        passing = [place for place in places.values() if isinstance(place, Passing)]
        for place in passing:
            self.team.run(place.copying(back=False))
        self._replay(replay.program, rows)
        for place in passing:
            self.team.run(place.copying(back=True))

    def _replay(self, program: Program, rows: int) -> None:
        """Replays a program, a long one in parts: between them an interrupt (Ctrl-C) is heard."""
        count = len(program.ops)
        part = count if rows < MANY else PART
        for first in range(0, count, part):
            self.team.run(program, first, first + part)

    def _splits(self, runs: list[Run], tile_rows: int) -> int:
        """Into how many pieces of work the keys of a tile are divided, so that all threads have work: 1 or all their parts."""
        h = self.layers[0]
        tiles = sum(-(-len(r.tokens) * (h.queries // h.keys) // tile_rows) for r in runs) * h.keys
        pieces = parts_of(max(r.start + len(r.tokens) for r in runs))
        even = tiles % self.threads == 0 or tiles >= 8 * self.threads
        return 1 if even or tiles * pieces > PIECES else pieces

    def logits(self, rows: np.ndarray) -> np.ndarray:
        n = len(rows)
        self.state.outputs[:n] = rows
        self.state.output_rows["group_start"][1] = n
        self.team.run(self._last)
        logits = self._kept[1 if self._last is self._one_head else 3]
        return logits.floats[:n, : self.vocabulary]

    def read_cache(self, cache: Cache, start: int, stop: int) -> np.ndarray:
        width = sum(pool.width for pool in self.pools.values())
        block = np.empty((stop - start, width), next(iter(self.pools.values())).dtype)
        program = Program()
        for pool, rows in parts(self.pools, block):
            pool.reading(program, cache, start, rows)
        self.team.run(program)
        return block

    def write_cache(self, cache: Cache, start: int, block: np.ndarray) -> None:
        program = Program()
        for pool, rows in parts(self.pools, block):
            pool.writing(program, cache, start, rows)
        self.team.run(program)

    def facts(self) -> dict[str, Any]:
        return {
            "kernels": f"numba {simd_path()}",
            "threads": self.threads,
            "activations": self.options.activations,
            "weight_bytes": bytes_by_format(self.weights.packed),
            "bytes_per_token": self.weights.bytes_per_token(self.architecture),
        }

    def ceilings(self) -> dict[str, float]:
        stacks = self.weights.packed
        read, multiply = reading([p.data for p in stacks]), multiplying(stacks, self.threads)
        return {"read": rate(self.team, *read), "multiply": rate(self.team, *multiply)}

    def close(self) -> None:
        self.team.close()
