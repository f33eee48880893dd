"""A decode step on a GPU, written down: matrices meet one vector, and the launches are the same at every position, so that they
can be recorded in a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.cuda.attention import PAGE, Attention, partial_size
from numba_kernels.cuda.attention_tiles import one_token_kernel
from numba_kernels.cuda.blocks import GROUP
from numba_kernels.cuda.choice import Choice
from numba_kernels.cuda.experts import SILU as SILU_GATE
from numba_kernels.cuda.experts import SWIGLU as SWIGLU_GATE
from numba_kernels.cuda.experts import down_kernel, gate_up_coded_kernel, gate_up_kernel, may_choose, takes_codes
from numba_kernels.cuda.matvec import ADD, SILU, STORE, matvec_kernel
from numba_kernels.cuda.seam import SIMULATED
from numba_kernels.cuda.vectors import fits_shared
from oss_tools.engine.cuda_attention import AttentionRecorder
from oss_tools.engine.cuda_values import WARPS, Floats, Normed, Pending, Routing, Value
from oss_tools.engine.cuda_weights import Stack
from oss_tools.models.operations import Gate, Heads, Latent

SPLITS = 2 if SIMULATED else 64  # blocks, at most, among which a head's positions are divided


def splits(shape: Attention) -> int:
    """Blocks among which a head's positions are divided: one for each page that a window touches, or SPLITS."""
    return min(SPLITS, -(-shape.window // PAGE) + 1) if shape.window else SPLITS


class OneToken(AttentionRecorder):
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
        shape = self.model.shape(stack)
        if shape.layout.is_float and not norm and finish in (STORE, ADD) and not fits_shared(shape, norm):
            self._products(stack, 1, x, 0, out, 0, add=finish == ADD)
            return
        kernel = self._kernel(
            matvec_kernel(
                shape, norm=norm, bias=stack.bias is not None, finish=finish, warps=WARPS, aligned=x.start % 4 == 0
            )
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
        kernel = self._kernel(one_token_kernel(shape, parts))
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
        form = {"silu": SILU_GATE, "swiglu_oai": SWIGLU_GATE}[gate.form]
        bias = routing.shares if first.bias is None else first.bias
        limits = (np.float32(gate.limit), np.float32(gate.alpha))
        shape, second_shape, has_bias = self.model.shape(first), self.model.shape(second), first.bias is not None
        late = routing.given if may_choose(routing.choice, shape, second_shape, WARPS) else None
        routing.emit(late is None)
        choice, x_given = (routing.choice, late) if late else (None, Normed(routing.normed, routing.shares, 0))
        if takes_codes(second_shape, WARPS):
            quads = second_shape.quads
            between = self.model.buffer("expert codes", top * 4 * quads, np.uint32)
            scales = self.model.buffer("expert scales", top * quads, np.float32)
            kernel = self._kernel(
                gate_up_coded_kernel(shape, second_shape, top=top, bias=has_bias, gate=form, warps=WARPS, choice=choice)
            )
            blocks = self._blocks(top * inner // GROUP * WARPS, kernel)
            self._add(
                kernel, lambda tokens: blocks(), first.codes, first.scales, bias, x_given.x.view, x_given.weight,
                np.float32(x_given.epsilon), routing.logits.view, routing.ids, inner, *limits, between, scales,
            )  # fmt: skip
        else:
            between = scales = self._floats("expert inner", top * inner).view
            kernel = self._kernel(gate_up_kernel(shape, top=top, bias=has_bias, gate=form, warps=WARPS))
            blocks = self._blocks(top * inner, kernel)
            given = (first.codes, first.scales, bias, routing.normed.view, routing.ids, inner)
            self._add(kernel, lambda tokens: blocks(), *given, inner, *limits, between)
        return Pending(
            "experts", second.rows, lambda out, add: self._down(second, between, scales, routing, choice, out, add)
        )

    def _down(
        self, stack: Stack, between: Any, scales: Any, routing: Routing, choice: Choice | None, out: Floats, add: bool
    ) -> None:
        if not add:
            raise TypeError("the experts' outputs are only added to something")
        shape = self.model.shape(stack)
        kernel = self._kernel(
            down_kernel(
                shape,
                top=routing.chosen,
                bias=stack.bias is not None,
                coded=takes_codes(shape, WARPS),
                warps=WARPS,
                choice=choice,
            )
        )
        bias = routing.shares if stack.bias is None else stack.bias
        blocks = self._blocks(stack.rows, kernel)
        self._add(
            kernel, lambda tokens: blocks(), stack.codes, stack.scales, bias, between, scales, stack.columns,
            routing.logits.view, routing.scale, routing.ids, routing.shares, stack.rows, out.view,
        )  # fmt: skip
