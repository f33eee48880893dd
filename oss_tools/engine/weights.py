"""What weights are for every backend with kernels: which tensors make one matrix, and in which format it is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from oss_tools.formats import Format, QTensor, get_format
from oss_tools.models import Architecture, Checkpoint, Entry

OUTPUT = "lm_head.weight"


class Matrices(Protocol):
    """Matrices of one shape that are multiplied as one.

    Attributes:
        nbytes: of all of them as they are kept; row_bytes: of a row.
        matrices: how many: an expert layer has one for each expert.
    """

    @property
    def nbytes(self) -> int: ...
    @property
    def row_bytes(self) -> float: ...
    @property
    def matrices(self) -> int: ...


S = TypeVar("S", bound=Matrices)


class Weights(ABC, Generic[S]):
    """The tensors of a checkpoint, stacked as a backend's kernels want them."""

    def __init__(self, checkpoint: Checkpoint, form: Callable[[Entry], Format], say: Callable[[str], None]) -> None:
        """form: the format in which a tensor is kept; say: is told of every conversion, once."""
        self._checkpoint: Checkpoint | None = checkpoint
        self._names, self._embedding = set(checkpoint.entries), embedding_name(checkpoint)
        self._heights = {name: e.spec.matrices[1] for name, e in checkpoint.entries.items()}
        self._form, self._say = form, say
        self._stacks: dict[tuple[str, ...], list[S]] = {}
        self._said: set[str] = set()

    @abstractmethod
    def _load(self, entries: list[Entry], names: tuple[str, ...], form: Format, interleave: bool) -> S:
        """The layers' matrices in that format, one under another or row by row in turn, with their biases."""

    def stacks(self, names: tuple[str, ...], interleave: bool = False) -> list[S]:
        """The named linear layers (`NAME.weight`, `NAME.bias`) one under another, or row by row in turn, as one stack if
        their formats agree, else (never if interleaved) one for each."""
        key = tuple(self.weight_name(name) for name in names)
        if key not in self._stacks:
            assert self._checkpoint
            entries = [self._checkpoint.entries[name] for name in key]
            forms = [self._form(entry) for entry in entries]
            if len(set(forms)) == 1 or interleave:
                form = forms[0] if len(set(forms)) == 1 else common_format(forms, entries[0].spec.matrices[2])
                self._stacks[key] = [self._load(entries, names, form, interleave)]
            else:
                triples = zip(entries, names, forms, strict=True)
                self._stacks[key] = [self._load([e], (n,), form, False) for e, n, form in triples]
        return self._stacks[key]

    def heights(self, names: tuple[str, ...]) -> list[int]:
        """The rows of each layer's matrix."""
        return [self._heights[self.weight_name(name)] for name in names]

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of this name."""
        return name in self._names

    def weight_name(self, name: str) -> str:
        """The tensor of a layer: `NAME.weight`, `NAME` itself (stacked experts), or the embedding for a tied output."""
        if f"{name}.weight" in self._names:
            return f"{name}.weight"
        return name if name in self._names else self._embedding

    def bias_name(self, name: str) -> str | None:
        """The tensor of a layer's bias, if it has one."""
        return next((n for n in (f"{name}.bias", f"{name}_bias") if n in self._names), None)

    def bytes_per_token(self, architecture: Architecture) -> int:
        """Bytes that one token's pass reads: every matrix once, the chosen experts' share of theirs, of the embedding one row
        unless it is the output as well."""
        chosen = getattr(getattr(architecture, "config", None), "num_experts_per_tok", 1)
        total = 0.0
        for key, stacks in self._stacks.items():
            for stack in stacks:
                if key == (self._embedding,) and OUTPUT in self._names:
                    total += stack.row_bytes
                else:
                    total += stack.nbytes * (chosen / stack.matrices if stack.matrices > 1 else 1)
        return round(total)

    def _remark(self, entry: Entry, form: Format) -> None:
        have = ", ".join(f.name for f in entry.mixed) or entry.format.name
        kept = f"weights are kept as {form.name}"
        line = (
            f"f16 {kept}, to meet bf16 activations"
            if (have, form.name) == ("f16", "bf16")
            else f"no kernel for {have}: {kept}"
        )
        if line not in self._said:
            self._said.add(line)
            self._say(line)


def embedding_name(checkpoint: Checkpoint) -> str:
    """The tensor that tokens are looked up in, which a tied output is as well."""
    return next(name for name, entry in checkpoint.entries.items() if entry.spec.role == "embedding")


def nearest_format(entry: Entry, has_kernel: Callable[[Format, int], bool]) -> Format:
    """The format in which a tensor's weights are kept: its own if there is a kernel for it and its columns, else the nearest
    that holds it well: q8_0 for block formats, bf16 where rows do not divide into blocks of 32."""
    columns = entry.spec.matrices[2]
    formats = entry.mixed or (entry.format,)
    if len(formats) == 1 and has_kernel(formats[0], columns):
        return formats[0]
    return common_format(formats, columns)


def common_format(formats: Sequence[Format], columns: int) -> Format:
    """The format that holds what is in several of them well."""
    if all(f.is_float for f in formats):
        return get_format("f32")
    return get_format("q8_0" if columns % 32 == 0 else "bf16")


def converted(rows: QTensor, form: Format) -> QTensor:
    """The rows in another format, by its default rule."""
    return rows if rows.format == form else form.quantize(rows.dequantize())
