"""The header of a GGUF file: key-values and tensor infos, read from a file that is not to be trusted.

Layout after https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian). Every length and
count is held against the file's size before memory is taken for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUF_VERSION, GGMLQuantizationType, Keys

from oss_tools.checkpoints.files import what_bytes_are
from oss_tools.checkpoints.gguf_values import U32, U64, Cursor, Pread, read_value

MAGIC = b"GGUF"
VERSIONS = (2, GGUF_VERSION)
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16  # those with one tensor for each expert have some 20,000
MAX_KEY = 1024  # bytes of a key's name
MAX_NAME = 64  # bytes of a tensor's name
# Of `general.*`; the others describe the model.
FACTS_OF_THE_FILE = ("architecture", "type", "alignment", "file_type", "quantization_version", "size_label")
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20
OLLAMA_GPT_OSS = "gptoss"  # Ollama's own name of the architecture
OLLAMA_MXFP4 = 4  # the type number of MXFP4 in its early files (ollama/ollama: fs/ggml/type.go)
REMOVED_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
FIRST_OF_IK_LLAMA = 97  # ikawrakow/ik_llama.cpp: ggml/include/ggml.h


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's entry in the header.

    Attributes:
        name: its name.
        shape: the axes, slowest first (the file lists them fastest first).
        ggml_type: the number format.
        offset: of its first byte, from the file's start.
        nbytes: how long it is.
        in_value_order: whether an MXFP4 block's codes lie as OpenAI has them, two neighbours a byte (Ollama's early files).
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: GGMLQuantizationType
    offset: int
    nbytes: int
    in_value_order: bool = False


@dataclass(frozen=True)
class Header:
    """A GGUF file's header.

    Attributes:
        version: 2 or 3.
        keys: the key-values. Numbers, booleans and strings are Python's; arrays are NumPy's, or StringArray. A 32-bit float
            is the shortest decimal that rounds to it (1e-05, not 9.999999747378752e-06).
        tensors: in file order.
        data_start: where the tensor data begins.
    """

    version: int
    keys: dict[str, Any]
    tensors: list[TensorInfo]
    data_start: int


def read_header(descriptor: int, path: Path, pread: Pread = os.pread) -> Header:
    """Reads and checks the header of an open GGUF file. Raises BadCheckpoint.

    `path` is for messages; `pread` takes descriptor, count and offset as os.pread does, and may fetch what is still missing.
    """
    cursor = Cursor(descriptor, path, pread)
    version, tensor_count, key_count = _read_start(cursor)
    keys: dict[str, Any] = {}
    for index in range(key_count):
        key = cursor.name(f"the name of key {index}", MAX_KEY)
        if key in keys:
            cursor.fail(f"two keys are named {key}")
        keys[key] = read_value(cursor, f"key {key}")
    alignment = _alignment(cursor, keys)
    ollama = keys.get(Keys.General.ARCHITECTURE) == OLLAMA_GPT_OSS
    infos = [_read_info(cursor, index, ollama) for index in range(tensor_count)]
    start = -(-cursor.position // alignment) * alignment
    if infos:
        _check_places(cursor, infos, start, alignment)
    tensors = [replace(info, offset=start + info.offset) for info in infos]
    return Header(version, keys, tensors, start)


def _read_start(cursor: Cursor) -> tuple[int, int, int]:
    """(version, tensors, keys), the counts held against the file's size."""
    head = cursor.peek(512)
    if not head.startswith(MAGIC):
        if head[8:9] == b"{":
            cursor.fail("a safetensors file under another name; name it .safetensors")
        if not head:
            cursor.fail("an empty file: cut off, or a download that has not begun")
        cursor.fail(what_bytes_are(head) or "not a GGUF file: it does not begin with GGUF")
    cursor.take(4, "the magic number")
    version = cursor.scalar(U32, "the version")
    if version and version & 0xFFFF == 0:
        cursor.fail("a big-endian GGUF file; only little-endian ones can be read")
    if version not in VERSIONS:
        cursor.fail(f"GGUF version {version} is not supported; supported: {', '.join(map(str, VERSIONS))}")
    tensors, keys = cursor.scalar(U64, "the number of tensors"), cursor.scalar(U64, "the number of keys")
    room = cursor.size - cursor.position
    for count, limit, least, what in ((tensors, MAX_TENSORS, 32, "tensors"), (keys, MAX_KEYS, 13, "keys")):
        if count > limit or count * least > room:
            cursor.fail(f"the header claims {count} {what}, which a file of {cursor.size} bytes cannot hold")
    return version, tensors, keys


def _alignment(cursor: Cursor, keys: dict[str, Any]) -> int:
    alignment = keys.get(Keys.General.ALIGNMENT, GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.fail(f"key {Keys.General.ALIGNMENT} is {str(alignment)[:80]!r}, expected a power of two")
    return alignment


def _read_info(cursor: Cursor, index: int, ollama: bool) -> TensorInfo:
    """One tensor's entry; its offset is still counted from the data's start."""
    name = cursor.name(f"the name of tensor {index}", MAX_NAME)
    what = f"tensor {name}"
    dims = cursor.scalar(U32, what)
    if dims > MAX_DIMS:
        cursor.fail(f"{what} has {dims} axes, at most {MAX_DIMS} are allowed")
    shape = tuple(cursor.scalar(U64, what) for _ in range(dims))[::-1] or (1,)
    number = cursor.scalar(U32, what)
    offset = cursor.scalar(U64, what)
    in_value_order = ollama and number == OLLAMA_MXFP4
    try:
        ggml_type = GGMLQuantizationType.MXFP4 if in_value_order else GGMLQuantizationType(number)
        block, size = GGML_QUANT_SIZES[ggml_type]
    except (ValueError, KeyError):
        cursor.fail(f"{what} has the {_unknown_type(number)}")
    if 0 in shape or shape[-1] % block:
        cursor.fail(f"{what} has shape {list(shape)}, impossible for blocks of {block} {ggml_type.name} values")
    values = 1
    for axis in shape:
        values *= axis
    return TensorInfo(name, shape, ggml_type, offset, values // block * size, in_value_order)


def _unknown_type(number: int) -> str:
    """A tensor's number format that gguf-py does not know, as a message names it."""
    if number in REMOVED_TYPES:
        return f"format {REMOVED_TYPES[number]} (type {number}), which llama.cpp has removed; take a file in another format"
    if number >= FIRST_OF_IK_LLAMA:
        return f"unknown number format {number}; such numbers are ik_llama.cpp's own (IQ4_K …): take a file for llama.cpp"
    return f"unknown number format {number}"


def _check_places(cursor: Cursor, infos: list[TensorInfo], start: int, alignment: int) -> None:
    """Names unique; offsets aligned, in order, apart, and inside the file."""
    names: set[str] = set()
    end = 0
    for info in infos:
        if info.name in names:
            cursor.fail(f"two tensors are named {info.name}")
        names.add(info.name)
        if info.offset % alignment:
            cursor.fail(f"tensor {info.name} begins at offset {info.offset}, no multiple of the alignment {alignment}")
        if info.offset < end:
            cursor.fail(f"tensor {info.name} begins at offset {info.offset}, inside or before the tensor that precedes it")
        end = info.offset + info.nbytes
        if start + end > cursor.size:
            cursor.fail(
                f"damaged or cut off: tensor {info.name} would end at byte {start + end}, the file has {cursor.size}"
            )


def row_bytes(ggml_type: int, columns: int) -> int:
    """Bytes of a row of so many values in a ggml type."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(ggml_type)]
    return columns // block * size
