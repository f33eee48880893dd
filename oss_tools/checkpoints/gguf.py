"""GGUF: the file of llama.cpp and its relatives, whole or split into `name-00001-of-00003.gguf` parts. Reading.

Headers are read by our own parser (`gguf_header`), tensor data with pread. Axes are listed slowest first, as everywhere in
this program; GGUF lists them fastest first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, Keys
from gguf.gguf_writer import SHARD_NAME_FORMAT

from oss_tools.checkpoints import gguf_kinds, gguf_nvfp4, gguf_tokenizer
from oss_tools.checkpoints.base import Metadata, Reader, StoredTensor
from oss_tools.checkpoints.data_file import DataFile
from oss_tools.checkpoints.gguf_header import FACTS_OF_THE_FILE, MAGIC, MAX_NAME, Header, TensorInfo, read_header, row_bytes
from oss_tools.checkpoints.gguf_values import StringArray
from oss_tools.checkpoints.hf import looks_like_safetensors
from oss_tools.checkpoints.layouts import to_float32
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import QTensor, format_of_ggml, get_format

PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
COMPANION = re.compile(r"(^|[-_.])(mmproj|imatrix)([-_.]|$)", re.IGNORECASE)
INTEGERS = (GGMLQuantizationType.I8, GGMLQuantizationType.I16, GGMLQuantizationType.I32, GGMLQuantizationType.I64)


class _Part:
    """One open GGUF file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise BadCheckpoint(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadCheckpoint(f"{path}: cannot be opened: {error.strerror}") from None
        self.data = DataFile(self._descriptor, path)
        try:
            self.header: Header = read_header(self._descriptor, path)
        except BaseException:
            self.close()
            raise

    def split(self) -> tuple[int, int]:
        """(this part's number from 0, how many parts there are). Raises BadCheckpoint."""
        count, number = (
            self.header.keys.get(Keys.Split.LLM_KV_SPLIT_COUNT, 1),
            self.header.keys.get(Keys.Split.LLM_KV_SPLIT_NO, 0),
        )
        if type(count) is not int or type(number) is not int or not 0 <= number < max(count, 1):
            raise BadCheckpoint(f"{self.path}: split.no is {str(number)[:20]!r}, split.count {str(count)[:20]!r}")
        return number, max(count, 1)

    def holds_another(self) -> bool:
        """Whether a second GGUF file lies behind this one's tensors: parts that were joined with `cat`."""
        alignment = self.header.keys.get(Keys.General.ALIGNMENT, GGUF_DEFAULT_ALIGNMENT)
        end = max((info.offset + info.nbytes for info in self.header.tensors), default=self.header.data_start)
        end += -end % alignment
        size = os.fstat(self._descriptor).st_size
        return size >= end + len(MAGIC) and self.read(end, len(MAGIC)).tobytes() == MAGIC

    def read(self, offset: int, nbytes: int) -> np.ndarray:
        """Bytes of the file, freshly allocated: uint8 [nbytes]. Raises BadCheckpoint."""
        return self.data.read(offset, nbytes)

    @property
    def descriptor(self) -> int:
        return self._descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            self.data.close()
            os.close(self._descriptor)
            self._descriptor = -1


class GgufReader(Reader):
    """An open GGUF file, with all its parts. `model_type` is `general.architecture`, e.g. `gpt-oss`."""

    container = "gguf"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        if path.is_dir():
            return not looks_like_safetensors(path) and any(path.glob("*.gguf"))
        if path.suffix == ".gguf" or not path.is_file():
            return path.suffix == ".gguf"
        try:
            with path.open("rb") as file:
                return file.read(4) == MAGIC
        except OSError:
            return False

    def __init__(self, path: Path, *, adapter: bool = False) -> None:
        """`adapter`: the file must be an adapter; else it must be a model."""
        self.path = path
        self._parts = _open_parts(_only_model(path) if path.is_dir() else path)
        try:
            self._keys = self._parts[0].header.keys
            self._refuse_other_kinds(adapter)
            self._ollama = gguf_kinds.is_ollama(self._keys)
            if self._ollama:
                self._keys = gguf_kinds.ollama_keys(self._keys)
                self.remarks = (gguf_kinds.OLLAMA_REMARK,)
            self._places: dict[str, tuple[_Part, TensorInfo]] = {}
            self.tensors = {}
            others: dict[str, str] = {}
            for part in self._parts:
                for info in part.header.tensors:
                    self._add(part, info, others)
            self.others = others
            self._nvfp4_scales = self._take_scales()
            self.model_type = self._architecture()
        except BaseException:
            self.close()
            raise

    def _refuse_other_kinds(self, adapter: bool) -> None:
        """Raises BadCheckpoint for GGUF files of other kinds."""
        if adapter:
            if (kind := self._keys.get(Keys.General.TYPE)) != "adapter":
                raise BadCheckpoint(f"{self.path}: holds no adapter but a {str(kind or 'model')[:40]}; the base comes first")
        elif kind := gguf_kinds.no_model(self._keys):
            raise BadCheckpoint(f"{self.path}: {kind}")

    def _add(self, part: _Part, info: TensorInfo, others: dict[str, str]) -> None:
        name = gguf_kinds.ollama_name(info.name) if self._ollama else info.name
        if name in self._places:
            raise BadCheckpoint(f"{part.path}: tensor {info.name} is in an earlier part too")
        if info.ggml_type in INTEGERS:
            others[name] = info.ggml_type.name
            return
        found = {GGMLQuantizationType.NVFP4: get_format("nvfp4"), GGMLQuantizationType.F64: get_format("f32")}.get(
            info.ggml_type, format_of_ggml(info.ggml_type)
        )
        if found is None:
            raise BadCheckpoint(
                f"{part.path}: tensor {info.name} has the format {info.ggml_type.name}, which is not supported"
            )
        self._places[name] = (part, info)
        self.tensors[name] = StoredTensor(name, found, info.shape)

    def _take_scales(self) -> dict[str, str]:
        """NVFP4 tensor -> the tensor that holds its scale, one for all or one for each expert. They are not listed."""
        found = {}
        for name, tensor in list(self.tensors.items()):
            if tensor.format.name != "nvfp4":
                continue
            scale, input_scale = (self.tensors.pop(companion, None) for companion in gguf_nvfp4.companions(name))
            for companion in (scale, input_scale):
                if companion and (companion.format.name != "f32" or companion.size not in (1, tensor.shape[0])):
                    raise BadCheckpoint(f"{self.path}: tensor {companion.name} is not the scale of {name}")
            if scale:
                found[name] = scale.name
        return found

    def _architecture(self) -> str:
        name = self.raw_config.get(Keys.General.ARCHITECTURE)
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise BadCheckpoint(f"{self.path}: key {Keys.General.ARCHITECTURE} is missing or no name")
        return name

    @property
    def raw_config(self) -> dict[str, Any]:
        return self._keys

    def read(self, name: str, start: int, stop: int, columns: int) -> QTensor:
        part, info = self._places[name]
        tensor = self.tensors[name]
        if columns != info.shape[-1] and not (tensor.format.is_float and tensor.size % columns == 0):
            raise ValueError(f"{name}: rows of {columns} values, the tensor's have {info.shape[-1]}")
        if not 0 <= start <= stop <= tensor.size // columns:
            raise IndexError(f"{name}: rows {start}..{stop} of {tensor.size // columns}")
        row = row_bytes(info.ggml_type, columns)
        data = part.read(info.offset + start * row, (stop - start) * row).reshape(stop - start, row)
        if tensor.format.name == "nvfp4":
            return QTensor(tensor.format, (stop - start, columns), gguf_nvfp4.unpack(data, self._scales(name, start, stop)))
        if info.ggml_type == GGMLQuantizationType.F64:
            return QTensor(
                tensor.format, (stop - start, columns), {"values": to_float32(data.view("<f8"), name, str(part.path))}
            )
        if info.in_value_order:
            blocks = data.reshape(stop - start, columns // 32, 17)
            planes = {"blocks": blocks[..., 1:].reshape(stop - start, -1), "scales": np.ascontiguousarray(blocks[..., 0])}
            return QTensor(tensor.format, (stop - start, columns), planes)
        return tensor.format.unpack_ggml(data, columns)

    def _scales(self, name: str, start: int, stop: int) -> np.ndarray:
        """The tensor scale of each of an NVFP4 tensor's rows: float32 [stop - start]."""
        if name not in self._nvfp4_scales:
            return np.ones(stop - start, np.float32)
        part, info = self._places[self._nvfp4_scales[name]]
        scales = part.read(info.offset, info.nbytes).view("<f4")
        return scales[np.arange(start, stop) * len(scales) // self.tensors[name].rows]

    def metadata(self, config: dict[str, Any]) -> Metadata:
        try:
            return gguf_tokenizer.to_hf(self.raw_config, config, _general(self.raw_config), str(self.path))
        except BadCheckpoint as error:
            if self._ollama:
                raise BadCheckpoint(f"{error} (a file in Ollama's own layout of gpt-oss)") from None
            raise

    def files(self) -> list[Path]:
        return [part.path for part in self._parts]

    def descriptors(self) -> list[int]:
        return [part.descriptor for part in self._parts]

    def data_files(self) -> list[DataFile]:
        return [part.data for part in self._parts]

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _only_model(folder: Path) -> Path:
    """The GGUF file, or a split one's first part, that is alone in a folder, but for what travels with a model and is none
    (mmproj, imatrix). Raises BadCheckpoint."""
    models: dict[tuple[str, ...], Path] = {}
    there = sorted(folder.glob("*.gguf"))
    for path in [path for path in there if not COMPANION.search(path.name)] or there:
        match = PART_NAME.fullmatch(path.name)
        models.setdefault((match[1], match[3]) if match else (path.name,), path)
    if len(models) != 1:
        names = ", ".join(p.name for p in models.values())
        raise BadCheckpoint(f"{folder}: holds {len(models)} GGUF models ({names[:200]}); name one of them")
    return next(iter(models.values()))


def _open_parts(path: Path) -> list[_Part]:
    """All parts of a GGUF file, in order, given any of them. Raises BadCheckpoint."""
    opened = _Part(path)
    parts: list[_Part] = []
    try:
        number, count = opened.split()
        if count > 1 and opened.holds_another():
            raise BadCheckpoint(
                f"{path}: {count} parts of a split file joined one behind the other; keep them as they came, each with its own "
                "name, and give the first one, or join them with llama.cpp's `llama-gguf-split --merge`"
            )
        for index in range(count):
            parts.append(opened if index == number else _Part(_sibling(path, number, index, count)))
            if parts[index].split() != (index, count):
                raise BadCheckpoint(f"{parts[index].path}: split.no and split.count do not say part {index + 1} of {count}")
        total = sum(len(part.header.tensors) for part in parts)
        claimed = parts[0].header.keys.get(Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, total)
        if count > 1 and claimed != total:
            raise BadCheckpoint(f"{path}: the parts hold {total} tensors, split.tensors.count says {str(claimed)[:20]!r}")
        return parts
    except BaseException:
        for part in [opened, *parts]:
            part.close()
        raise


def _sibling(path: Path, number: int, index: int, count: int) -> Path:
    match = PART_NAME.fullmatch(path.name)
    if not match or (int(match[2]), int(match[3])) != (number + 1, count):
        raise BadCheckpoint(
            f"{path}: part {number + 1} of {count} of a split file, but not named so; its name must end in "
            f"-{number + 1:05d}-of-{count:05d}.gguf"
        )
    sibling = path.with_name(SHARD_NAME_FORMAT.format(match[1], index + 1, count))
    if not sibling.exists():
        raise BadCheckpoint(f"{sibling}: this part of the split file {path.name} is missing")
    return sibling


def _general(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The descriptive `general.*` keys, without that prefix."""
    found = {}
    for key, value in keys.items():
        name = key.removeprefix("general.")
        if name != key and name not in FACTS_OF_THE_FILE:
            found[name] = list(value) if isinstance(value, StringArray) else value
    return {name: value for name, value in found.items() if not isinstance(value, np.ndarray)}
