"""A forward pass as a graph, so that what a changed tensor does not reach is not computed again.

An architecture's `forward` is recorded once: each operation becomes a node that knows its inputs and the tensors it reads. The
residual stream is kept wherever something is added to it. With one tensor changed, only the nodes behind it are computed, from
the nearest kept values on: on the average half of the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oss_tools.models import Architecture
from oss_tools.models.operations import Gate, Heads, Latent, Operations, Rope, Router

IN_PLACE = {"rope", "head_norm", "add", "scaled_by_gate"}  # operations that may take an input's place in memory


@dataclass(eq=False)
class Node:
    """An operation.

    Attributes:
        place: in the order of computation.
        name: the operation's, or `part` of an operation that gives several values.
        inputs: nodes whose values it takes.
        reads: tensors, or the modules whose tensors it reads.
        call: computes the value, of the operations and the inputs' values.
    """

    place: int
    name: str
    inputs: tuple[Node, ...]
    reads: tuple[str, ...]
    call: Callable[[Operations[Any], Sequence[Any]], Any]

    def touches(self, changed: frozenset[str]) -> bool:
        """Whether it reads one of these tensors."""
        return any(tensor == name or tensor.startswith(f"{name}.") for name in self.reads for tensor in changed)


class Graph(Operations[Node]):
    """The nodes of one architecture's forward pass, and the kept values of the unchanged model."""

    def __init__(self, architecture: Architecture) -> None:
        self.nodes: list[Node] = []
        self.kept: dict[int, Any] = {}
        self.output = architecture.forward(self)

    # ---- computation ------------------------------------------------------------------------------------------------

    def run(self, ops: Operations[Any], changed: frozenset[str] = frozenset()) -> np.ndarray:
        """The final hidden states that `ops` gives, float32 [N, hidden].

        changed: the tensors that differ from those of the first run, whose values are taken where they are the same. The first
        run, of the unchanged model, computes all and keeps what later ones begin from.
        """
        first = not self.kept
        dirty = self._behind(changed)
        needed, waiting = set(), [self.output]
        while waiting:
            node = waiting.pop()
            if node.place not in needed:
                needed.add(node.place)
                waiting += [] if self._known(node, dirty) else node.inputs
        uses = [0] * len(self.nodes)
        for node in self.nodes:
            if node.place in needed and not self._known(node, dirty):
                for one in node.inputs:
                    uses[one.place] += 1
        values: dict[int, Any] = {}
        for node in self.nodes:
            if node.place not in needed:
                continue
            if self._known(node, dirty):
                values[node.place] = self.kept[node.place]
                continue
            inputs = [values[one.place] for one in node.inputs]
            if node.name in IN_PLACE:
                inputs = [
                    value.copy() if one.place in self.kept or uses[one.place] > 1 else value
                    for one, value in zip(node.inputs, inputs, strict=True)
                ]
            value = node.call(ops, inputs)
            for one in node.inputs:
                uses[one.place] -= 1
                if not uses[one.place]:
                    del values[one.place]
            values[node.place] = value
            if first and (node.name in ("embed", "add") or node is self.output):
                self.kept[node.place] = value
        found: np.ndarray = values[self.output.place]
        return found

    def _known(self, node: Node, dirty: set[int]) -> bool:
        return node.place in self.kept and node.place not in dirty

    def _behind(self, changed: frozenset[str]) -> set[int]:
        """The nodes whose values these tensors change."""
        dirty: set[int] = set()
        for node in self.nodes:
            if node.touches(changed) or any(one.place in dirty for one in node.inputs):
                dirty.add(node.place)
        return dirty

    # ---- recording --------------------------------------------------------------------------------------------------

    def _node(self, name: str, inputs: Sequence[Node], reads: Sequence[str], call: Callable[..., Any]) -> Node:
        node = Node(len(self.nodes), name, tuple(inputs), tuple(reads), call)
        self.nodes.append(node)
        return node

    def _parts(self, whole: Node, count: int) -> tuple[Node, ...]:
        return tuple(self._node("part", [whole], [], lambda ops, v, i=i: v[0][i]) for i in range(count))

    def embed(self, name: str) -> Node:
        return self._node("embed", [], [name], lambda ops, v: ops.embed(name))

    def positions(self, name: str) -> Node:
        return self._node("positions", [], [name], lambda ops, v: ops.positions(name))

    def rms_norm(self, x: Node, name: str, epsilon: float) -> Node:
        return self._node("rms_norm", [x], [name], lambda ops, v: ops.rms_norm(v[0], name, epsilon))

    def layer_norm(self, x: Node, name: str, epsilon: float) -> Node:
        return self._node("layer_norm", [x], [name], lambda ops, v: ops.layer_norm(v[0], name, epsilon))

    def head_norm(self, x: Node, heads: int, name: str, epsilon: float) -> Node:
        return self._node("head_norm", [x], [name], lambda ops, v: ops.head_norm(v[0], heads, name, epsilon))

    def linear(self, x: Node, name: str) -> Node:
        return self._node("linear", [x], [name], lambda ops, v: ops.linear(v[0], name))

    def linears(self, x: Node, names: tuple[str, ...]) -> tuple[Node, ...]:
        whole = self._node("linears", [x], names, lambda ops, v: ops.linears(v[0], names))
        return self._parts(whole, len(names))

    def split(self, x: Node, widths: tuple[int, ...]) -> tuple[Node, ...]:
        return self._parts(self._node("split", [x], [], lambda ops, v: ops.split(v[0], widths)), len(widths))

    def rope(self, x: Node, heads: int, rope: Rope, first: int = 0) -> Node:
        return self._node("rope", [x], [], lambda ops, v: ops.rope(v[0], heads, rope, first))

    def attention(self, query: Node, key: Node, value: Node, heads: Heads) -> Node:
        reads = [heads.sinks] if heads.sinks else []
        return self._node("attention", [query, key, value], reads, lambda ops, v: ops.attention(v[0], v[1], v[2], heads))

    def latent_attention(self, query: Node, latent: Node, key: Node, name: str, heads: Latent) -> Node:
        return self._node(
            "latent_attention",
            [query, latent, key],
            [name],
            lambda ops, v: ops.latent_attention(v[0], v[1], v[2], name, heads),
        )

    def gated(self, x: Node, gate: str, up: str) -> Node:
        return self._node("gated", [x], [gate, up], lambda ops, v: ops.gated(v[0], gate, up))

    def activated(self, x: Node, name: str, activation: str = "gelu_tanh") -> Node:
        return self._node("activated", [x], [name], lambda ops, v: ops.activated(v[0], name))

    def route(self, x: Node, name: str, router: Router) -> Node:
        reads = [name, *([router.correction] if router.correction else [])]
        return self._node("route", [x], reads, lambda ops, v: ops.route(v[0], name, router))

    def experts(self, x: Node, routing: Node, name: str, gate: Gate) -> Node:
        return self._node("experts", [x, routing], [name], lambda ops, v: ops.experts(v[0], v[1], name, gate))

    def scaled_by_gate(self, x: Node, y: Node, name: str) -> Node:
        return self._node("scaled_by_gate", [x, y], [name], lambda ops, v: ops.scaled_by_gate(v[0], v[1], name))

    def add(self, x: Node, y: Node) -> Node:
        return self._node("add", [x, y], [], lambda ops, v: ops.add(v[0], v[1]))
