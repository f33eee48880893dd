"""Where stacks of experts lie in containers: published files hold one tensor for each expert and projection, GGUF stacks.

Read besides: transformers 5's stacks in memory as `save_pretrained(save_original_format=False)` leaves them, with the rows of
gate before those of up; llama.cpp's fused stacks (`--fuse-gate-up-exps`); single experts in GGUF files from before April 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from oss_tools.models.tensors import Placement, TensorSpec, whole


@dataclass(frozen=True)
class Names:
    """How a family's published files name what is canonically `mlp.gate` and `mlp.experts.*`.

    Attributes:
        block: in place of `mlp`.
        projections: canonical name -> theirs.
    """

    block: str = "mlp"
    projections: Mapping[str, str] = field(default_factory=dict)

    def module_of(self, name: str) -> str:
        """A tensor's published name."""
        return name.replace(".mlp.", f".{self.block}.")

    def expert(self, name: str, number: int) -> str:
        """The published name of one expert's weight, from its stack's canonical name."""
        stack, _, projection = self.module_of(name).rpartition(".")
        return f"{stack}.{number}.{self.projections.get(projection, projection)}.weight"


def _one_by_one(spec: TensorSpec, names: list[str]) -> list[Placement]:
    """Each expert's matrix in a tensor of its own."""
    _, rows, _ = spec.matrices
    return [Placement(name, spec.shape[1:], rows, rows, matrix=number) for number, name in enumerate(names)]


def _fused(spec: TensorSpec, name: str) -> list[Placement]:
    """In a stack of gate and up, all rows of an expert's gate before those of its up."""
    experts, rows, columns = spec.matrices
    offset = rows if spec.role == "experts.up" else 0
    return [Placement(name, (experts, 2 * rows, columns), rows, 2 * rows, offset=offset)]


def _part(spec: TensorSpec) -> str:
    """gate, up or down."""
    return spec.role.removeprefix("experts.")


def hugging_face(spec: TensorSpec, names: Names) -> list[Placement]:
    """In a Hugging Face folder as published."""
    return _one_by_one(spec, [names.expert(spec.name, number) for number in range(spec.shape[0])])


def other_hugging_face(spec: TensorSpec, names: Names) -> Iterator[list[Placement]]:
    """As transformers 5 has them in memory: under `mlp`, whatever the family."""
    stack = spec.name.rpartition(".")[0]
    if _part(spec) == "down":
        yield whole(spec.name, spec.shape, spec)
    else:
        yield _fused(spec, f"{stack}.gate_up_proj")
    if names != Names():
        yield _one_by_one(spec, [Names().expert(spec.name, number) for number in range(spec.shape[0])])


def gguf(spec: TensorSpec, names: Names) -> list[Placement]:
    """In a GGUF file."""
    return whole(f"blk.{spec.layer}.ffn_{_part(spec)}_exps.weight", spec.shape, spec)


def other_gguf(spec: TensorSpec, names: Names) -> Iterator[list[Placement]]:
    """Fused, or one by one."""
    layer = f"blk.{spec.layer}."
    if _part(spec) != "down":
        yield _fused(spec, f"{layer}ffn_gate_up_exps.weight")
    yield _one_by_one(spec, [f"{layer}ffn_{_part(spec)}.{number}.weight" for number in range(spec.shape[0])])
