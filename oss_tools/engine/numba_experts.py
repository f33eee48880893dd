"""A mixture of experts, written down as operations of the kernels: tokens are routed and sorted by expert, each meets its own."""

from __future__ import annotations

import numpy as np

from numba_kernels.cpu.experts import combine, group_by_expert, route, route_by_score
from oss_tools.engine.numba_program import ProgramRecorder
from oss_tools.engine.numba_values import CHUNK, Routing, Value
from oss_tools.engine.numba_weights import Stack
from oss_tools.engine.stream.replaying import ExpertStop
from oss_tools.errors import BadRequest
from oss_tools.models.operations import Gate, Router


class ExpertsRecorder(ProgramRecorder):
    """Records routing and experts, and where a replay stops for experts that stream."""

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
