"""A container in memory, which keeps flat arrays by stored name: the placements are tested on it alone."""

from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.checkpoints import Metadata, Reader, StoredTensor
from oss_tools.formats import QTensor
from oss_tools.models.base import Architecture
from oss_tools.models.checkpoint import Checkpoint
from oss_tools.models.entries import Entry, stored_tensors


class MemoryContainer(Reader):
    """Both reader and writer. It stands for the container `kind`."""

    container = ""  # not a container that anyone could choose

    def __init__(self, kind: str, model_type: str, config: dict[str, Any], tensors: list[StoredTensor]) -> None:
        self.kind = self.container = kind  # type: ignore[misc]
        self.model_type = model_type
        self.config = config
        self.path = Path("memory")
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self.arrays = {
            tensor.name: {
                plane: np.full(tensor.rows * p.columns, 0xEE, np.uint8).astype(p.dtype)
                for plane, p in tensor.format.planes(tensor.shape[-1]).items()
            }
            for tensor in tensors
        }
        self.written = {tensor.name: np.zeros(tensor.size, np.uint8) for tensor in tensors}

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return False

    def read(self, name: str, start: int, stop: int, columns: int) -> QTensor:
        tensor = self.tensors[name]
        assert 0 <= start <= stop <= tensor.size // columns
        planes = {}
        for plane, p in tensor.format.planes(columns).items():
            planes[plane] = self.arrays[name][plane].reshape(-1, p.columns)[start:stop].copy()
        return QTensor(tensor.format, (stop - start, columns), planes)

    def write(self, name: str, start: int, rows: QTensor) -> None:
        tensor = self.tensors[name]
        assert rows.format == tensor.format
        assert 0 <= start <= start + rows.shape[0] <= tensor.size // rows.columns
        for plane, p in tensor.format.planes(rows.columns).items():
            self.arrays[name][plane].reshape(-1, p.columns)[start : start + rows.shape[0]] = rows.planes[plane]
        self.written[name][start * rows.columns : (start + rows.shape[0]) * rows.columns] += 1

    @property
    def raw_config(self) -> dict[str, Any]:
        return self.config

    def metadata(self, config: dict[str, Any]) -> Metadata:
        return Metadata(config)

    def files(self) -> list[Path]:
        return []

    def close(self) -> None:
        self.arrays.clear()

    def values(self, name: str) -> np.ndarray:
        """A float tensor in its stored shape."""
        return self.arrays[name]["values"].reshape(self.tensors[name].shape)


def entries_for(architecture: Architecture, container: str, formats: dict[str, str] | None = None) -> list[Entry]:
    """Every canonical tensor placed in a container, in f32 or in the format given for its role."""
    from oss_tools.formats import get_format

    entries = []
    for spec in architecture.tensors():
        fmt = get_format((formats or {}).get(spec.role, "f32"))
        entries.append(Entry(spec, fmt, tuple(architecture.placements(container, spec, fmt.is_float))))
    return entries


def container_for(architecture: Architecture, kind: str, entries: list[Entry]) -> MemoryContainer:
    """An empty container in memory that holds the entries."""
    config = architecture.hf_config() if kind == "hf" else architecture.container_config(kind)
    return MemoryContainer(kind, architecture.model_type, config, stored_tensors(entries))


def open_memory(container: MemoryContainer) -> Checkpoint:
    return Checkpoint(container)
