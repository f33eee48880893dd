"""The files of an adapter: tensors of floats, read by rows or columns, looked through once before anything is made of them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from oss_tools.checkpoints.gguf import GgufReader
from oss_tools.checkpoints.layouts import FLOATS, NUMPY, to_float32
from oss_tools.checkpoints.safetensors import DTYPES, SafetensorsFile
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import QTensor, get_format

AT_ONCE = 4 << 20  # bytes that are looked through at a time
LARGEST = 1e30  # of a factor's values: sums of products of two such are beyond float32


class AdapterTensor(ABC):
    """A tensor of an adapter's file, as a matrix of `height` rows and `width` columns: leading axes are flattened.

    Attributes:
        name: in the file.
        shape: as there, slowest axis first.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        return self.shape[-1]

    @property
    def height(self) -> int:
        size = 1
        for axis in self.shape[:-1]:
            size *= axis
        return size

    @abstractmethod
    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop): float32 [stop - start, width], freshly made. Raises BadCheckpoint."""

    def columns(self, start: int, stop: int, first: int = 0, last: int | None = None) -> np.ndarray:
        """Columns [start, stop) of rows [first, last): float32 [last - first, stop - start]. Raises BadCheckpoint."""
        last = self.height if last is None else last
        step = max(AT_ONCE // (4 * self.width), 1)
        parts = [self.rows(row, min(row + step, last))[:, start:stop].copy() for row in range(first, last, step)]
        return np.concatenate(parts) if parts else np.empty((0, stop - start), np.float32)

    def vector(self) -> np.ndarray:
        """All values in a row: float32 [n]."""
        return self.rows(0, self.height).reshape(-1)

    def pieces(self) -> Iterator[np.ndarray]:
        """All rows, some at a time."""
        step = max(AT_ONCE // (4 * self.width), 1)
        for start in range(0, self.height, step):
            yield self.rows(start, min(start + step, self.height))


class AdapterFile(ABC):
    """An open file of an adapter.

    Attributes:
        path: the file.
        tensors: name -> AdapterTensor, those that hold floats.
    """

    path: Path
    tensors: dict[str, AdapterTensor]

    def check_values(self) -> None:
        """Reads all of it. Raises BadCheckpoint where a value is NaN, infinite or absurd."""
        for tensor in self.tensors.values():
            for rows in tensor.pieces():
                largest = float(np.abs(rows).max(initial=0))
                if not largest <= LARGEST:
                    what = f"a value of {largest:.3g}" if np.isfinite(largest) else "NaN or infinity"
                    raise BadCheckpoint(f"{self.path}: tensor {tensor.name} holds {what}; the adapter is damaged")

    def sha256(self) -> str:
        """Of the file's bytes."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @abstractmethod
    def close(self) -> None: ...


# ---- safetensors ----------------------------------------------------------------------------------------------------


class _SafetensorsTensor(AdapterTensor):
    def __init__(self, file: SafetensorsFile, name: str) -> None:
        self._file, self._raw = file, file.tensors[name]
        self.name, self.shape = name, self._raw.shape or (1,)
        self._bytes = DTYPES[self._raw.dtype] // 8
        if self._raw.dtype not in FLOATS:
            raise BadCheckpoint(f"{file.path}: tensor {name} has dtype {self._raw.dtype}; adapters are of F32, BF16 or F16")
        if not self._raw.size:
            raise BadCheckpoint(
                f"{file.path}: tensor {name} is empty, shape {list(self.shape)}: saved while DeepSpeed (ZeRO-3) or FSDP had its "
                "values on other devices; gather them and save it again"
            )

    def _values(self, data: np.ndarray) -> np.ndarray:
        values = data.view(NUMPY[self._raw.dtype])
        if self._raw.dtype == "F64":
            return to_float32(values, self.name, str(self._file.path))
        format = get_format(FLOATS[self._raw.dtype])
        return np.array(QTensor(format, (1, values.size), {"values": values.reshape(1, -1)}).dequantize()[0])

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._flat(start * self.width, stop * self.width).reshape(stop - start, self.width)

    def _flat(self, start: int, stop: int) -> np.ndarray:
        return self._values(self._file.read(self._raw, start * self._bytes, stop * self._bytes))

    def pieces(self) -> Iterator[np.ndarray]:  # before a shape is held against the base's, whose rows may be of any length
        for start in range(0, self._raw.size, AT_ONCE // 4):
            yield self._flat(start, min(start + AT_ONCE // 4, self._raw.size))

    def columns(self, start: int, stop: int, first: int = 0, last: int | None = None) -> np.ndarray:
        last = self.height if last is None else last
        if (stop - start) * 8 > self.width:
            return super().columns(start, stop, first, last)
        places = (row * self.width + start for row in range(first, last))
        parts = [self._flat(place, place + stop - start) for place in places]
        return np.stack(parts) if parts else np.empty((0, stop - start), np.float32)


class SafetensorsAdapter(AdapterFile):
    """A safetensors file of an adapter."""

    def __init__(self, path: Path) -> None:
        """Raises BadCheckpoint."""
        self.path = path
        self._file = SafetensorsFile(path)
        try:
            if not self._file.tensors:
                raise BadCheckpoint(f"{path}: holds no tensors")
            self.tensors = {name: _SafetensorsTensor(self._file, name) for name in self._file.tensors}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()


# ---- GGUF -----------------------------------------------------------------------------------------------------------


class _GgufTensor(AdapterTensor):
    def __init__(self, file: GgufReader, name: str) -> None:
        self._file, self.name, self.shape = file, name, file.tensors[name].shape
        if 0 in self.shape:
            raise BadCheckpoint(f"{file.path}: tensor {name} is empty, shape {list(self.shape)}")

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.array(self._file.read(self.name, start, stop, self.width).dequantize())


class GgufAdapter(AdapterFile):
    """A GGUF file of an adapter.

    Attributes:
        keys: its key-values.
    """

    def __init__(self, path: Path) -> None:
        """Raises BadCheckpoint."""
        self.path = path
        self._file = GgufReader(path, adapter=True)
        self.keys = self._file.raw_config
        try:
            self.tensors = {name: _GgufTensor(self._file, name) for name in self._file.tensors}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()
