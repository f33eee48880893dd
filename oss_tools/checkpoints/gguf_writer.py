"""GGUF, whole or split into parts. Writing: headers by the gguf package, tensor data with pwrite."""

from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType, Keys, LlamaFileType
from gguf.gguf_writer import SHARD_NAME_FORMAT, GGUFWriter, WriterState
from gguf.utility import size_label

from oss_tools.checkpoints import gguf_tokenizer
from oss_tools.checkpoints.base import Contents, StoredTensor, Writer
from oss_tools.checkpoints.files import full_disk_is_no_room, sync_folder, write_at
from oss_tools.checkpoints.gguf_header import FACTS_OF_THE_FILE, row_bytes
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import Format, QTensor

QUANTIZATION_VERSION = 2  # of the block formats' layout; llama.cpp knows no other
FLOAT_ROLES = ("norm", "bias", "sinks", "rope", "router", "positions")  # float32 in every file that llama.cpp makes
FLOAT_KEYS = (  # ends of keys whose value is a float even where it is a whole number
    "epsilon",
    ".freq_base",
    ".scaling.factor",
    ".attn_factor",
    ".yarn_ext_factor",
    ".yarn_attn_factor",
    ".yarn_beta_fast",
    ".yarn_beta_slow",
    ".yarn_log_multiplier",
)
FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "q4_1": LlamaFileType.MOSTLY_Q4_1,
    "q5_0": LlamaFileType.MOSTLY_Q5_0,
    "q5_1": LlamaFileType.MOSTLY_Q5_1,
    "iq4_nl": LlamaFileType.MOSTLY_IQ4_NL,
    "q2_k": LlamaFileType.MOSTLY_Q2_K,
    "q3_k": LlamaFileType.MOSTLY_Q3_K_M,
    "q4_k": LlamaFileType.MOSTLY_Q4_K_S,
    "q5_k": LlamaFileType.MOSTLY_Q5_K_S,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
    "mxfp4": LlamaFileType.MOSTLY_MXFP4_MOE,
    "nvfp4": LlamaFileType.MOSTLY_NVFP4,
}
WITH_Q6_K = {"q4_k": LlamaFileType.MOSTLY_Q4_K_M, "q5_k": LlamaFileType.MOSTLY_Q5_K_M}  # where some layers' tensors are q6_k


@dataclass(frozen=True)
class _Place:
    """Where a tensor goes: file, first byte, and what it is."""

    descriptor: int
    path: Path
    offset: int
    tensor: StoredTensor


class GgufWriter(Writer):
    """A GGUF file being written, or several parts of one if `shard_size` asks for it."""

    container = "gguf"
    extension = ".gguf"

    @classmethod
    def holds(cls, format: Format, role: str, model_type: str) -> bool:
        if role in FLOAT_ROLES:
            return format.name == "f32"
        if role == "attention.kv_b" and not format.is_float:  # its keys' part is transposed there, and blocks do not turn
            return False
        # NVFP4's per-tensor scale is a tensor of its own there, and llama.cpp applies it in few architectures.
        return format.ggml_type is not None and format.ggml_type != GGMLQuantizationType.NVFP4

    @classmethod
    def total_bytes(cls, tensors: list[StoredTensor]) -> int:
        return sum(_padded(_nbytes(t)) for t in tensors)

    @classmethod
    def check(cls, contents: Contents) -> None:
        _make_headers(contents)

    def __init__(self, folder: Path, contents: Contents) -> None:
        self._folder = folder
        self._places: dict[str, _Place] = {}
        self._descriptors: list[int] = []
        self._paths: list[Path] = []
        self._writing = threading.Lock()
        name, by_name = contents.name, {t.name: t for t in contents.tensors}
        headers = _make_headers(contents)
        try:
            for index, (header, names) in enumerate(headers):
                part = f"{name}.gguf" if len(headers) == 1 else SHARD_NAME_FORMAT.format(name, index + 1, len(headers))
                self._open(folder / part, header, [by_name[n] for n in names])
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, header: bytes, tensors: list[StoredTensor]) -> None:
        offset = len(header)
        size = offset + self.total_bytes(tensors)
        _lay_out(path, header, size)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._descriptors.append(descriptor)
        self._paths.append(path)
        for tensor in tensors:
            self._places[tensor.name] = _Place(descriptor, path, offset, tensor)
            offset += _padded(_nbytes(tensor))

    def write(self, name: str, start: int, rows: QTensor) -> None:
        place = self._places[name]
        if rows.format != place.tensor.format:
            raise ValueError(f"{name}: rows in {rows.format.name} for a tensor in {place.tensor.format.name}")
        data = np.ascontiguousarray(rows.format.pack_ggml(rows))
        first = start * data.shape[1]
        if not 0 <= first <= first + data.nbytes <= _nbytes(place.tensor):
            raise IndexError(f"{name}: rows {start}..{start + len(data)} are not all inside the tensor")
        with self._writing:  # the system lets one thread write to a file at a time; others would wait for it busily
            write_at(place.descriptor, place.offset + first, data, place.path)

    def readable(self) -> Path | None:
        return self._paths[0]

    def finish(self) -> list[Path]:
        with full_disk_is_no_room(self._folder):
            for descriptor in self._descriptors:
                os.fsync(descriptor)
            sync_folder(self._folder)
        return list(self._paths)

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


class _HeaderWriter(GGUFWriter):
    """gguf's writer, its files in memory: one header for every part."""

    def open_output_file(self, path: Path | None = None) -> None:
        self.fout = [io.BytesIO() for _ in self.tensors]
        self.state = WriterState.EMPTY

    def _pack_val(self, val: Any, vtype: GGUFValueType, add_vtype: bool, sub_type: GGUFValueType | None = None) -> bytes:
        """The same bytes as the package's; long lists in one go, since vocabularies have hundreds of thousands of items."""
        packed = _packed(val) if vtype == GGUFValueType.ARRAY and sub_type is None and isinstance(val, list) else None
        if packed is None:
            return super()._pack_val(val, vtype, add_vtype, sub_type)
        kind, items = packed
        head = struct.pack("<I", vtype) if add_vtype else b""
        return head + struct.pack("<IQ", kind, len(val)) + items


def _packed(values: list[Any]) -> tuple[GGUFValueType, bytes] | None:
    """A list's items as GGUF has them, and their type, if all are texts or all are 32-bit integers; else None."""
    kinds = set(map(type, values))
    if kinds == {str}:
        texts = [text.encode() for text in values]
        lengths = np.array([len(text) for text in texts], "<u8").tobytes()
        return GGUFValueType.STRING, b"".join(
            part for i, text in enumerate(texts) for part in (lengths[8 * i : 8 * i + 8], text)
        )
    if kinds == {int} and -(1 << 31) <= min(values) <= max(values) < 1 << 31:
        return GGUFValueType.INT32, np.array(values, "<i4").tobytes()
    return None


def _make_headers(contents: Contents) -> list[tuple[bytes, list[str]]]:
    """For each part its header, padded to where the data begins, and the names of its tensors."""
    tensors, keys, shard_size = contents.tensors, _all_keys(contents), contents.shard_size
    splits = shard_size is not None and len(tensors) > 1 and sum(map(_nbytes, tensors)) > shard_size
    writer = _HeaderWriter(None, keys[Keys.General.ARCHITECTURE], split_max_size=shard_size if splits else 0)
    for tensor in tensors:
        kind = GGMLQuantizationType(tensor.format.ggml_type)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), _nbytes(tensor), raw_dtype=kind)
    keys.setdefault(Keys.General.SIZE_LABEL, size_label(*writer.get_total_parameter_count()))
    for key, value in keys.items():
        if key != Keys.General.ARCHITECTURE:  # gguf's writer has it from the start
            _add_key(writer, key, value)
    names = [list(part) for part in writer.tensors]
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
    except UnicodeEncodeError as error:
        raise BadCheckpoint(f"a token or other text is not Unicode: {error.object[:40]!r}") from None
    writer.write_ti_data_to_file()
    headers = [file.getvalue() for file in writer.fout]
    return [(h + bytes(_padded(len(h)) - len(h)), n) for h, n in zip(headers, names, strict=True)]


def _add_key(writer: GGUFWriter, key: str, value: Any) -> None:
    """Adds a key-value with the type that llama.cpp expects: counts are u32, real numbers f32, ids in arrays i32."""
    if isinstance(value, bool | np.bool_):
        writer.add_bool(key, bool(value))
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float) or (isinstance(value, int) and key.endswith(FLOAT_KEYS)):
        writer.add_float32(key, float(value))
    elif isinstance(value, int):
        (writer.add_uint32 if 0 <= value < 1 << 32 else writer.add_int64)(key, value)
    elif isinstance(value, np.ndarray):
        writer.add_array(key, value.tolist())
    elif isinstance(value, Sequence):
        writer.add_array(key, list(value))
    elif value is not None:
        raise BadCheckpoint(f"key {key}: GGUF has no type for {value!r}")


def _all_keys(contents: Contents) -> dict[str, Any]:
    """Every key of the file, in order."""
    metadata, config = contents.metadata, contents.container_config
    architecture = config[Keys.General.ARCHITECTURE]
    general = {f"general.{key}": value for key, value in metadata.general.items() if key not in FACTS_OF_THE_FILE}
    return {
        Keys.General.ARCHITECTURE: architecture,  # first, as readers expect it
        Keys.General.TYPE: "model",
        Keys.General.NAME: contents.name,
        **general,
        **config,
        Keys.General.FILE_TYPE: int(_file_type(contents.tensors)),
        **gguf_tokenizer.from_hf(metadata, architecture),
        Keys.General.QUANTIZATION_VERSION: QUANTIZATION_VERSION,
    }


def _file_type(tensors: list[StoredTensor]) -> LlamaFileType:
    """llama.cpp's word for the format that most values have."""
    values: dict[str, int] = {}
    for tensor in tensors:
        values[tensor.format.name] = values.get(tensor.format.name, 0) + tensor.size
    most = max(values, key=lambda n: values[n], default="f32")
    is_mixture = any(t.format.name == "q6_k" and t.name.startswith("blk.") for t in tensors)
    return (WITH_Q6_K if is_mixture else {}).get(most) or FILE_TYPES.get(most, LlamaFileType.GUESSED)


def _lay_out(path: Path, header: bytes, size: int) -> None:
    """Makes the file in full length, header and zeros; an existing file of these bytes is kept as it is."""
    if path.exists():
        with path.open("rb") as file:
            if path.stat().st_size != size or file.read(len(header)) != header:
                raise BadCheckpoint(f"{path}: left by another conversion; --overwrite starts anew")
        return
    new = path.with_name(path.name + ".new")
    with full_disk_is_no_room(path), new.open("wb") as file:
        file.write(header)
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _nbytes(tensor: StoredTensor) -> int:
    return tensor.rows * row_bytes(tensor.format.ggml_type or 0, tensor.shape[-1])


def _padded(nbytes: int) -> int:
    return -(-nbytes // GGUF_DEFAULT_ALIGNMENT) * GGUF_DEFAULT_ALIGNMENT
