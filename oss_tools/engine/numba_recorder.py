"""A forward pass, written down as operations of the kernels, fused where that saves a pass over memory."""

from __future__ import annotations

import weakref
from itertools import pairwise

import numpy as np

from numba_kernels.cpu.embedding import embedding_op
from numba_kernels.cpu.rows import gelu, layer_norm, rms_norm
from oss_tools.engine.numba_attention import AttentionRecorder
from oss_tools.engine.numba_experts import ExpertsRecorder
from oss_tools.engine.numba_values import Value
from oss_tools.errors import BadRequest
from oss_tools.models.operations import SILU


class Recorder(AttentionRecorder, ExpertsRecorder):
    """Records the whole pass of an architecture."""

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

    def activated(self, x: Value, name: str, activation: str = "gelu_tanh") -> Value:
        given = self.linear(x, name)
        out = self._value(given.columns, on_demand=True)
        out.producer = self._add(
            gelu, x=given.floats, x_stride=given.stride, out=None, out_stride=out.stride, records=None, record_stride=0,
            columns=out.columns,
        )  # fmt: skip
        return out

    def scaled_by_gate(self, x: Value, y: Value, name: str) -> Value:
        gate, out = self.linear(x, name), self._value(y.columns)
        out.producer = self._scaled_sum(y, gate, out)
        return out

    def add(self, x: Value, y: Value) -> Value:
        adding, target = y.producer, self._floats(x)
        if adding < 0 or y.stride != x.stride or "residual" not in self.program.ops[adding].names:
            adding = self._scaled_sum(y, None, x)
        for argument in ("residual", "out"):
            self.program.set(adding, argument, target)
        x.producer = -1  # what made x is not what filled it last
        return x
