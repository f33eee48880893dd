"""Decoders with a mixture of experts in place of the MLP (https://arxiv.org/abs/2101.03961), in all layers or in some.

The canonical tensors of a layer's experts are stacks: `mlp.experts.gate_proj` and `up_proj` [experts, inner, hidden], `down_proj`
[experts, hidden, inner]; the router is `mlp.gate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from oss_tools.models import expert_places
from oss_tools.models.decoder import Decoder
from oss_tools.models.decoder_config import ExpertsConfig
from oss_tools.models.operations import SILU, Operations, Router, Value
from oss_tools.models.tensors import Placement, TensorSpec, whole


class SparseDecoder(Decoder):
    """Such a model.

    Attributes:
        expert_names: how published files name a layer's experts.
        shared: the module of the experts that every token has, if there are some.
        shared_has_gate: whether a gate of the input weighs what they give.
    """

    expert_names: ClassVar[expert_places.Names] = expert_places.Names()
    shared: ClassVar[str] = "shared_expert"
    shared_has_gate: ClassVar[bool] = True
    config: ExpertsConfig

    def _mlp_tensors(self, layer: int, at: str) -> Iterator[TensorSpec]:
        c = self.config
        if layer in c.mlp_only_layers:
            yield from super()._mlp_tensors(layer, at)
            return
        experts, inner, hidden = c.num_local_experts, c.moe_intermediate_size, c.hidden_size
        yield TensorSpec(at + "gate.weight", (experts, hidden), "router", layer)
        for part, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            yield TensorSpec(f"{at}experts.{part}_proj", (experts, *shape), f"experts.{part}", layer)
        if c.shared_expert_intermediate_size:
            yield from self._gated_tensors(layer, f"{at}{self.shared}.", c.shared_expert_intermediate_size)
        if c.shared_expert_intermediate_size and self.shared_has_gate:
            yield TensorSpec(f"{at}{self.shared}_gate.weight", (1, hidden), "router", layer)

    def placements(self, container: str, spec: TensorSpec, is_float: bool) -> list[Placement]:
        if spec.role.startswith("experts."):
            ways = {"hf": expert_places.hugging_face, "gguf": expert_places.gguf}
            return ways[container](spec, self.expert_names)
        if container == "gguf" and spec.name.endswith("shared_expert_gate.weight"):  # a vector there
            _, _, columns = spec.matrices
            return [Placement(f"blk.{spec.layer}.ffn_gate_inp_shexp.weight", (columns,), count=1, stored_rows=1)]
        if container == "hf":
            return whole(self.expert_names.module_of(spec.name), spec.shape, spec)
        return super().placements(container, spec, is_float)

    def other_placements(self, container: str, spec: TensorSpec, is_float: bool) -> Iterator[list[Placement]]:
        if spec.role.startswith("experts."):
            ways = {"hf": expert_places.other_hugging_face, "gguf": expert_places.other_gguf}
            yield from ways[container](spec, self.expert_names)
        elif spec.role == "router" and container == "hf":
            yield whole(spec.name, spec.shape, spec)  # transformers 5's name
        else:
            yield from super().other_placements(container, spec, is_float)

    def active_parameters(self) -> int:
        c = self.config
        experts = sum(spec.size for spec in self.tensors() if spec.role.startswith("experts."))
        return super().active_parameters() - experts + experts * c.num_experts_per_tok // c.num_local_experts

    def router(self, at: str) -> Router:
        """How the router of the layer whose MLP is `at` chooses."""
        c = self.config
        return Router(c.num_local_experts, c.num_experts_per_tok, renormalized=c.norm_topk_prob)

    def _mlp(self, ops: Operations[Value], x: Value, at: str, layer: int) -> Value:
        c = self.config
        if layer in c.mlp_only_layers:
            return super()._mlp(ops, x, at, layer)
        routing = ops.route(x, f"{at}.gate", self.router(at))
        y = ops.experts(x, routing, f"{at}.experts", SILU)
        if c.shared_expert_intermediate_size:
            shared = super()._mlp(ops, x, f"{at}.{self.shared}", layer)
            if self.shared_has_gate:
                shared = ops.scaled_by_gate(x, shared, f"{at}.{self.shared}_gate")
            y = ops.add(y, shared)
        return y
