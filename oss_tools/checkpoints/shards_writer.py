"""Writing a folder of safetensors files: what the containers `hf` and `original` have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np

from oss_tools.checkpoints import companions
from oss_tools.checkpoints.base import Contents, StoredTensor, Writer
from oss_tools.checkpoints.files import sync_folder, write_file
from oss_tools.checkpoints.index import INDEX, MAX_SHARDS, SINGLE
from oss_tools.checkpoints.json_files import json_bytes
from oss_tools.checkpoints.layouts import Layout, Piece
from oss_tools.checkpoints.safetensors import DTYPES, SafetensorsWriter
from oss_tools.checkpoints.shards import bytes_per_row
from oss_tools.errors import BadRecipe, BadTensor
from oss_tools.formats import QTensor

SHARD_SIZE = 5_000_000_000  # bytes


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
    def check(cls, contents: Contents) -> None:
        companions.companion_files(contents.metadata)
        json_bytes(contents.container_config)
        layouts = [cls.lay_out(tensor) for tensor in contents.tensors]
        shards = _distribute(layouts, contents.shard_size or SHARD_SIZE)
        if len(shards) > MAX_SHARDS:
            raise BadRecipe(
                f"--shard-size {contents.shard_size} makes {len(shards)} files, more than {MAX_SHARDS}; choose a larger size"
            )

    def __init__(self, folder: Path, contents: Contents) -> None:
        self.folder = folder
        self.contents = contents
        self._layouts = {tensor.name: self.lay_out(tensor) for tensor in contents.tensors}
        shards = _distribute(list(self._layouts.values()), contents.shard_size or SHARD_SIZE)
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
            width, first = bytes_per_row(piece, layout.tensor, rows.columns), start
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
        return json_bytes({"metadata": {"total_size": self.total_bytes(self.contents.tensors)}, "weight_map": weight_map})

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
