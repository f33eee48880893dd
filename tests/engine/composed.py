"""A model that is composed of any of the operations, with random weights in memory, to hold backends against each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from oss_tools.checkpoints import Metadata
from oss_tools.formats import QTensor, get_format
from oss_tools.models import Architecture, Checkpoint, Entry, Placement, TensorSpec
from oss_tools.models.operations import SILU, Gate, Heads, Latent, Operations, Rope, Router, Value
from oss_tools.models.stored import Stored
from oss_tools.models.tensors import whole

CONTEXT = 256


@dataclass(frozen=True)
class Parts:
    """What the model is made of.

    Attributes:
        hidden, inner, vocabulary, layers: sizes.
        heads: of the attention, or its latent form; every layer has the same.
        query_rank: of the latent form's queries, which are projected twice, or 0.
        rope: pairs of a head that are rotated (0 for none, with learned positions), and whether they are neighbours.
        interleaved: whether pairs are neighbours.
        layer_norms: LayerNorm instead of RMSNorm.
        head_norms: of queries and keys.
        biases: of all projections.
        mlp: "gated", "gelu", "experts".
        router, shared: of experts; shared is "", "plain" or "gated".
        gate: of experts.
        tied: whether the embedding is the output.
    """

    hidden: int
    inner: int
    vocabulary: int
    layers: int
    heads: Heads | Latent
    query_rank: int = 0
    pairs: int = 0
    interleaved: bool = False
    layer_norms: bool = False
    head_norms: bool = False
    biases: bool = False
    mlp: str = "gated"
    router: Router | None = None
    shared: str = ""
    gate: Gate = SILU
    tied: bool = False


class Composed(Architecture):
    """The architecture that parts make."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.config = SimpleNamespace(num_experts_per_tok=parts.router.chosen if parts.router else 1)

    @classmethod
    def from_words(cls, container: str, raw: Mapping[str, Any], stored: Stored) -> Composed:
        raise NotImplementedError

    def hf_config(self) -> dict[str, Any]:
        return {}

    def words(self, container: str) -> dict[str, Any]:
        return {}

    def said(self, names: Iterable[str]) -> dict[str, Any]:
        return {}

    def computation(self) -> dict[str, Any]:
        return {}

    def active_parameters(self) -> int:
        return 0

    def placements(self, container: str, spec: TensorSpec, is_float: bool) -> list[Placement]:
        return whole(spec.name, spec.shape, spec)

    @property
    def context(self) -> int:
        return CONTEXT

    # ---- tensors ----------------------------------------------------------------------------------------------------

    def tensors(self) -> list[TensorSpec]:
        p, specs = self.parts, []

        def matrix(name: str, *shape: int, role: str = "matrix", bias: bool = p.biases) -> None:
            specs.append(TensorSpec(f"{name}.weight", shape, role))
            if bias:
                specs.append(TensorSpec(f"{name}.bias", (*shape[:-2], shape[-2]), "bias"))

        def norm(name: str, size: int) -> None:
            specs.append(TensorSpec(f"{name}.weight", (size,), "norm"))
            if p.layer_norms:
                specs.append(TensorSpec(f"{name}.bias", (size,), "bias"))

        matrix("words", p.vocabulary, p.hidden, role="embedding", bias=False)
        if not p.pairs:
            matrix("places", CONTEXT, p.hidden, bias=False)
        for layer in range(p.layers):
            at = f"{layer}."
            norm(at + "before", p.hidden)
            if isinstance(h := p.heads, Latent):
                width = h.queries * (h.nope + h.rope)
                if p.query_rank:
                    matrix(at + "q_a", p.query_rank, p.hidden)
                    specs.append(TensorSpec(at + "q_norm.weight", (p.query_rank,), "norm"))
                matrix(at + "q", width, p.query_rank or p.hidden)
                matrix(at + "kv_a", h.size, p.hidden)
                specs.append(TensorSpec(at + "kv_norm.weight", (h.rank,), "norm"))
                matrix(at + "kv_b", h.queries * (h.nope + h.value), h.rank, bias=False)
                matrix(at + "o", p.hidden, h.queries * h.value)
            else:
                for name, count in (("q", h.queries), ("k", h.keys), ("v", h.keys)):
                    matrix(at + name, count * h.size, p.hidden)
                matrix(at + "o", p.hidden, h.queries * h.size)
                if p.head_norms:
                    specs += [TensorSpec(f"{at}{name}_norm.weight", (h.size,), "norm") for name in "qk"]
            norm(at + "between", p.hidden)
            if p.router:
                self._experts(specs, at, p.router, matrix)
            if p.mlp == "gelu":
                matrix(at + "up", p.inner, p.hidden)
            if p.mlp == "gated" or p.shared:
                matrix(at + "gate", p.inner, p.hidden)
                matrix(at + "up", p.inner, p.hidden)
            if p.mlp != "experts" or p.shared:
                matrix(at + "down", p.hidden, p.inner)
            if p.shared == "gated":
                matrix(at + "shared_gate", 1, p.hidden, bias=False)
        norm("after", p.hidden)
        if not p.tied:
            matrix("lm_head", p.vocabulary, p.hidden, role="output", bias=False)
        return specs

    def _experts(self, specs: list[TensorSpec], at: str, router: Router, matrix: Any) -> None:
        p, count = self.parts, router.experts
        matrix(at + "router", count, p.hidden)
        if router.correction:
            specs.append(TensorSpec("correction", (count,), "bias")) if at == "0." else None
        if p.gate.form == "swiglu_oai":
            shapes = {"gate_up_proj": (2 * p.inner, p.hidden)}
        else:
            shapes = {"gate_proj": (p.inner, p.hidden), "up_proj": (p.inner, p.hidden)}
        for name, shape in (shapes | {"down_proj": (p.hidden, p.inner)}).items():
            specs.append(TensorSpec(f"{at}experts.{name}", (count, *shape), "experts.matrix"))
            if p.biases:
                specs.append(TensorSpec(f"{at}experts.{name}_bias", (count, shape[0]), "bias"))

    # ---- forward pass -----------------------------------------------------------------------------------------------

    def attention_layers(self) -> list[Heads | Latent]:
        fields = vars(self.parts.heads)
        return [type(self.parts.heads)(**(fields | {"layer": layer})) for layer in range(self.parts.layers)]

    def _norm(self, ops: Operations[Value], x: Value, name: str) -> Value:
        return ops.layer_norm(x, name, 1e-5) if self.parts.layer_norms else ops.rms_norm(x, f"{name}.weight", 1e-6)

    def forward(self, ops: Operations[Value]) -> Value:
        p = self.parts
        rope = Rope((0.3 ** np.arange(p.pairs)).astype(np.float32), 1.1, p.interleaved) if p.pairs else None
        x = ops.embed("words.weight")
        if not rope:
            x = ops.add(x, ops.positions("places.weight"))
        for layer, heads in enumerate(self.attention_layers()):
            at = f"{layer}."
            normed = self._norm(ops, x, at + "before")
            attend = self._latent if isinstance(heads, Latent) else self._attention
            x = ops.add(x, ops.linear(attend(ops, normed, at, heads, rope), at + "o"))
            normed = self._norm(ops, x, at + "between")
            if p.mlp == "gelu":
                x = ops.add(x, ops.linear(ops.activated(normed, at + "up"), at + "down"))
            if p.router:
                routing = ops.route(normed, at + "router", p.router)
                y = ops.experts(normed, routing, at + "experts", p.gate)
                if p.shared:
                    shared = ops.linear(ops.gated(normed, at + "gate", at + "up"), at + "down")
                    y = ops.add(y, ops.scaled_by_gate(normed, shared, at + "shared_gate") if p.shared == "gated" else shared)
                x = ops.add(x, y)
            elif p.mlp == "gated":
                x = ops.add(x, ops.linear(ops.gated(normed, at + "gate", at + "up"), at + "down"))
        return self._norm(ops, x, "after")

    def _attention(self, ops: Operations[Value], x: Value, at: str, heads: Heads, rope: Rope | None) -> Value:
        q, k, v = ops.linears(x, (at + "q", at + "k", at + "v"))
        if self.parts.head_norms:
            q = ops.head_norm(q, heads.queries, at + "q_norm.weight", 1e-6)
            k = ops.head_norm(k, heads.keys, at + "k_norm.weight", 1e-6)
        if rope:
            q, k = ops.rope(q, heads.queries, rope), ops.rope(k, heads.keys, rope)
        return ops.attention(q, k, v, heads)

    def _latent(self, ops: Operations[Value], x: Value, at: str, heads: Latent, rope: Rope | None) -> Value:
        assert rope
        given = x
        if self.parts.query_rank:
            given = ops.rms_norm(ops.linear(x, at + "q_a"), at + "q_norm.weight", 1e-6)
        query = ops.rope(ops.linear(given, at + "q"), heads.queries, rope, first=heads.nope)
        latent, key = ops.split(ops.linear(x, at + "kv_a"), (heads.rank, heads.rope))
        latent = ops.rms_norm(latent, at + "kv_norm.weight", 1e-6)
        return ops.latent_attention(query, latent, ops.rope(key, 1, rope), at + "kv_b", heads)


class InMemory(Checkpoint):
    """Random weights of an architecture; matrices in `form` where their columns divide into its blocks."""

    def __init__(self, architecture: Architecture, form: str = "f32", seed: int = 0) -> None:
        self.architecture, self.path, self.container, self.remarks = architecture, Path("memory"), "hf", []
        rng = np.random.default_rng(seed)
        self._held: dict[str, QTensor] = {}
        self.entries: dict[str, Entry] = {}
        for spec in architecture.tensors():
            _, _, columns = spec.matrices
            values = rng.normal(size=spec.shape) * (0.5 if spec.is_vector else columns**-0.5) + (spec.role == "norm")
            wanted = form if not spec.is_vector and columns % 32 == 0 else "f32"
            given = values[..., None] if spec.is_vector else values
            held = get_format(wanted).quantize(given.reshape(-1, columns).astype(np.float32))
            self._held[spec.name] = held
            self.entries[spec.name] = Entry(spec, held.format, tuple(architecture.placements("hf", spec, True)))

    def panels(self, names: Sequence[str], interleave: bool) -> None:
        """Nothing lies in a file."""

    def is_in_panels(self, name: str) -> bool:
        return False

    def read(self, name: str, matrix: int, start: int, stop: int) -> QTensor:
        _, rows, _ = self.entries[name].spec.matrices
        return self._held[name].rows(slice(matrix * rows + start, matrix * rows + stop))

    def metadata(self) -> Metadata:
        return Metadata({})

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in self._held.values())


# ---- drawn models ---------------------------------------------------------------------------------------------------


@st.composite
def routers(draw: st.DrawFn) -> Router:
    """Every kind of router, over numbers of experts that are no powers of two."""
    groups, size = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    chosen_groups = draw(st.integers(1, groups))
    score = draw(st.sampled_from(["softmax", "sigmoid"]))
    return Router(
        groups * size,
        draw(st.integers(1, size * chosen_groups)),
        score,
        renormalized=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.5])),
        correction=draw(st.sampled_from([None, "correction"])),
        groups=groups,
        groups_chosen=chosen_groups,
        group_score=draw(st.sampled_from(["top2", "max"])),
    )


@st.composite
def usual(draw: st.DrawFn) -> Parts:
    """Dense models and mixtures with ordinary attention."""
    size, keys, group = 2 * draw(st.integers(1, 40)), draw(st.integers(1, 3)), draw(st.integers(1, 7))
    mlp = draw(st.sampled_from(["gated", "gelu", "experts"]))
    heads = Heads(
        0, keys * group, keys, size, draw(st.sampled_from([None, 5, 70])), scale=draw(st.sampled_from([None, 0.3]))
    )
    return Parts(
        draw(st.integers(8, 100)),
        draw(st.integers(1, 100)),
        draw(st.integers(2, 200)),
        draw(st.integers(1, 2)),
        heads,
        pairs=draw(st.integers(0, size // 2)),
        interleaved=draw(st.booleans()),
        layer_norms=draw(st.booleans()),
        head_norms=draw(st.booleans()),
        biases=draw(st.booleans()),
        mlp=mlp,
        router=draw(routers()) if mlp == "experts" else None,
        shared=draw(st.sampled_from(["", "plain", "gated"])) if mlp == "experts" else "",
        gate=draw(st.sampled_from([SILU, Gate("swiglu_oai", 0.5)])),
        tied=draw(st.booleans()),
    )


@st.composite
def latents(draw: st.DrawFn) -> Parts:
    """Models with latent attention."""
    rope = 2 * draw(st.integers(1, 20))
    heads = Latent(
        0,
        draw(st.integers(1, 11)),
        draw(st.integers(1, 70)),
        rope,
        draw(st.integers(1, 70)),
        draw(st.one_of(st.integers(1, 80), st.sampled_from([32, 96, 300]))),
        draw(st.sampled_from([None, 0.3])),
    )
    mlp = draw(st.sampled_from(["gated", "experts"]))
    return Parts(
        draw(st.integers(8, 100)),
        draw(st.integers(1, 100)),
        draw(st.integers(2, 200)),
        draw(st.integers(1, 2)),
        heads,
        query_rank=draw(st.sampled_from([0, 24, 45])),
        pairs=rope // 2,
        interleaved=draw(st.booleans()),
        biases=draw(st.booleans()),
        mlp=mlp,
        router=draw(routers()) if mlp == "experts" else None,
        shared=draw(st.sampled_from(["", "plain"])) if mlp == "experts" else "",
    )
