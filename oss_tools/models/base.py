"""What an architecture is: its tensors under their Hugging Face names, and where each lies in every container.

An architecture is one file in this package, registered by its model_type. Hugging Face names and shapes are the canonical
ones, with two exceptions that make row ranges meaningful everywhere: weights are always [..., out, in], and expert
weights are stacked [experts, out, in].
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from oss_tools.checkpoints import Reader
from oss_tools.errors import BadCheckpoint
from oss_tools.models.operations import Heads, Operations, Value

VECTOR_ROLES = ("norm", "bias", "sinks", "rope")  # last axis is the row axis: see TensorSpec.matrices


@dataclass(frozen=True)
class TensorSpec:
    """A canonical tensor.

    Attributes:
        name: Hugging Face parameter name, without format suffixes (`_blocks`, `_packed`, …).
        shape: [out, in], [experts, out, in], [n] or [experts, n].
        role: what it is for, as recipes name it: embedding, output, attention.q, attention.k, attention.v,
            attention.out, router, experts.gate_up, experts.down, mlp.gate, mlp.up, mlp.down, norm, bias, sinks, rope.
        layer: the decoder layer, or None.
        optional: whether a checkpoint may lack it (a tied lm_head, a bias).
    """

    name: str
    shape: tuple[int, ...]
    role: str
    layer: int | None = None
    optional: bool = False

    @property
    def is_vector(self) -> bool:
        """Whether it has no input axis: norms, biases, sinks. Such tensors stay plain floats."""
        return self.role in VECTOR_ROLES

    @property
    def matrices(self) -> tuple[int, int, int]:
        """(matrices, rows, columns): how it is read and written, one matrix at a time. A vector is a column: [n, 1]."""
        shape = (*self.shape, 1) if self.is_vector else self.shape
        count = 1
        for axis in shape[:-2]:
            count *= axis
        return count, shape[-2], shape[-1]

    @property
    def size(self) -> int:
        """Number of values."""
        count, rows, columns = self.matrices
        return count * rows * columns


@dataclass(frozen=True)
class Placement:
    """Where rows of a canonical matrix lie in a stored tensor.

    The canonical rows first, first + step, first + 2 step, … (`count` of them) are the stored matrix's rows
    offset, offset + 1, …, of `stored_rows` in all. A canonical tensor has one placement or several that together cover it.

    Attributes:
        stored: the tensor's name in the container.
        first, step, count: which canonical rows.
        offset, stored_rows: which rows of each stored matrix.
        rotary: rows of one attention head if the container interleaves the two halves of each head (GGUF's llama
            family: stored row 2 t + h of a head is canonical row h · rotary / 2 + t), else 0.
        transposed: the stored matrices are [in, out].
        matrix: the only canonical matrix that the stored tensor holds (one expert of a stack); None if it holds all of them.
        stored_shape: the stored tensor's whole shape.
    """

    stored: str
    stored_shape: tuple[int, ...]
    count: int
    stored_rows: int
    first: int = 0
    step: int = 1
    offset: int = 0
    rotary: int = 0
    transposed: bool = False
    matrix: int | None = None

    def head_order(self) -> np.ndarray:
        """For `rotary`: the canonical row, within a head, of each stored row."""
        return np.arange(self.rotary).reshape(2, self.rotary // 2).T.reshape(-1)


class Architecture(ABC):
    """A model_type: its configuration in the terms of every container, its tensors, and where they lie.

    Attributes:
        model_type: `model_type` in config.json.
        gguf_name: `general.architecture` in GGUF files.
        containers: the containers that can hold it.
        remarks: what a user should know about how the configuration was read, a sentence each.
    """

    model_type: ClassVar[str] = ""
    gguf_name: ClassVar[str] = ""
    containers: ClassVar[tuple[str, ...]] = ("hf", "gguf")
    remarks: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.model_type:
            _REGISTRY[cls.model_type] = cls

    @classmethod
    @abstractmethod
    def from_config(cls, container: str, raw: Mapping[str, Any], reader: Reader | None = None) -> Architecture:
        """From a container's raw configuration. Raises BadCheckpoint naming a missing or absurd field.

        `reader` is the open container, for what only its tensors tell (GGUF files do not say whether embeddings are tied);
        None when the configuration stands alone.
        """

    @abstractmethod
    def hf_config(self) -> dict[str, Any]:
        """config.json's content, without `quantization_config`."""

    @abstractmethod
    def container_config(self, container: str) -> dict[str, Any]:
        """The configuration in a container's own terms: GGUF key-values, the original config.json; {} for hf."""

    @abstractmethod
    def computation(self) -> dict[str, Any]:
        """What the configuration decides about what is computed, in the same terms whatever container it was read from: name ->
        value, in Hugging Face's words, defaults filled in. Two models of one architecture whose tensors and computation are
        equal give the same logits for the same tokens."""

    @abstractmethod
    def tensors(self) -> list[TensorSpec]:
        """All canonical tensors, in order: embedding, layers, final norm, output."""

    @abstractmethod
    def placements(self, container: str, spec: TensorSpec, is_float: bool) -> list[Placement]:
        """Where a canonical tensor lies in a container. `is_float`: whether it is stored in a plain float format there
        (unquantized gpt-oss experts are transposed in Hugging Face's layout)."""

    def other_placements(self, container: str, spec: TensorSpec, is_float: bool) -> Iterator[list[Placement]]:
        """Where other programs put a canonical tensor, for reading: tried in order if it is not where `placements` says."""
        yield from ()

    def derived_tensors(self, container: str) -> dict[str, np.ndarray]:
        """float32 tensors that a container wants although they follow from the configuration (GGUF's rope_freqs). They are
        written with the rest, and passed over when read."""
        return {}

    def is_ignored(self, stored: str) -> bool:
        """Whether a stored tensor carries no information (a rotary buffer of old checkpoints)."""
        return False

    @abstractmethod
    def active_parameters(self) -> int:
        """Parameters that one token's forward pass reads (the chosen experts only, one row of the embedding's table counted
        as the published model cards do)."""

    # ---- forward pass -----------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def context(self) -> int:
        """The most positions that the model was made for."""

    @abstractmethod
    def attention_layers(self) -> list[Heads]:
        """The shape of each layer's attention, and so of its KV cache."""

    @abstractmethod
    def forward(self, ops: Operations[Value]) -> Value:
        """The final hidden states, normed, of the batch that `ops` holds: [T, hidden]."""

    def logits(self, ops: Operations[Value], hidden: Value) -> Value:
        """The next token's logits from hidden states: [T, vocabulary]."""
        return ops.linear(hidden, "lm_head")


_REGISTRY: dict[str, type[Architecture]] = {}


def architectures() -> dict[str, type[Architecture]]:
    """Every architecture by model_type."""
    package = importlib.import_module("oss_tools.models")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"oss_tools.models.{module.name}")
    return dict(_REGISTRY)


def architecture_of(model_type: str) -> type[Architecture]:
    """The architecture with this model_type, or this name in GGUF. Raises BadCheckpoint with the names there are."""
    known = architectures()
    for architecture in known.values():
        if model_type in (architecture.model_type, architecture.gguf_name):
            return architecture
    raise BadCheckpoint(f"architecture {model_type!r} is not supported; supported: {', '.join(sorted(known))}")


def whole(name: str, shape: tuple[int, ...], spec: TensorSpec, **options: Any) -> list[Placement]:
    """The placement of a tensor that is stored alone and in order."""
    _, rows, _ = spec.matrices
    return [Placement(name, shape, count=rows, stored_rows=rows, **options)]


def field(raw: Mapping[str, Any], key: str, kind: type, where: str, low: float, high: float) -> Any:
    """A required number of a configuration, checked: its type and low <= value <= high. Raises BadCheckpoint."""
    value: Any = raw.get(key)
    expected = (int, float) if kind is float else (kind,)
    if isinstance(value, bool) or not isinstance(value, expected):
        wanted = "a number" if kind is float else "an integer"
        raise BadCheckpoint(f"{where}: {key} is {shown(value)}, expected {wanted}")
    number: Any = value
    if not low <= number <= high:
        raise BadCheckpoint(f"{where}: {key} is {shown(value)}, outside {low}..{high}")
    return kind(number)


def shown(value: Any) -> str:
    """A value from a strange file as a message may show it: on one line, and not all of a long one."""
    return repr(value)[:80]
