"""Which experts a model chose, token by token and layer by layer, in a file: written while it runs, read by measurements.

The file, little-endian: `OSSTRACE`, then uint32: version 1, layers, experts, top; uint32 [layers], their numbers in the model.
Then, for every forward pass, uint32 rows (tokens) and uint16 [layers, rows, top]: the experts of each token, the likeliest first.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from oss_tools.errors import BadRequest
from oss_tools.models import Architecture
from oss_tools.models.stacks import expert_layers

MAGIC = b"OSSTRACE"
VERSION = 1
HEADER = struct.Struct("<8s4I")
ROWS = struct.Struct("<I")
MOST_LAYERS, MOST_EXPERTS, MOST_ROWS = 1 << 12, 1 << 16, 1 << 20


@dataclass(frozen=True)
class Trace:
    """What was chosen.

    Attributes:
        layers: numbers of the layers that have experts.
        experts, top: how many a layer has, and how many a token has of them (the most of any layer).
        passes: of every forward pass uint16 [layers, tokens, top].
    """

    layers: tuple[int, ...]
    experts: int
    top: int
    passes: list[np.ndarray]

    @property
    def tokens(self) -> int:
        return sum(chosen.shape[1] for chosen in self.passes)


def read_trace(path: str | Path) -> Trace:
    """A trace file. Raises BadRequest for what is none, or is cut off."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read(path, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise BadRequest(f"{path}: cannot be read: {error.strerror}") from None


def _read(path: Path, file: BinaryIO, size: int) -> Trace:
    head = file.read(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise BadRequest(f"{path}: no trace of experts, which --trace-experts writes")
    _, version, layers, experts, top = HEADER.unpack(head)
    if version != VERSION:
        raise BadRequest(f"{path}: version {version} of the trace; this program reads {VERSION}")
    if not 1 <= layers <= MOST_LAYERS or not 1 <= top <= experts <= MOST_EXPERTS:
        raise BadRequest(f"{path}: {layers} layers with {top} of {experts} experts are no model's")
    numbers = np.frombuffer(_exactly(path, file, 4 * layers, size), "<u4")
    passes: list[np.ndarray] = []
    while start := file.read(ROWS.size):
        (rows,) = ROWS.unpack(start) if len(start) == ROWS.size else (0,)
        if not 1 <= rows <= MOST_ROWS:
            raise BadRequest(f"{path}: damaged or cut off in pass {len(passes)}")
        chosen = np.frombuffer(_exactly(path, file, 2 * layers * rows * top, size), "<u2").reshape(layers, rows, top)
        if chosen.max() >= experts:
            raise BadRequest(f"{path}: pass {len(passes)} names expert {chosen.max()} of {experts}")
        passes.append(chosen)
    return Trace(tuple(numbers.tolist()), experts, top, passes)


def _exactly(path: Path, file: BinaryIO, nbytes: int, size: int) -> bytes:
    """So many bytes, if the file has them: nothing is reserved for what is not there."""
    if file.tell() + nbytes > size:
        raise BadRequest(f"{path}: cut off: it ends at byte {size}, {file.tell() + nbytes} were meant")
    content = file.read(nbytes)
    if len(content) != nbytes:
        raise BadRequest(f"{path}: ended while being read; did it change?")
    return content


class TraceWriter:
    """Writes a trace into `FILE.partial`, which `close` gives its name."""

    def __init__(self, path: Path, layers: tuple[int, ...], experts: int, top: int) -> None:
        """Raises BadRequest where no such file can be made."""
        self._path, self._partial = path, path.with_name(f"{path.name}.partial")
        self._shape = len(layers), top
        try:
            self._file = self._partial.open("wb")
        except OSError as error:
            raise BadRequest(f"{path}: the trace cannot be written there: {error.strerror}") from None
        self._write(HEADER.pack(MAGIC, VERSION, len(layers), experts, top) + np.array(layers, "<u4").tobytes())

    def add(self, chosen: list[np.ndarray]) -> None:
        """Appends a forward pass: of each layer the experts, int [tokens, that layer's top]."""
        layers, top = self._shape
        whole = np.empty((layers, len(chosen[0]), top), "<u2")
        for layer, ids in enumerate(chosen):
            whole[layer, :, : ids.shape[1]] = ids
            whole[layer, :, ids.shape[1] :] = ids[:, -1:]  # where a layer has fewer: once more
        self._write(ROWS.pack(len(chosen[0])) + whole.tobytes())

    def _write(self, content: bytes) -> None:
        try:
            self._file.write(content)
        except OSError as error:
            raise BadRequest(f"{self._path}: the trace cannot be written: {error.strerror}") from None

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            self._file.close()
            self._partial.replace(self._path)
        except OSError as error:
            raise BadRequest(f"{self._path}: the trace cannot be written: {error.strerror}") from None


def trace_writer(path: Path, architecture: Architecture) -> TraceWriter:
    """What writes down which experts a model chooses. Raises BadRequest for a model that has none."""
    layers = expert_layers(architecture)
    if not layers:
        raise BadRequest(f"--trace-experts {path}: this model has no experts")
    numbers = {spec.name: spec.layer or 0 for spec in architecture.tensors()}
    most = max(layer.router.experts for layer in layers), max(layer.router.chosen for layer in layers)
    return TraceWriter(path, tuple(numbers[layer.stacks[0][0][0]] for layer in layers), *most)
