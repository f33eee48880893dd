"""Which tensors a forward pass multiplies as one, and which it uses together: what a run-ready file puts beside each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oss_tools.checkpoints.ready_layout import Group
from oss_tools.models.base import Architecture
from oss_tools.models.operations import Gate, Heads, Latent, Operations, Rope, Router


def stacks_of(architecture: Architecture) -> list[Group]:
    """The stacks of a model, in the order in which a token meets them: of dense layers each alone, of experts those of a layer
    together. Names are those that `Architecture.tensors` may have; a tied output is named too."""
    tracer = _Tracer({spec.name for spec in architecture.tensors()})
    architecture.logits(tracer, architecture.forward(tracer))
    return tracer.groups


@dataclass(frozen=True)
class ExpertLayer:
    """The experts of a layer.

    Attributes:
        name: their module.
        stacks: what comes before the gate, and what after it: names of tensors, and whether their rows take turns.
        router: how many there are, and how many a token has.
    """

    name: str
    stacks: Group
    router: Router


def expert_layers(architecture: Architecture) -> list[ExpertLayer]:
    """The layers of a model that have experts, in the order in which a token meets them."""
    tracer = _Tracer({spec.name for spec in architecture.tensors()})
    architecture.forward(tracer)
    return tracer.experts_of


class _Tracer(Operations[Any]):
    """Carries out nothing, and takes note of weights."""

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self.groups: list[Group] = []
        self.experts_of: list[ExpertLayer] = []

    def _stack(self, *modules: str, interleave: bool = False) -> tuple[list[str], bool]:
        return [f"{m}.weight" if f"{m}.weight" in self._names else m for m in modules], interleave

    def embed(self, name: str) -> None:
        self.groups.append([([name], False)])

    positions = embed

    def linear(self, x: None, name: str) -> None:
        self.groups.append([self._stack(name)])

    def linears(self, x: None, names: tuple[str, ...]) -> tuple[None, ...]:
        self.groups.append([self._stack(*names)])
        return (None,) * len(names)

    def gated(self, x: None, gate: str, up: str) -> None:
        self.groups.append([self._stack(gate, up, interleave=True)])

    def activated(self, x: None, name: str, activation: str = "gelu_tanh") -> None:
        self.linear(x, name)

    def route(self, x: None, name: str, router: Router) -> Router:
        self.linear(x, name)
        return router

    def scaled_by_gate(self, x: None, y: None, name: str) -> None:
        self.linear(x, name)

    def experts(self, x: None, routing: Router, name: str, gate: Gate) -> None:
        together = f"{name}.gate_up_proj" in self._names
        first = (
            self._stack(f"{name}.gate_up_proj")
            if together
            else self._stack(f"{name}.gate_proj", f"{name}.up_proj", interleave=True)
        )
        self.groups.append([first, self._stack(f"{name}.down_proj")])
        self.experts_of.append(ExpertLayer(name, self.groups[-1], routing))

    def split(self, x: None, widths: tuple[int, ...]) -> tuple[None, ...]:
        return (None,) * len(widths)

    def latent_attention(self, query: None, latent: None, key: None, name: str, heads: Latent) -> None:
        """Its weights are transposed for kernels, head by head, and no rows of a stack."""

    def rms_norm(self, x: None, name: str, epsilon: float) -> None: ...
    def layer_norm(self, x: None, name: str, epsilon: float) -> None: ...
    def head_norm(self, x: None, heads: int, name: str, epsilon: float) -> None: ...
    def rope(self, x: None, heads: int, rope: Rope, first: int = 0) -> None: ...
    def attention(self, query: None, key: None, value: None, heads: Heads) -> None: ...
    def add(self, x: None, y: None) -> None: ...
