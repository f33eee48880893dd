"""The safetensors file: against the safetensors library, and against files made to break it."""

import errno
import json
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import numpy as library

from oss_tools.checkpoints.safetensors import MAX_HEADER, SafetensorsFile, SafetensorsWriter
from oss_tools.errors import BadCheckpoint, NoRoom, OssToolsError

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(5, dtype=np.uint8),
    "c": np.arange(6, dtype=np.float16).reshape(2, 3),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(3.5, np.float32),
}
DTYPE_NAMES = {np.dtype(np.float32): "F32", np.dtype(np.uint8): "U8", np.dtype(np.float16): "F16"}


def raw_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file of the given header (an object, or bytes as they are) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(path: Path) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        SafetensorsFile(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    library.save_file(ARRAYS, path)
    file = SafetensorsFile(path)
    assert set(file.tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        tensor = file.tensors[name]
        assert (tensor.dtype, tensor.shape, tensor.size) == (DTYPE_NAMES[array.dtype], array.shape, array.size)
        assert np.array_equal(file.read(tensor, 0, tensor.nbytes).view(array.dtype).reshape(array.shape), array)
    assert file.read(file.tensors["b"], 1, 3).tolist() == [1, 2]
    file.close()


@pytest.mark.parametrize(
    ("metadata", "padding"), [(None, b"   "), ({}, b""), ({"format": "pt"}, b" "), ({"epoch": 3}, b""), (None, b"")]
)
def test_headers_as_other_programs_write_them(metadata: dict | None, padding: bytes, tmp_path: Path) -> None:
    """Padded with spaces (allowed by the format), with empty metadata, with numbers in it, without any."""
    header = {"a": entry("F32", [3], 0, 12)} | ({} if metadata is None else {"__metadata__": metadata})
    path = raw_file(
        tmp_path / "x.safetensors", json.dumps(header).encode() + padding, np.arange(3, dtype=np.float32).tobytes()
    )
    if metadata != {"epoch": 3}:  # the library wants texts there; they decide nothing
        assert library.load_file(path)["a"].tolist() == [0, 1, 2]
    file = SafetensorsFile(path)
    assert file.read(file.tensors["a"], 0, 12).view(np.float32).tolist() == [0, 1, 2]
    file.close()


def test_the_library_reads_what_we_wrote(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    writer = SafetensorsWriter(path, [(name, DTYPE_NAMES[a.dtype], a.shape) for name, a in ARRAYS.items()])
    for name, array in reversed(ARRAYS.items()):
        writer.write(name, 0, array)
    writer.sync()
    writer.close()
    for name, array in library.load_file(path).items():
        assert np.array_equal(array, ARRAYS[name])
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert header % 8 == 0
    for tensor in writer.tensors.values():
        assert tensor.offset % {"F32": 4, "F16": 2, "U8": 1}[tensor.dtype] == 0


def test_a_second_writer_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    shapes = [("a", "F32", (100, 4)), ("b", "U8", (7,))]
    values = np.arange(400, dtype=np.float32).reshape(100, 4)
    for name, breaks in (("once", [0]), ("twice", [0, 60])):
        for place, start in enumerate(breaks):
            writer = SafetensorsWriter(tmp_path / name, shapes)
            stop = [*breaks, 100][place + 1]
            writer.write("a", start * 16, values[start:stop])
            writer.close()
        writer = SafetensorsWriter(tmp_path / name, shapes)
        writer.write("b", 0, np.arange(7, dtype=np.uint8))
        writer.close()
    assert (tmp_path / "once").read_bytes() == (tmp_path / "twice").read_bytes()


def test_threads_write_and_read_together(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "x", [("a", "U8", (64, 1000))])
    rows = np.random.default_rng(0).integers(0, 256, (64, 1000), dtype=np.uint8)
    threads = [threading.Thread(target=writer.write, args=("a", 1000 * i, rows[i])) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    file = SafetensorsFile(tmp_path / "x")
    assert np.array_equal(file.read(file.tensors["a"], 0, 64000).reshape(64, 1000), rows)
    file.close()


def test_ranges_outside_a_tensor_are_refused(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path / "x", [("a", "U8", (4,)), ("b", "U8", (4,))])
    with pytest.raises(IndexError):
        writer.write("a", 2, np.zeros(3, np.uint8))
    writer.close()
    file = SafetensorsFile(tmp_path / "x")
    with pytest.raises(IndexError):
        file.read(file.tensors["a"], 0, 5)
    file.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_to_be_full(tmp_path: Path, monkeypatch, code: int) -> None:
    writer = SafetensorsWriter(tmp_path / "x", [("a", "U8", (4,))])

    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoRoom, match="free some space"):
        writer.write("a", 0, np.zeros(4, np.uint8))
    writer.close()


F32 = entry("F32", [2], 0, 8)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": F32}, b"\0" * 7, "truncated"),
        ({"a": F32}, b"\0" * 9, "follow the last tensor"),
        ({"a": F32, "b": entry("F32", [1], 4, 8)}, b"\0" * 8, "overlaps"),
        ({"a": F32, "b": entry("F32", [2], 0, 8)}, b"\0" * 8, "overlaps"),
        ({"a": F32, "b": entry("F32", [1], 12, 16)}, b"\0" * 16, "hole"),
        ({"a": entry("F32", [2], 8, 0)}, b"\0" * 8, "ascending"),
        ({"a": entry("F32", [3], 0, 8)}, b"\0" * 8, "takes 12"),
        ({"a": entry("F32", [1 << 40, 1 << 40], 0, 8)}, b"\0" * 8, "takes"),
        ({"a": entry("F32", [1 << 70], 0, 8)}, b"\0" * 8, "shape"),
        ({"a": entry("F32", [-2], 0, 8)}, b"\0" * 8, "shape"),
        ({"a": entry("F32", [True, 2], 0, 8)}, b"\0" * 8, "shape"),
        ({"a": entry("F32", [2.0], 0, 8)}, b"\0" * 8, "shape"),
        ({"a": entry("F32", [1] * 17 + [2], 0, 8)}, b"\0" * 8, "shape"),
        ({"a": entry("F33", [2], 0, 8)}, b"\0" * 8, "unknown dtype"),
        ({"a": {"dtype": "F32"}}, b"\0" * 8, "shape"),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8, "data_offsets"),
        ({"a": 7}, b"\0" * 8, "not an object"),
        ({"": F32}, b"\0" * 8, "name"),
        ({"a\n": F32}, b"\0" * 8, "name"),
        ({"\ud800": F32}, b"\0" * 8, "name"),
        ({"a" * 600: F32}, b"\0" * 8, "name"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}', b"\0" * 8, "twice"),
        (b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8, "twice"),
        (b"[1, 2]", b"", "begin"),
        (b" {}", b"", "begin"),
        (b'{"a', b"", "not JSON"),
        (b'{"a\xff": 1}', b"", "UTF-8"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "nested"),
        (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', b"\0" * 8, "not JSON"),
    ],
)
def test_bad_headers_are_refused(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    assert message in refusal(raw_file(tmp_path / "x.safetensors", header, data))


@pytest.mark.parametrize("length", [100, MAX_HEADER + 1, 1 << 60, (1 << 64) - 1])
def test_absurd_lengths_are_refused(tmp_path: Path, length: int) -> None:
    assert "claims" in refusal(raw_file(tmp_path / "x.safetensors", b"{}", length=length))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"123")
    assert "too few" in refusal(tmp_path / "short")
    assert "cannot be opened" in refusal(tmp_path / "absent")
    assert "not a regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")


def test_a_file_that_shrinks_while_open_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    library.save_file({"a": np.zeros(1000, np.float32)}, path)
    file = SafetensorsFile(path)
    os.truncate(path, 2000)
    with pytest.raises(BadCheckpoint, match="ended at byte"):
        file.read(file.tensors["a"], 0, 4000)
    file.close()


VALID = library.save({name: ARRAYS[name] for name in ("a.weight", "b", "c")})


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(VALID)))
def test_flipped_bytes_open_or_are_refused(tmp_path_factory, flips: list, cut: int) -> None:
    data = bytearray(VALID)
    for place, value in flips:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(bytes(data[: cut if cut % 3 == 0 else len(data)]))
    try:
        file = SafetensorsFile(path)
    except OssToolsError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert sum(tensor.nbytes for tensor in file.tensors.values()) <= len(VALID)
    for tensor in file.tensors.values():
        assert len(file.read(tensor, 0, tensor.nbytes)) == tensor.nbytes
    file.close()
