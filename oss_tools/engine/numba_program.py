"""A program of the kernels that is being written down: the memory of its values, and the operations that others are made of."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from numba_kernels.cpu.linear import linear_op, panels_at_once
from numba_kernels.cpu.op import Op
from numba_kernels.cpu.records import quantizing_to
from numba_kernels.cpu.rows import gated_op, quantize, scaled_sum
from numba_kernels.cpu.team import Program
from oss_tools.engine.backend import Options
from oss_tools.engine.numba_cache import Pool
from oss_tools.engine.numba_values import CHUNK, Buffers, State, Value
from oss_tools.engine.numba_weights import NumbaWeights, Stack
from oss_tools.engine.stream.replaying import ExpertStop
from oss_tools.engine.stream.streamed import StreamedExperts
from oss_tools.models.operations import Gate, Heads, Latent, Operations, Rope


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


class ProgramRecorder(Operations[Any]):
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

    # ---- operations that others are made of ----------------------------------------------------------------------------

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

    def _gate(self, both: Value, gate: Gate) -> Value:
        """From rows that alternate gate and up."""
        out = self._value(both.columns // 2, both.rows, on_demand=True)
        out.producer = self._add(
            gated_op({"silu": "silu", "swiglu_oai": "swiglu"}[gate.form]), both.rows, x=both.floats, x_stride=both.stride,
            out=None, out_stride=out.stride, records=None, record_stride=0, columns=out.columns, limit=gate.limit,
            alpha=gate.alpha,
        )  # fmt: skip
        return out

    def _scaled_sum(self, x: Value, gate: Value | None, out: Value) -> int:
        """out = x · σ(gate), to which a residual may be added; returns the operation's number."""
        return self._add(
            scaled_sum, x=self._floats(x), x_stride=x.stride, gate=gate.floats if gate else None,
            gate_stride=gate.stride if gate else 0, columns=x.columns, residual=None, out=out.floats, out_stride=out.stride,
        )  # fmt: skip
