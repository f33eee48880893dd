"""What an architecture is: its tensors under their Hugging Face names, and where each lies in every container.

An architecture is one file in this package, registered by its model_type. Hugging Face names and shapes are the canonical
ones, with two exceptions that make row ranges meaningful everywhere: weights are always [..., out, in], and expert
weights are stacked [experts, out, in].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from oss_tools.checkpoints import Reader
from oss_tools.errors import BadCheckpoint
from oss_tools.models.fields import shown
from oss_tools.models.operations import Heads, Latent, Operations, Value
from oss_tools.models.own_keys import PREFIX, check_agreement, own_keys
from oss_tools.models.stacks import stacks_of
from oss_tools.models.stored import ROPE_FREQS, Stored
from oss_tools.models.tensors import Placement, TensorSpec, whole
from oss_tools.rooms import modules_of

READY = "ready"  # the run-ready file
# Containers with names and an order of their own; any other has the canonical ones.
NAMED_BY_OTHERS = ("hf", "original", "gguf")
DECIDED_BY_TENSORS = ("tie_word_embeddings", "biases")  # in hf and gguf


def is_canonical(container: str) -> bool:
    """Whether a container's names, order and configuration are the canonical ones, which are Hugging Face's."""
    return container not in NAMED_BY_OTHERS


class Architecture(ABC):
    """A model_type: its configuration in the terms of every container, its tensors, and where they lie.

    Attributes:
        model_type: `model_type` in config.json.
        gguf_name: `general.architecture` in GGUF files.
        containers: those that have words and places of their own for it; a run-ready file holds every model.
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
    def from_config(cls, container: str, raw: Mapping[str, Any], reader: Reader | None = None) -> Self:
        """From a container's raw configuration. Raises BadCheckpoint naming a field that is missing, absurd or not supported.

        `reader` is the open container, for what only its tensors tell (GGUF files do not say whether embeddings are tied);
        None when the configuration stands alone.
        """
        read = cls.from_words("hf" if is_canonical(container) else container, raw, Stored.of(reader))
        if container == "gguf" and any(key.startswith(PREFIX) for key in raw):
            check_agreement(read.words(container), raw)
        return read

    @classmethod
    @abstractmethod
    def from_words(cls, container: str, raw: Mapping[str, Any], stored: Stored) -> Self:
        """From a container's raw configuration and what its tensors tell. Raises BadCheckpoint."""

    @classmethod
    def is_in_gguf(cls, raw: Mapping[str, Any]) -> bool:
        """Whether a file with these keys, in which `general.architecture` is `gguf_name`, holds a model of this type rather than
        of another with the same name."""
        return True

    @abstractmethod
    def hf_config(self) -> dict[str, Any]:
        """config.json's content, without `quantization_config`."""

    @abstractmethod
    def words(self, container: str) -> dict[str, Any]:
        """The configuration in the words of `original` or `gguf`, as far as those go. Raises BadCheckpoint for a model that the
        container's programs cannot run."""

    @abstractmethod
    def said(self, names: Iterable[str]) -> dict[str, Any]:
        """These parts of `computation` in words of config.json, for keys of our own."""

    def container_config(self, container: str) -> dict[str, Any]:
        """The configuration in a container's own terms: GGUF key-values, the original config.json; {} for hf; `stacks`, the
        tensors that kernels multiply as one, for a run-ready file.

        It is read again before it is given: what the container has no words for is said by keys of our own, in GGUF, or
        refused by name. Raises BadCheckpoint.
        """
        keys, _ = self._written(container)
        if is_canonical(container):
            return {"stacks": stacks_of(self)}
        return {} if container == "hf" else keys

    def container_remarks(self, container: str) -> tuple[str, ...]:
        """What a user should know about this model in that container. Raises BadCheckpoint as `container_config`."""
        _, again = self._written(container)
        return tuple(text for text in again.remarks if text not in self.remarks)

    def _written(self, container: str) -> tuple[dict[str, Any], Architecture]:
        """The configuration in a container's words, and what reading it gives."""
        if is_canonical(container):
            container = "hf"
        keys = self.hf_config() if container == "hf" else self.words(container)
        derived = self.derived_tensors(container).get(ROPE_FREQS)
        try:
            again = self.from_words(container, keys, Stored(divisors=derived))
            if container == "gguf" and (names := self._unsaid(again, container)):
                keys |= own_keys(self.said(names))
                again = self.from_words(container, keys, Stored(divisors=derived))
        except BadCheckpoint as error:
            raise BadCheckpoint(f"the container {container} cannot hold this model: {error}") from None
        for name in self._unsaid(again, container):
            mine, theirs = (shown(a.computation()[name], 160) for a in (self, again))
            raise BadCheckpoint(f"the container {container} cannot hold this model: {name} is {mine}, always {theirs} there")
        return keys, again

    def _unsaid(self, again: Architecture, container: str) -> list[str]:
        """What is computed otherwise, or cannot be said in a config.json any more, once it was read again."""
        mine, theirs = self.computation(), again.computation()
        names = [name for name in mine if mine[name] != theirs.get(name) or self.form(name) != again.form(name)]
        return names if container == "original" else [name for name in names if name not in DECIDED_BY_TENSORS]

    def form(self, name: str) -> Any:
        """In which of several forms of one effect a part of `computation` is said (the rotary positions)."""
        return None

    @abstractmethod
    def computation(self) -> dict[str, Any]:
        """What the configuration decides about what is computed, in the same terms whatever container it was read from: name ->
        value, in Hugging Face's words, defaults filled in. Two models of one architecture whose tensors and computation are
        equal give the same logits for the same tokens."""

    @abstractmethod
    def tensors(self) -> list[TensorSpec]:
        """All canonical tensors, in order: embedding, layers, final norm, output."""

    def places(self, container: str, spec: TensorSpec, is_float: bool) -> list[Placement]:
        """`placements`, of any container: a run-ready file has the canonical names, shapes and order."""
        return whole(spec.name, spec.shape, spec) if is_canonical(container) else self.placements(container, spec, is_float)

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
    def attention_layers(self) -> Sequence[Heads | Latent]:
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
    modules_of("oss_tools.models")
    return dict(_REGISTRY)


def architecture_of(model_type: str, gguf: Mapping[str, Any] | None = None) -> type[Architecture]:
    """The architecture with this model_type; or, for the keys of a GGUF file, with this name in GGUF. Raises BadCheckpoint with
    the names there are."""
    known = architectures()
    if gguf is None and model_type in known:
        return known[model_type]
    named = [a for a in known.values() if a.gguf_name == model_type and (gguf is None or a.is_in_gguf(gguf))]
    for architecture in sorted(named, key=lambda a: a.model_type == model_type):  # the name's own takes what no other claims
        return architecture
    if model_type in known:
        return known[model_type]
    raise BadCheckpoint(f"architecture {model_type!r} is not supported; supported: {', '.join(sorted(known))}")
