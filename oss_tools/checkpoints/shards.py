"""A folder of safetensors files, with or without an index: what the containers `hf` and `original` have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from oss_tools.checkpoints import companions
from oss_tools.checkpoints.assemble import Assembled
from oss_tools.checkpoints.base import Metadata, Reader, StoredTensor, Writer
from oss_tools.checkpoints.data_file import DataFile
from oss_tools.checkpoints.files import sync_folder, write_file
from oss_tools.checkpoints.index import INDEX, MAX_SHARDS, MAX_TENSORS, SINGLE, chosen_files
from oss_tools.checkpoints.json_files import json_bytes, read_json
from oss_tools.checkpoints.layouts import Layout, Piece, decode
from oss_tools.checkpoints.prefixes import Naming, unwrapped
from oss_tools.checkpoints.safetensors import DTYPES, RawTensor, SafetensorsFile, SafetensorsWriter
from oss_tools.checkpoints.strange import adapter
from oss_tools.errors import BadCheckpoint, BadRecipe, BadTensor
from oss_tools.formats import QTensor

SHARD_SIZE = 5_000_000_000  # bytes
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
            width = _bytes_per_row(piece, tensor, columns)
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


def _bytes_per_row(piece: Piece, tensor: StoredTensor, columns: int) -> int:
    """Bytes that a row of `columns` values has in a piece, or several rows that have one together; all bytes of a shared one."""
    if tensor.format.is_float:
        return columns * DTYPES[piece.dtype] // 8
    size = int(np.prod(piece.shape, dtype=object))
    if piece.rows > 1:
        return piece.shape[-1] * DTYPES[piece.dtype] // 8
    return (size if piece.shared else size // tensor.rows) * DTYPES[piece.dtype] // 8


class ShardedWriter(Writer):
    """Tensors into safetensors files of a folder; one file where `shard_size` allows it, else shards and an index."""

    extension = ""
    shard_name: ClassVar[str]  # with fields `number` and `count`

    @classmethod
    @abstractmethod
    def lay_out(cls, tensor: StoredTensor) -> Layout:
        """The safetensors tensors that a stored tensor becomes."""

    @abstractmethod
    def small_files(self) -> dict[str, bytes]:
        """The small files beside the tensors, without the index: name -> content."""

    @classmethod
    def total_bytes(cls, tensors: list[StoredTensor]) -> int:
        return sum(_layout_bytes(cls.lay_out(tensor)) for tensor in tensors)

    @classmethod
    def check(
        cls,
        name: str,
        tensors: list[StoredTensor],
        metadata: Metadata,
        container_config: dict[str, Any],
        *,
        shard_size: int | None = None,
    ) -> None:
        companions.companion_files(metadata)
        json_bytes(container_config)
        shards = _distribute([cls.lay_out(tensor) for tensor in tensors], shard_size or SHARD_SIZE)
        if len(shards) > MAX_SHARDS:
            raise BadRecipe(
                f"--shard-size {shard_size} makes {len(shards)} files, more than {MAX_SHARDS}; choose a larger size"
            )

    def __init__(
        self,
        folder: Path,
        name: str,
        tensors: list[StoredTensor],
        metadata: Metadata,
        container_config: dict[str, Any],
        *,
        shard_size: int | None = None,
    ) -> None:
        self.folder = folder
        self.metadata = metadata
        self.container_config = container_config
        self.tensors = tensors
        self._layouts = {tensor.name: self.lay_out(tensor) for tensor in tensors}
        shards = _distribute(list(self._layouts.values()), shard_size or SHARD_SIZE)
        self._file_of: dict[str, SafetensorsWriter] = {}
        self._shards: list[SafetensorsWriter] = []
        self._small: list[str] = []  # names of the small files, when they are written
        try:
            for number, layouts in enumerate(shards, 1):
                file = SINGLE if len(shards) == 1 else self.shard_name.format(number=number, count=len(shards))
                pieces = [piece for layout in layouts for piece in layout.pieces]
                shard = SafetensorsWriter(folder / file, [(p.name, p.dtype, p.shape) for p in pieces])
                self._shards.append(shard)
                self._file_of |= {piece.name: shard for piece in pieces}
        except BaseException:
            self.close()
            raise

    def write(self, name: str, start: int, rows: QTensor) -> None:
        layout = self._layouts[name]
        if rows.format != layout.tensor.format:
            raise ValueError(f"{name} is laid out as {layout.tensor.format.name}, not {rows.format.name}")
        for piece in layout.pieces:
            values = rows.planes[piece.plane]
            if piece.shared:
                self._file_of[piece.name].write(piece.name, 0, _shared_value(values, piece))
                continue
            width, first = _bytes_per_row(piece, layout.tensor, rows.columns), start
            if piece.rows > 1:
                first, values = _common_rows(values, piece, start, layout.tensor.shape[-2])
            self._file_of[piece.name].write(piece.name, first * width, values)

    def readable(self) -> Path | None:
        self._write_small_files()
        return self.folder

    def finish(self) -> list[Path]:
        for shard in self._shards:
            shard.sync()
        self._write_small_files()
        sync_folder(self.folder)
        return [*(shard.path for shard in self._shards), *(self.folder / name for name in self._small)]

    def _write_small_files(self) -> None:
        """Writes what lies beside the tensors, once."""
        if self._small:
            return
        small = self.small_files()
        if len(self._shards) > 1:
            small[INDEX] = self._index()
        for name, content in small.items():
            write_file(self.folder / name, content)
        self._small = list(small)

    def _index(self) -> bytes:
        weight_map = {name: shard.path.name for name, shard in sorted(self._file_of.items())}
        return json_bytes({"metadata": {"total_size": self.total_bytes(self.tensors)}, "weight_map": weight_map})

    def close(self) -> None:
        for shard in self._shards:
            shard.close()


def _shared_value(values: np.ndarray, piece: Piece) -> np.ndarray:
    """The one value of a plane whose rows all have the same, as the file holds it."""
    if np.any(values != values.flat[0]):
        raise ValueError(f"the rows of {piece.name} have different values, which this container cannot hold")
    value = values.reshape(-1)[:1]
    if not piece.reciprocal:
        return value
    if 1 / (1 / value) != value:
        raise BadTensor(f"{piece.name}: the scale {value[0]} is no number's reciprocal, as which this container stores it")
    return 1 / value


def _common_rows(values: np.ndarray, piece: Piece, start: int, height: int) -> tuple[int, np.ndarray]:
    """The rows that a piece holds for these of a plane, which begin at row `start` of the tensor, and where they begin."""
    of = piece.row_of(np.arange(start, start + len(values)), height)
    places, firsts = np.unique(of, return_index=True)
    kept = values[firsts]
    if np.any(values != kept[of - places[0]]):
        raise BadTensor(
            f"{piece.name}: rows that share a block of {piece.rows} rows have different scales, which this container cannot hold"
        )
    return int(places[0]), kept


def _layout_bytes(layout: Layout) -> int:
    return sum(int(np.prod(piece.shape, dtype=object)) * DTYPES[piece.dtype] // 8 for piece in layout.pieces)


def _distribute(layouts: list[Layout], shard_size: int) -> list[list[Layout]]:
    """Tensors in order, as many in each shard as fit; at least one."""
    shards: list[list[Layout]] = [[]]
    filled = 0
    for layout in layouts:
        nbytes = _layout_bytes(layout)
        if shards[-1] and filled + nbytes > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(layout)
        filled += nbytes
    return shards


def float_dtype_name(tensors: list[StoredTensor], names: Callable[[str], str]) -> str:
    """The plain float format that holds most values, named by `names`; BF16 if there is none."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.format.is_float:
            sizes[tensor.format.name] = sizes.get(tensor.format.name, 0) + tensor.size
    return names(max(sizes, key=lambda kind: sizes[kind], default="bf16"))
