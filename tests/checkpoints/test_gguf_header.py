"""The header parser against the gguf package's files, against hostile ones, and against random damage."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oss_tools.checkpoints.gguf import GgufReader
from oss_tools.checkpoints.gguf_header import Header, read_header
from oss_tools.checkpoints.gguf_values import MAX_HEADER, StringArray
from oss_tools.errors import BadCheckpoint, OssToolsError

HUGE = 1 << 60


def parse(path: Path) -> Header:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_header(descriptor, path)
    finally:
        os.close(descriptor)


@contextmanager
def little_memory(limit: int = 16 << 20) -> Iterator[None]:
    """Fails if Python and NumPy take more than this in between."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return u64(len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + u32(kind) + value


def tensor(name: str | bytes = "a", dims: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(kind) + u64(offset)


def file_of(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: int = 4096,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """A GGUF file of the given parts; `counts` lies about how many tensors and keys there are."""
    tensor_count, key_count = counts or (len(tensors), len(keys))
    head = b"GGUF" + u32(version) + u64(tensor_count) + u64(key_count) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


ARCHITECTURE = key("general.architecture", GGUFValueType.STRING, text("llama"))


def valid_file(path: Path, kind: str) -> Path:
    """A small file by the gguf package: keys of all types, a tokenizer of either kind, tensors in several formats."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small ✓")
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"):
        getattr(writer, f"add_{name}")(f"test.{name}", 7)
    writer.add_bool("test.bool", True)
    writer.add_array("test.floats", [1.5, 2.5])
    writer.add_array("test.bools", [True, False])
    writer.add_tokenizer_model(kind)
    tokens = ["<unk>", "<s>", "▁", "a", "b", "ab", "▁a", "<0x0A>"]
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 1, 1, 1, 1, 1, 6])
    writer.add_token_scores([0.0, 0.0, -3.0, -4.0, -5.0, -1.0, -2.0, 0.0])
    writer.add_token_merges(["a b", "▁ a"])
    writer.add_tokenizer_pre("smollm")
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("f32", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("f16", np.arange(6, dtype=np.float16))
    blocks = np.arange(2 * 34, dtype=np.uint8).reshape(2, 34)
    writer.add_tensor("q8_0", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    path = valid_file(tmp_path / "a.gguf", "gpt2")
    header, theirs = parse(path), gguf.GGUFReader(path)
    expected = {name: f.contents() for name, f in theirs.fields.items() if not name.startswith("GGUF.")}
    found = {name: list(v) if isinstance(v, (StringArray, np.ndarray)) else v for name, v in header.keys.items()}
    assert found == expected
    assert [(t.name, t.shape, t.offset, t.nbytes) for t in header.tensors] == [
        (t.name, tuple(int(n) for n in t.shape[::-1]), t.data_offset, t.n_bytes) for t in theirs.tensors
    ]


def test_floats_are_the_shortest_decimals(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(file_of((key("eps", GGUFValueType.FLOAT32, struct.pack("<f", 1e-5)),)))
    assert parse(path).keys == {"eps": 1e-5}


def test_version_2(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(file_of((ARCHITECTURE,), (tensor(),), version=2))
    assert parse(path).tensors[0].shape == (8,)


def test_strings_are_decoded_when_asked_for(tmp_path: Path) -> None:
    """A vocabulary is walked over; damage in it is found on access, with the key's name."""
    path = tmp_path / "a.gguf"
    strings = u32(GGUFValueType.STRING) + u64(3) + text("a") + text(b"\xff") + text("c")
    path.write_bytes(file_of((key("words", GGUFValueType.ARRAY, strings),)))
    words = parse(path).keys["words"]
    assert len(words) == 3
    with pytest.raises(BadCheckpoint, match=r"key words\[1\] is not UTF-8"):
        words[0]


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return key("k", GGUFValueType.ARRAY, u32(kind) + u64(count) + data)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cut off"),
    "other magic": (b"GGML" + bytes(60), "does not begin with GGUF"),
    "version 1": (file_of(version=1), "version 1 is not supported"),
    "version 4": (file_of(version=4), "version 4 is not supported"),
    "big endian": (b"GGUF" + struct.pack(">I", 3) + bytes(60), "big-endian"),
    "only a magic": (b"GGUF", "cut off"),
    "many tensors": (file_of(counts=(HUGE, 0)), "claims 1152921504606846976 tensors"),
    "many keys": (file_of(counts=(0, HUGE)), "claims 1152921504606846976 keys"),
    "keys beyond the file": (file_of(counts=(0, 2000)), "claims 2000 keys"),
    "long key": (file_of((u64(HUGE) + b"k" + u32(0) + b"\0",)), "claims 1152921504606846976 bytes"),
    "long string": (file_of((key("k", GGUFValueType.STRING, u64(HUGE)),)), "key k"),
    "wrapping string": (file_of((key("k", GGUFValueType.STRING, u64((1 << 64) - 1)),)), "key k"),
    "long array": (file_of((array(GGUFValueType.FLOAT64, HUGE),)), "key k claims"),
    "long array of strings": (file_of((array(GGUFValueType.STRING, HUGE),)), "key k claims"),
    "string in array beyond the file": (file_of((array(GGUFValueType.STRING, 2, text("a") + u64(HUGE)),)), "key k"),
    "nested arrays": (file_of((array(GGUFValueType.ARRAY, 1, u32(GGUFValueType.ARRAY) * 90),)), "array of arrays"),
    "unknown value type": (file_of((key("k", 99, b""),)), "unknown value type 99"),
    "unknown element type": (file_of((array(77, 1),)), "unknown value type 77"),
    "bad boolean": (file_of((key("k", GGUFValueType.BOOL, b"\x02"),)), "boolean of value 2"),
    "key not UTF-8": (file_of((key(b"\xff\xfe", GGUFValueType.UINT8, b"\0"),)), "name of key 0 is not UTF-8"),
    "value not UTF-8": (file_of((key("k", GGUFValueType.STRING, text(b"\xc0")),)), "key k is not UTF-8"),
    "nameless key": (file_of((key("", GGUFValueType.UINT8, b"\0"),)), "expected printable text"),
    "key of two lines": (file_of((key("a\nb", GGUFValueType.UINT8, b"\0"),)), "expected printable text"),
    "tensor name of two lines": (file_of((), (tensor("a\nb"),)), "expected printable text"),
    "duplicate key": (file_of((ARCHITECTURE, ARCHITECTURE)), "two keys are named general.architecture"),
    "alignment 0": (file_of((key("general.alignment", GGUFValueType.UINT32, u32(0)),)), "power of two"),
    "alignment 48": (file_of((key("general.alignment", GGUFValueType.UINT32, u32(48)),)), "power of two"),
    "alignment 2^31": (file_of((key("general.alignment", GGUFValueType.UINT32, u32(1 << 31)),)), "power of two"),
    "alignment text": (file_of((key("general.alignment", GGUFValueType.STRING, text("32")),)), "power of two"),
    "long tensor name": (file_of((), (tensor("n" * 65),)), "at most 64"),
    "tensor name not UTF-8": (file_of((), (tensor(b"\xff"),)), "not UTF-8"),
    "nameless tensor": (file_of((), (tensor(""),)), "expected printable text"),
    "duplicate tensor": (file_of((), (tensor(), tensor(offset=32))), "two tensors are named a"),
    "five axes": (file_of((), (tensor(dims=(1,) * 5),)), "5 axes"),
    "2^32 axes": (file_of((), (text("a") + u32((1 << 32) - 1) + bytes(64),)), "axes"),
    "empty axis": (file_of((), (tensor(dims=(8, 0)),)), "impossible"),
    "huge shape": (file_of((), (tensor(dims=(1 << 62, 1 << 62)),)), "would end at byte"),
    "half a block": (file_of((), (tensor(dims=(33,), kind=8),)), "impossible for blocks of 32"),
    "unknown format": (file_of((), (tensor(kind=4),)), "Q4_2 .type 4., which llama.cpp has removed"),
    "negative format": (file_of((), (tensor(kind=(1 << 32) - 1),)), "unknown number format"),
    "unaligned": (file_of((), (tensor(offset=4),)), "no multiple of the alignment"),
    "beyond the file": (file_of((), (tensor(offset=1 << 40),)), "would end at byte"),
    "wrapping offset": (file_of((), (tensor(offset=(1 << 64) - 32),)), "would end at byte"),
    "overlap": (file_of((), (tensor(dims=(64,)), tensor("b", offset=32))), "inside or before the tensor"),
    "out of order": (file_of((), (tensor(offset=64), tensor("b"))), "inside or before the tensor"),
    "data cut off": (file_of((), (tensor(dims=(4096,)),), data=100), "cut off"),
}


@pytest.mark.parametrize("case", HOSTILE, ids=lambda name: name.replace(" ", "-"))
def test_hostile_headers(tmp_path: Path, case: str) -> None:
    """Each gives one clear line, and takes no memory that the header merely claims."""
    content, message = HOSTILE[case]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with little_memory(), pytest.raises(BadCheckpoint, match=message) as caught:
        parse(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_endless_header(tmp_path: Path) -> None:
    """A string that the (sparse) file really has room for, but that no header needs."""
    path = tmp_path / "a.gguf"
    path.write_bytes(file_of((key("k", GGUFValueType.STRING, u64(MAX_HEADER + 1)),)))
    os.truncate(path, MAX_HEADER + 4096)
    with little_memory(), pytest.raises(BadCheckpoint, match="key k claims 268435457 bytes"):
        parse(path)


def use_everything(path: Path) -> None:
    """Whatever a program may do with a file that opened."""
    with GgufReader(path) as reader:
        reader.metadata({})
        for name, stored in reader.tensors.items():
            reader.read(name, 0, stored.rows, stored.shape[-1]).dequantize()


INTERESTING = st.sampled_from([0, 1, 31, 255, 1 << 31, (1 << 32) - 1, HUGE, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
DAMAGE = st.one_of(
    st.tuples(st.just("byte"), st.floats(0, 1), st.integers(0, 255)),
    st.tuples(st.just("number"), st.floats(0, 1), INTERESTING),
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("remove"), st.floats(0, 1), st.integers(1, 40)),
    st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(1, 40)),
)


def damaged(content: bytes, steps: list[tuple[str, float, int]]) -> bytes:
    for kind, place, value in steps:
        at = int(place * (len(content) - 1)) if content else 0
        if kind == "byte":
            content = content[:at] + bytes([value]) + content[at + 1 :]
        elif kind == "number":
            content = content[:at] + u64(value) + content[at + 8 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "remove":
            content = content[:at] + content[at + value :]
        else:
            content = content[:at] + content[at : at + value] + content[at:]
    return content


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("gguf")
    files = {kind: valid_file(folder / f"{kind}.gguf", kind) for kind in ("gpt2", "llama")}
    for path in files.values():
        use_everything(path)
    return {kind: path.read_bytes() for kind, path in files.items()}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@settings(max_examples=1200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(DAMAGE, min_size=1, max_size=4))
def test_random_damage(originals: dict[str, bytes], tmp_path: Path, kind: str, steps: Any) -> None:
    """A damaged file opens and can be used, or raises an error of ours; nothing else, and without much memory."""
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged(originals[kind], steps))
    message = ""
    with little_memory():
        try:
            use_everything(path)
        except OssToolsError as error:
            message = str(error)
    assert "\n" not in message
    assert len(message) < 600
