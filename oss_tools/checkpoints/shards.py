"""Reading a folder of safetensors files, with or without an index: what the containers `hf` and `original` have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from oss_tools.checkpoints import companions
from oss_tools.checkpoints.assemble import Assembled
from oss_tools.checkpoints.base import Metadata, Reader, StoredTensor
from oss_tools.checkpoints.data_file import DataFile
from oss_tools.checkpoints.index import INDEX, MAX_TENSORS, chosen_files
from oss_tools.checkpoints.json_files import read_json
from oss_tools.checkpoints.layouts import Layout, Piece, decode
from oss_tools.checkpoints.prefixes import Naming, unwrapped
from oss_tools.checkpoints.safetensors import DTYPES, RawTensor, SafetensorsFile
from oss_tools.checkpoints.strange import adapter
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import QTensor

AT_ONCE = 1 << 24  # bytes of a tensor that is looked through


class ShardedReader(Reader):
    """Tensors from the safetensors files of a folder, or from one such file with config.json beside it."""

    naming: ClassVar[Naming]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        if not (self.folder / "config.json").exists():
            wanted = "config.json is missing beside it, which says what model the tensors make up"
            raise BadCheckpoint(f"{path}: {adapter(self.folder) or wanted}")
        self._raw_config = read_json(self.folder / "config.json", companions.MAX_CONFIG)
        self._shards: list[SafetensorsFile] = []
        remarks: list[str] = []
        try:
            self._raw, self._file_of = self._open_shards(remarks)
            found = self._assemble(self._raw)
            renamed, said = unwrapped([*found.layouts, *found.others], self.naming)
            self._layouts = self._under(renamed, found.layouts)
        except BaseException:
            self.close()
            raise
        self.tensors = {name: replace(layout.tensor, name=name) for name, layout in self._layouts.items()}
        self.others = {renamed.get(name, name): dtype for name, dtype in found.others.items()}
        doubles = sum(layout.pieces[0].dtype == "F64" for layout in self._layouts.values())
        self.remarks = (
            *remarks,
            *([said] if said else []),
            *(
                [f"{_these(found.activations)}: scales of activations or of the KV cache, left out"]
                if found.activations
                else []
            ),
            *([f"{doubles} tensors are F64 and are read as F32"] if doubles else []),
        )

    @abstractmethod
    def _assemble(self, raw: dict[str, RawTensor]) -> Assembled:
        """The stored tensors that the safetensors tensors make up. Raises BadCheckpoint."""

    def _under(self, renamed: dict[str, str], layouts: dict[str, Layout]) -> dict[str, Layout]:
        """The layouts by their new names."""
        found: dict[str, Layout] = {}
        for name, layout in layouts.items():
            new = renamed.get(name, name)
            if new in found:
                raise BadCheckpoint(
                    f"{self.folder}: tensors {name} and {found[new].tensor.name} are both {new} without prefix"
                )
            found[new] = layout
        return found

    def _open_shards(self, remarks: list[str]) -> tuple[dict[str, RawTensor], dict[str, SafetensorsFile]]:
        """All tensors of all files by name, and the file of each."""
        names, index = chosen_files(self.path, remarks)
        raw: dict[str, RawTensor] = {}
        file_of: dict[str, SafetensorsFile] = {}
        unlisted = []
        for name in names:
            shard = SafetensorsFile(self.folder / name)
            self._shards.append(shard)
            for tensor in shard.tensors.values():
                listed = index.get(tensor.name)
                if tensor.name in raw and listed not in (name, file_of[tensor.name].path.name):
                    raise BadCheckpoint(f"{shard.path}: tensor {tensor.name} is in {file_of[tensor.name].path.name} as well")
                if tensor.name not in raw or listed == name:
                    raw[tensor.name], file_of[tensor.name] = tensor, shard
                unlisted += [tensor.name] if index and listed is None else []
            if len(raw) > MAX_TENSORS:
                raise BadCheckpoint(f"{self.folder}: more than the {MAX_TENSORS} tensors that a model may have")
        missing = next((name for name in index if name not in raw), None)
        if missing is not None:
            raise BadCheckpoint(
                f"{self.folder / index[missing]}: tensor {missing} is missing, though {INDEX} lists it there: "
                "they are of different builds"
            )
        if unlisted:
            remarks.append(f"{_these(unlisted)}: not listed by {INDEX}, but in the files that it names, and read")
        return raw, file_of

    def _is_zero(self, tensor: RawTensor) -> bool:
        """Whether all of a tensor's bytes are 0."""
        file = self._file_of[tensor.name]
        starts = range(0, tensor.nbytes, AT_ONCE)
        return not any(file.read(tensor, start, min(start + AT_ONCE, tensor.nbytes)).any() for start in starts)

    def read(self, name: str, start: int, stop: int, columns: int) -> QTensor:
        layout = self._layouts[name]
        tensor = layout.tensor
        if not tensor.format.is_float and columns != tensor.shape[-1]:
            raise ValueError(f"{name} is read in rows of {tensor.shape[-1]}, not {columns}")
        planes = {}
        for piece in layout.pieces:
            width = bytes_per_row(piece, tensor, columns)
            shard = self._file_of[piece.name]
            first, last = (0, 1) if piece.shared else (start, stop)
            if piece.rows > 1:
                rows = piece.row_of(np.arange(start, stop), tensor.shape[-2])
                first, last = int(rows[0]), int(rows[-1]) + 1
            data = shard.read(self._raw[piece.name], first * width, last * width)
            count = last - first if piece.rows > 1 else stop - start
            plane = decode(data, piece, tensor.format, count, columns, str(shard.path))
            planes[piece.plane] = plane[rows - first] if piece.rows > 1 else plane
        return QTensor(tensor.format, (stop - start, columns), planes)

    @property
    def raw_config(self) -> dict[str, Any]:
        return self._raw_config

    def metadata(self, config: dict[str, Any]) -> Metadata:
        return companions.read_metadata(self.folder, config)

    def files(self) -> list[Path]:
        return [shard.path for shard in self._shards]

    def descriptors(self) -> list[int]:
        return [shard.descriptor for shard in self._shards]

    def data_files(self) -> list[DataFile]:
        return [shard.data for shard in self._shards]

    def close(self) -> None:
        for shard in self._shards:
            shard.close()


def _these(names: list[str]) -> str:
    """Tensors as a remark names them: the first, and how many more."""
    return f"tensor {names[0]}" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more tensors"


def bytes_per_row(piece: Piece, tensor: StoredTensor, columns: int) -> int:
    """Bytes that a row of `columns` values has in a piece, or several rows that have one together; all bytes of a shared one."""
    if tensor.format.is_float:
        return columns * DTYPES[piece.dtype] // 8
    size = int(np.prod(piece.shape, dtype=object))
    if piece.rows > 1:
        return piece.shape[-1] * DTYPES[piece.dtype] // 8
    return (size if piece.shared else size // tensor.rows) * DTYPES[piece.dtype] // 8
