"""The run-ready container: one file whose weights lie as the kernels take them, to be mapped and not loaded. Reading.

The layout: `ready_preamble`, `ready_table`, `ready_layout`, docs/ready.md. Every value can be had in its canonical form too, so
the file converts into every other container without loss.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.checkpoints.base import Metadata, Panels, Reader, Records
from oss_tools.checkpoints.companions import MAX_CONFIG, REFUSED
from oss_tools.checkpoints.data_file import DataFile
from oss_tools.checkpoints.files import read_at
from oss_tools.checkpoints.json_files import MAX_JSON, parse_json
from oss_tools.checkpoints.mapped_file import MappedFile
from oss_tools.checkpoints.ready_layout import BadTable, InPanels, Layout, Piece, zero_bytes
from oss_tools.checkpoints.ready_preamble import HASH_BYTES, MAGIC, PREAMBLE, read_preamble
from oss_tools.checkpoints.ready_table import read_table
from oss_tools.checkpoints.safetensors import is_sane_name
from oss_tools.checkpoints.templates import MAX_TEMPLATE, MAX_TEMPLATES
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import QTensor
from oss_tools.machine.direct import DirectFile, read_into

SUFFIX = ".ready"
AT_ONCE = 8 << 20  # bytes that are hashed at a time
FIELDS = {  # of the metadata: what JSON may hold for each
    "tokenizer": (dict, type(None)),
    "tokenizer_config": (dict,),
    "generation_config": (dict,),
    "chat_template": (str, type(None)),
    "chat_templates": (dict,),
    "general": (dict,),
}


class ReadyReader(Reader):
    """An open run-ready file, or a folder that holds one."""

    container = "ready"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        if path.is_dir():
            return not (path / "config.json").exists() and len(list(path.glob(f"*{SUFFIX}"))) == 1
        if path.suffix == SUFFIX or not path.is_file():
            return path.suffix == SUFFIX
        try:
            with path.open("rb") as file:
                return file.read(len(MAGIC)) == MAGIC
        except OSError:
            return False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = next(path.glob(f"*{SUFFIX}")) if path.is_dir() else path
        self._mapping: MappedFile | None = None
        self._direct: DirectFile | None = None
        self._lock = threading.Lock()
        if not self.file.is_file():
            raise BadCheckpoint(f"{self.file}: not a regular file")
        try:
            self._descriptor = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadCheckpoint(f"{self.file}: cannot be opened: {error.strerror}") from None
        self._data = DataFile(self._descriptor, self.file)
        try:
            self.layout = self._read_layout()
            self.tensors = self.layout.tensors
            self._config = parse_json(self._text("config", MAX_CONFIG), f"{self.file}: its configuration")
            model_type = self._config.get("model_type")
            if not isinstance(model_type, str) or not is_sane_name(model_type):
                raise BadCheckpoint(f"{self.file}: model_type is {repr(model_type)[:80]}, expected a name")
        except BaseException:
            self.close()
            raise
        self.model_type = model_type

    # ---- the header -------------------------------------------------------------------------------------------------

    def _read_layout(self) -> Layout:
        head = read_preamble(self._descriptor, self.file)
        content = read_at(self._descriptor, PREAMBLE.size, head.table_size, self.file).tobytes()
        if hashlib.sha256(content).digest() != head.table_hash:
            raise BadCheckpoint(f"{self.file}: damaged: its table is not the one that was written")
        try:
            layout = read_table(parse_json(content, f"{self.file}: its table"), head.table_size, head.size)
        except BadTable as error:
            raise BadCheckpoint(f"{self.file}: {error}") from None
        if layout.size != head.size:
            raise BadCheckpoint(f"{self.file}: {head.size} bytes long, its tensors make {layout.size}")
        self._hashes = self._read_hashes(layout, head.hashes_hash)
        return layout

    def _read_hashes(self, layout: Layout, expected: bytes) -> bytes:
        count = sum(1 for _ in layout.pieces())
        found = read_at(self._descriptor, layout.hashes, count * HASH_BYTES, self.file).tobytes()
        if hashlib.sha256(found).digest() != expected:
            raise BadCheckpoint(f"{self.file}: damaged: its list of hashes is not the one that was written")
        return found

    def _text(self, name: str, limit: int) -> bytes:
        offset, nbytes = self.layout.texts[name]
        if nbytes > limit:
            raise BadCheckpoint(f"{self.file}: its {name} has {nbytes} bytes, more than the {limit} that it may have")
        return read_at(self._descriptor, offset, nbytes, self.file).tobytes()

    @property
    def raw_config(self) -> dict[str, Any]:
        return self._config

    def metadata(self, config: dict[str, Any]) -> Metadata:
        where = f"{self.file}: its metadata"
        found = parse_json(self._text("metadata", MAX_JSON), where)
        for name, kinds in FIELDS.items():
            if not isinstance(found.get(name), kinds):
                raise BadCheckpoint(f"{where}: {name} is {str(found.get(name))[:40]!r}")
        templates = [found["chat_template"] or "", *found["chat_templates"].values()]
        if len(templates) > MAX_TEMPLATES or not all(isinstance(t, str) and len(t) <= MAX_TEMPLATE for t in templates):
            raise BadCheckpoint(f"{where}: chat_templates are no texts by name, or too many or too long")
        names = [name for name in self.layout.texts if name not in ("config", "metadata")]
        if bad := [name for name in names if name.lower().endswith(REFUSED)]:
            raise BadCheckpoint(f"{self.file}: carries the file {bad[0][:80]!r}, which no checkpoint needs")
        files = {name: self._text(name, MAX_JSON) for name in names}
        return Metadata(config, files=files, **{name: found[name] for name in FIELDS})

    @property
    def text_bytes(self) -> int:
        """Bytes of tokenizer and templates."""
        return self.layout.texts["metadata"][1]

    # ---- tensors in canonical form ----------------------------------------------------------------------------------

    def read(self, name: str, start: int, stop: int, columns: int) -> QTensor:
        tensor = self.tensors[name]
        place = self.layout.panels.get(name)
        if columns != tensor.shape[-1] and not (tensor.format.is_float and not place and tensor.size % columns == 0):
            raise ValueError(f"{name}: rows of {columns} values, the tensor's have {tensor.shape[-1]}")
        if not 0 <= start <= stop <= tensor.size // columns:
            raise IndexError(f"{name}: rows {start}..{stop} of {tensor.size // columns}")
        kinds = tensor.format.planes(columns)
        if not place:
            planes = {}
            for plane, offset in self.layout.planes[name].items():
                each = kinds[plane].nbytes
                data = self._data.read(offset + start * each, (stop - start) * each)
                planes[plane] = data.view(kinds[plane].dtype).reshape(stop - start, kinds[plane].columns)
            return QTensor(tensor.format, (stop - start, columns), planes)
        planes = {plane: np.empty((stop - start, kind.columns), kind.dtype) for plane, kind in kinds.items()}
        rows, done = tensor.shape[-2], start
        while done < stop:
            matrix, first = divmod(done, rows)
            count = min(rows - first, stop - done)
            part = {plane: array[done - start : done - start + count] for plane, array in planes.items()}
            self._unpack(place, matrix, first, count, part)
            done += count
        if name in self.layout.zeros and stop > start:
            each = zero_bytes(columns)
            offset = self.layout.zeros[name] + start * each
            zeros = self._data.read(offset, (stop - start) * each).reshape(stop - start, each)
            if zeros.any():
                from numba_kernels.cpu.unpacking import restore_zero_scales

                restore_zero_scales(planes["scales"], zeros)
        return QTensor(tensor.format, (stop - start, columns), planes)

    def _unpack(self, place: InPanels, matrix: int, first: int, count: int, planes: dict[str, np.ndarray]) -> None:
        """Rows [first, first + count) of a tensor's matrix out of panels."""
        from numba_kernels.cpu.unpacking import unpack

        shape, lanes = place.stack.shape, place.stack.shape.lanes
        low = (place.first + first * place.step) // lanes
        high = (place.first + (first + count - 1) * place.step) // lanes + 1
        offset = self._panels_at(place, matrix) + low * shape.panel_bytes
        panels = self._data.read(offset, (high - low) * shape.panel_bytes).reshape(high - low, -1)
        row = place.first + first * place.step - low * lanes
        unpack(panels, shape, planes, biased=self.layout.biased, first=row, step=place.step)

    def _panels_at(self, place: InPanels, matrix: int) -> int:
        return place.record.offset + matrix * place.record.stride + place.stack.at

    # ---- tensors as the kernels take them ---------------------------------------------------------------------------

    def panels(self, names: Sequence[str], interleave: bool) -> Panels | None:
        place = self.layout.panels.get(names[0])
        if not place or place.stack.tensors != tuple(names) or (place.stack.interleave != interleave and len(names) > 1):
            return None
        from numba_kernels.simd.path import ACTIVE

        shape = place.stack.shape
        if not self.layout.is_native(shape.format, ACTIVE.lanes, ACTIVE.biased_bytes):
            return None
        offset = self._panels_at(place, 0)
        form = place.stack.matrices, shape.panels, shape.panel_bytes

        def read(matrix: int, memory: np.ndarray) -> None:
            read_into(self._descriptor, offset + matrix * place.record.stride, memory, self.file)

        def mapped() -> np.ndarray:
            return self.mapping().view(offset, form, place.record.stride)

        return Panels(form, mapped, lambda: self.mapping().check(), read)

    def is_in_panels(self, name: str) -> bool:
        place = self.layout.panels.get(name)
        return place is not None and self.panels(place.stack.tensors, place.stack.interleave) is not None

    def records(self, stacks: Sequence[tuple[Sequence[str], bool]]) -> Records | None:
        if not all(self.panels(names, interleave) for names, interleave in stacks):
            return None
        record = self.layout.panels[stacks[0][0][0]].record
        if [stack.tensors for stack in record.stacks] != [tuple(names) for names, _ in stacks]:
            return None
        file = self.direct()

        def read(matrix: int, first: int, memory: np.ndarray) -> None:
            file.read(record.offset + matrix * record.stride + first, memory)

        return Records(record.stride, tuple(stack.at for stack in record.stacks), read, file.check)

    def direct(self) -> DirectFile:
        """The file for large reads."""
        with self._lock:
            if self._direct is None:
                self._direct = DirectFile(self._descriptor, self.file)
            return self._direct

    def mapping(self) -> MappedFile:
        """The whole file in memory, mapped once."""
        with self._lock:
            if self._mapping is None:
                self._mapping = MappedFile(self._descriptor, self.file)
            return self._mapping

    # ---- the end ----------------------------------------------------------------------------------------------------

    def damage(self) -> list[str]:
        def is_damaged(numbered: tuple[int, Piece]) -> bool:
            number, piece = numbered
            wanted = self._hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES]
            return piece_hash(self._descriptor, piece, self.file) != wanted

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            pieces = list(enumerate(self.layout.pieces()))
            return [piece.name for (_, piece), bad in zip(pieces, pool.map(is_damaged, pieces), strict=True) if bad]

    def files(self) -> list[Path]:
        return [self.file]

    def descriptors(self) -> list[int]:
        return [self._descriptor]

    def data_files(self) -> list[DataFile]:
        return [self._data]

    def close(self) -> None:
        if self._descriptor >= 0:
            self._data.close()
            os.close(self._descriptor)
            self._descriptor = -1


def piece_hash(descriptor: int, piece: Piece, path: Path) -> bytes:
    """sha256 of a stretch of an open file."""
    digest, done = hashlib.sha256(), 0
    while done < piece.nbytes:
        part = read_at(descriptor, piece.offset + done, min(AT_ONCE, piece.nbytes - done), path)
        digest.update(part.data)
        done += len(part)
    return digest.digest()
