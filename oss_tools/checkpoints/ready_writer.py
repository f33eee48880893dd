"""The run-ready container: one file whose weights lie as the kernels take them. Writing."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from oss_tools.checkpoints import companions
from oss_tools.checkpoints.base import Contents, Metadata, StoredTensor, Writer
from oss_tools.checkpoints.files import full_disk_is_no_room, read_at, sync_folder, write_at
from oss_tools.checkpoints.json_files import json_bytes
from oss_tools.checkpoints.ready import FIELDS, SUFFIX, piece_hash
from oss_tools.checkpoints.ready_layout import PAGE, BadTable, InPanels, lay_out, padded, zero_bytes
from oss_tools.checkpoints.ready_preamble import HASH_BYTES, PREAMBLE, preamble
from oss_tools.checkpoints.ready_table import MAX_FILES, chosen, table, table_bytes
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import Format, QTensor

LOCKS = 256


class ReadyWriter(Writer):
    """A run-ready file being written, in the layout of this processor's kernels."""

    container = "ready"
    extension = SUFFIX

    @classmethod
    def holds(cls, format: Format, role: str, model_type: str) -> bool:
        return True

    @classmethod
    def total_bytes(cls, tensors: list[StoredTensor]) -> int:
        return 2 * PAGE + sum(padded(tensor.nbytes, PAGE) for tensor in tensors)

    @classmethod
    def check(cls, contents: Contents) -> None:
        _texts(contents.metadata)

    def __init__(self, folder: Path, contents: Contents) -> None:
        """`contents.container_config`: `stacks`, the groups of tensors that kernels would like beside each other."""
        from numba_kernels.simd.path import ACTIVE

        self._folder, self._path = folder, folder / f"{contents.name}{SUFFIX}"
        tensors, texts = contents.tensors, _texts(contents.metadata)
        groups = chosen(contents.container_config["stacks"], {tensor.name: tensor for tensor in tensors})
        self._table = table_bytes(table(ACTIVE.lanes, ACTIVE.biased_bytes, tensors, groups, texts))
        sizes = [(name, len(content)) for name, content in texts.items()]
        try:
            self.layout = lay_out(ACTIVE.lanes, ACTIVE.biased_bytes, tensors, groups, sizes, len(self._table))
        except BadTable as error:
            raise BadCheckpoint(f"{self._path}: {error}") from None
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        self._lay_out(texts)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)

    def _lay_out(self, texts: Mapping[str, bytes]) -> None:
        """Makes the file in full length, table, texts and zeros; one that is there and begins so is kept as it is."""
        at = next(iter(self.layout.texts.values()))[0]
        if self._path.exists():
            with self._path.open("rb") as file:
                head = file.read(PREAMBLE.size + len(self._table))
                mine = preamble(self.layout.size, self._table, b"")
                is_mine = _unfinished(head) == mine + self._table and os.fstat(file.fileno()).st_size == self.layout.size
                for name, content in texts.items():
                    file.seek(self.layout.texts[name][0])
                    is_mine = is_mine and file.read(len(content)) == content
            if not is_mine:
                raise BadCheckpoint(f"{self._path}: left by another conversion; --overwrite starts anew")
            return
        new = self._path.with_name(self._path.name + ".new")
        with full_disk_is_no_room(self._path), new.open("wb") as file:
            file.write(preamble(self.layout.size, self._table, b"") + self._table)
            for name, content in texts.items():
                at, _ = self.layout.texts[name]
                file.seek(at)
                file.write(content)
            file.truncate(self.layout.size)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)

    def write(self, name: str, start: int, rows: QTensor) -> None:
        tensor = self.layout.tensors[name]
        count = rows.shape[0]
        if rows.format != tensor.format:
            raise ValueError(f"{name}: rows in {rows.format.name} for a tensor in {tensor.format.name}")
        if not 0 <= start <= start + count <= tensor.size // rows.columns:
            raise IndexError(f"{name}: rows {start}..{start + count} are not all inside the tensor")
        place = self.layout.panels.get(name)
        if not place:
            for plane, offset in self.layout.planes[name].items():
                data = np.ascontiguousarray(rows.planes[plane])
                write_at(self._descriptor, offset + start * data.nbytes // max(count, 1), data, self._path)
            return
        height, done = tensor.shape[-2], 0
        while done < count:
            matrix, first = divmod(start + done, height)
            part = min(height - first, count - done)
            self._pack(place, matrix, first, rows.rows(slice(done, done + part)))
            done += part
        if name in self.layout.zeros and count:
            self._write_zeros(self.layout.zeros[name] + start * zero_bytes(rows.columns), rows.planes["scales"])

    def _pack(self, place: InPanels, matrix: int, first: int, rows: QTensor) -> None:
        """Puts rows of a tensor's matrix into their panels, some of which other rows share."""
        from numba_kernels.cpu.packed import Packed
        from numba_kernels.cpu.packing import pack

        shape, lanes = place.stack.shape, self.layout.lanes
        begin = place.first + first * place.step
        low, high = begin // lanes, (begin + (rows.shape[0] - 1) * place.step) // lanes + 1
        offset = place.record.offset + matrix * place.record.stride + place.stack.at + low * shape.panel_bytes
        nbytes = (high - low) * shape.panel_bytes
        with self._locks[hash((place.record.offset, matrix)) % LOCKS]:
            panels = read_at(self._descriptor, offset, nbytes, self._path, ahead=False)
            panels = panels.reshape(1, high - low, shape.panel_bytes)
            packed = Packed(shape.format, 1, (high - low) * lanes, shape.columns, panels)
            pack(packed, rows.planes, first=begin - low * lanes, step=place.step)
            write_at(self._descriptor, offset, panels, self._path)

    def _write_zeros(self, offset: int, scales: np.ndarray) -> None:
        """Only where there are some: what is never written takes no room on the disk."""
        if not scales.all():
            from numba_kernels.cpu.unpacking import zero_scales

            write_at(self._descriptor, offset, zero_scales(scales), self._path)

    def finish(self) -> list[Path]:
        with full_disk_is_no_room(self._path):
            pieces = list(self.layout.pieces())
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                hashes = b"".join(pool.map(lambda piece: piece_hash(self._descriptor, piece, self._path), pieces))
            write_at(self._descriptor, self.layout.hashes, np.frombuffer(hashes, np.uint8), self._path)
            os.fsync(self._descriptor)
            head = preamble(self.layout.size, self._table, hashes)
            write_at(self._descriptor, 0, np.frombuffer(head, np.uint8), self._path)
            os.fsync(self._descriptor)
            sync_folder(self._folder)
        return [self._path]

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _unfinished(head: bytes) -> bytes:
    """A file's beginning as it is before it is finished."""
    hashes = PREAMBLE.size - 32 - HASH_BYTES
    return head[:hashes] + bytes(HASH_BYTES) + head[hashes + HASH_BYTES :]


def _texts(metadata: Metadata) -> dict[str, bytes]:
    """Configuration, metadata and companion files, as the file holds them. Raises BadCheckpoint for a bad name."""
    companions.companion_files(metadata)  # looks at the names
    if len(metadata.files) > MAX_FILES or {"config", "metadata"} & set(metadata.files):
        raise BadCheckpoint(f"{len(metadata.files)} companion files; a run-ready file takes {MAX_FILES}")
    config = {key: value for key, value in metadata.config.items() if key != "quantization_config"}
    rest = {name: getattr(metadata, name) for name in FIELDS}
    return {"config": json_bytes(config), "metadata": json_bytes(rest), **metadata.files}
