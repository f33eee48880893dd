"""What a container of tensors is: files that hold named tensors, read by row range and written in place.

A container knows how bytes lie in its files and nothing of architectures: names are the stored ones.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from oss_tools.checkpoints.data_file import DataFile
from oss_tools.formats import Format, QTensor


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a container holds it: its name there (without format suffixes such as `_blocks`), format, shape."""

    name: str
    format: Format
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows when all leading axes are flattened."""
        size = 1
        for axis in self.shape[:-1]:
            size *= axis
        return size

    @property
    def size(self) -> int:
        """Number of values."""
        return self.rows * self.shape[-1]

    @property
    def nbytes(self) -> int:
        rows = self.shape[-2] if len(self.shape) > 1 else 1
        return self.format.stored_bytes(rows, self.shape[-1], self.rows // rows if rows else 0)


@dataclass
class Metadata:
    """All of a checkpoint that is not tensors, in Hugging Face terms, so that any container can be made of it.

    Attributes:
        config: the content of config.json (HF keys), without `quantization_config`.
        tokenizer: the content of tokenizer.json, or None if the source has none.
        tokenizer_config: the content of tokenizer_config.json without chat templates.
        generation_config: the content of generation_config.json.
        chat_template: Jinja source, or None.
        chat_templates: further ones by name (`tool_use`, `rag`, …): name -> Jinja source.
        general: descriptive facts: name, license, author, description, languages, tags (GGUF's `general.*`).
        files: further small files that travel along unchanged (LICENSE, README.md, USAGE_POLICY, …): name -> bytes.
        remarks: what a user should know about how the tokenizer or the templates were read, a sentence each.
    """

    config: dict[str, Any]
    tokenizer: dict[str, Any] | None = None
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    generation_config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    chat_templates: dict[str, str] = field(default_factory=dict)
    general: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panels:
    """Matrices that lie in a file as this processor's kernels take them.

    Attributes:
        shape: matrices, panels, bytes of a panel.
        mapped: gives them in mapped memory, read-only uint8 of that shape, which outlives the reader; matrices may lie apart.
        check: raises BadCheckpoint where the mapped file is no longer what it was: to be called before what was computed with it
            is given out.
        read: (matrix, uint8 [panels, bytes of a panel]) fills memory with one of them. Safe from threads.
    """

    shape: tuple[int, int, int]
    mapped: Callable[[], np.ndarray]
    check: Callable[[], None]
    read: Callable[[int, np.ndarray], None]


@dataclass(frozen=True)
class Records:
    """Matrices of several stacks that lie beside each other in a file, as kernels take them: what one read fetches.

    Attributes:
        nbytes: of a record, a multiple of a page.
        places: where each stack's panels begin in it.
        read: (matrix, first, uint8 [n] at a multiple of a page) fills memory with a record's bytes from `first` on, which is a
            multiple of a page too. Safe from threads; outlives the reader.
        check: raises BadCheckpoint where the file is no longer what it was.
    """

    nbytes: int
    places: tuple[int, ...]
    read: Callable[[int, int, np.ndarray], None]
    check: Callable[[], None]


class Reader(ABC):
    """An open container. Opening reads headers only and checks every size and offset against the files' real lengths.

    Attributes:
        container: its kind, e.g. `hf`.
        path: what was opened.
        tensors: stored name -> StoredTensor, in file order.
        model_type: the architecture's name as config.json has it, or GGUF's `general.architecture`.
        others: stored tensors of dtypes that no weight has (I64, BOOL, …), which cannot be read: name -> dtype.
        remarks: what a user should know about how the files were read (what was left out, what was guessed), a sentence each.
    """

    container: ClassVar[str]
    path: Path
    tensors: dict[str, StoredTensor]
    model_type: str
    others: Mapping[str, str] = MappingProxyType({})
    remarks: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether the path looks like this container (by names and magic bytes, cheaply)."""

    @abstractmethod
    def __init__(self, path: Path) -> None:
        """Opens the container; raises BadCheckpoint."""

    @abstractmethod
    def read(self, name: str, start: int, stop: int, columns: int) -> QTensor:
        """Rows [start, stop) of a stored tensor seen as rows of `columns` values: a QTensor [stop - start, columns].

        Leading axes are flattened. `columns` is the stored last axis, except for float formats, where any factor of
        the size is allowed (a bias is read as rows of one value). Uses pread into fresh arrays; safe from threads.
        """

    @property
    @abstractmethod
    def raw_config(self) -> dict[str, Any]:
        """The container's own configuration: config.json's content, or GGUF's key-value metadata."""

    @abstractmethod
    def metadata(self, config: dict[str, Any]) -> Metadata:
        """Tokenizer, templates and companions in Hugging Face terms, around the given HF config."""

    def panels(self, names: Sequence[str], interleave: bool) -> Panels | None:
        """The matrices of these tensors as one, rows one under another or in turn, if they lie so in the file; else None."""
        return None

    def is_in_panels(self, name: str) -> bool:
        """Whether a tensor is part of such matrices."""
        return False

    def records(self, stacks: Sequence[tuple[Sequence[str], bool]]) -> Records | None:
        """The matrices of all these stacks (tensors, and whether their rows take turns), if they lie so beside each other."""
        return None

    def damage(self) -> list[str]:
        """What of the files is not as it was written, by name, where they hold hashes of themselves. Reads them whole."""
        return []

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that hold tensors."""

    def descriptors(self) -> list[int]:
        """Of the open files that hold tensors, where there are some."""
        return []

    def data_files(self) -> list[DataFile]:
        """The same files as what reads them, so that a user may say how."""
        return []

    def state(self) -> list[tuple[int, int]]:
        """Sizes and times of modification of the open files: what differs if one is written to."""
        found = [os.fstat(descriptor) for descriptor in self.descriptors()]
        return [(each.st_size, each.st_mtime_ns) for each in found]

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Contents:
    """What a `Writer` lays out.

    Attributes:
        name: stem of the file names where the container has a choice (GGUF).
        tensors: everything that will be written, in order.
        metadata: config, tokenizer and companions.
        container_config: what the architecture says in this container's terms (GGUF key-values, original config).
        shard_size: bytes per file at most, or None for the container's default.
    """

    name: str
    tensors: list[StoredTensor]
    metadata: Metadata
    container_config: dict[str, Any]
    shard_size: int | None = None


class Writer(ABC):
    """A container being written under a temporary folder; nothing has its final name before `finish`.

    The bytes of the result depend on the arguments alone, never on the order or number of `write` calls: files are
    laid out in full when the writer opens, tensors are written at their offsets, and a second writer on the same
    folder with the same arguments goes on where the first was killed.

    Attributes:
        container: its kind, e.g. `hf`.
        extension: of the final path: "" for a folder, ".gguf" for a file.
    """

    container: ClassVar[str]
    extension: ClassVar[str]

    @classmethod
    @abstractmethod
    def holds(cls, format: Format, role: str, model_type: str) -> bool:
        """Whether this container has a way to store such a tensor in this format."""

    @classmethod
    @abstractmethod
    def total_bytes(cls, tensors: list[StoredTensor]) -> int:
        """Bytes of tensor data that the files will hold, padding included (for the disk check)."""

    @classmethod
    @abstractmethod
    def check(cls, contents: Contents) -> None:
        """Raises BadCheckpoint or BadRecipe where a writer of these contents would (a tokenizer that the container has no
        words for, a companion's bad name, too many shards), before anything is made."""

    @abstractmethod
    def __init__(self, folder: Path, contents: Contents) -> None:
        """Lays out the files in `folder`.

        Args:
            folder: an existing temporary folder, on the disk of the final path; empty, or left by a killed run.
            contents: what will be written.
        """

    @abstractmethod
    def write(self, name: str, start: int, rows: QTensor) -> None:
        """Writes rows at row `start` of a stored tensor (flattened rows, in units of `rows.columns` values). Thread-safe."""

    def readable(self) -> Path | None:
        """What a reader can open before `finish`, to read back what was written; None where nothing can be read before."""
        return None

    @abstractmethod
    def finish(self) -> list[Path]:
        """Flushes everything to disk and writes the small companions; returns the files made, inside the folder."""

    @abstractmethod
    def close(self) -> None: ...
