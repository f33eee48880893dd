"""GGUF files written by us: read back by us and by the gguf package, whole and split, resumed and in any order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGUFValueType

from oss_tools.checkpoints import Contents, Metadata, StoredTensor, open_container
from oss_tools.checkpoints.gguf import GgufReader
from oss_tools.checkpoints.gguf_writer import GgufWriter
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import QTensor, get_format

CONFIG = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 10000,  # whole, but a float by its nature
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
SHAPES = {"f32": (3, 5), "f16": (2, 7), "bf16": (4, 8), "q8_0": (6, 64), "mxfp4": (2, 4, 96), "q4_1": (5, 32)}


def make_tensors() -> dict[str, tuple[StoredTensor, QTensor]]:
    """A tensor in each of several formats, and a vector, with values."""
    random = np.random.default_rng(0)
    found = {}
    for name, shape in SHAPES.items():
        tensor = StoredTensor(f"blk.0.{name}", get_format(name), shape)
        values = random.standard_normal((tensor.rows, shape[-1])).astype(np.float32)
        found[tensor.name] = (tensor, tensor.format.quantize(values))
    vector = random.standard_normal((9, 1)).astype(np.float32)
    f32 = get_format("f32")
    found["output_norm.weight"] = (StoredTensor("output_norm.weight", f32, (9,)), f32.quantize(vector))
    return found


TENSORS = make_tensors()


def metadata(**general: Any) -> Metadata:
    return Metadata({"vocab_size": 100}, general={"name": "A small one", "license": "mit", "tags": ["x", "y"], **general})


def writer(folder: Path, shard_size: int | None = None, config: dict[str, Any] = CONFIG) -> GgufWriter:
    return GgufWriter(folder, Contents("small", [t for t, _ in TENSORS.values()], metadata(), config, shard_size=shard_size))


def pieces() -> list[tuple[str, int, QTensor]]:
    """All rows of all tensors, one at a time."""
    return [
        (name, row, values.rows(slice(row, row + 1)))
        for name, (_, values) in TENSORS.items()
        for row in range(values.shape[0])
    ]


def write_all(folder: Path, shard_size: int | None = None) -> list[Path]:
    folder.mkdir(exist_ok=True)
    target = writer(folder, shard_size)
    for name, (_, values) in TENSORS.items():
        target.write(name, 0, values)
    paths = target.finish()
    target.close()
    return paths


def assert_holds_tensors(reader: GgufReader) -> None:
    assert list(reader.tensors) == list(TENSORS)
    for name, (stored, values) in TENSORS.items():
        assert reader.tensors[name] == stored
        found = reader.read(name, 0, values.shape[0], values.columns)
        for plane, expected in values.planes.items():
            assert np.array_equal(found.planes[plane], expected)


def test_round_trip(tmp_path: Path) -> None:
    (path,) = write_all(tmp_path)
    assert path == tmp_path / "small.gguf"
    with GgufReader(path) as reader:
        assert_holds_tensors(reader)
        assert reader.model_type == "llama"
        assert reader.metadata({}).general == {"name": "A small one", "license": "mit", "tags": ["x", "y"]}
        assert reader.metadata({}).tokenizer is None
        assert reader.files() == [path]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("alignment", [8, 16, 64, 4096])
def test_other_alignments_than_32(alignment: int, tmp_path: Path) -> None:
    """Written by the gguf package, in keys whose length is no multiple of either."""
    arrays = {name: np.arange(n, dtype=np.float32) + n for name, n in (("a", 4), ("b", 5), ("c", 3))}
    for length in (1, 8, 17):
        theirs = gguf.GGUFWriter(tmp_path / f"{length}.gguf", "llama")
        theirs.add_custom_alignment(alignment)
        theirs.add_name("n" * length)
        for name, array in arrays.items():
            theirs.add_tensor(name, array)
        theirs.write_header_to_file()
        theirs.write_kv_data_to_file()
        theirs.write_tensors_to_file()
        theirs.close()
        with GgufReader(tmp_path / f"{length}.gguf") as reader:
            for name, array in arrays.items():
                assert np.array_equal(reader.read(name, 0, 1, len(array)).dequantize()[0], array)


def test_rows_and_columns(tmp_path: Path) -> None:
    (path,) = write_all(tmp_path)
    with GgufReader(path) as reader:
        whole = TENSORS["blk.0.mxfp4"][1]
        part = reader.read("blk.0.mxfp4", 3, 7, 96)
        assert np.array_equal(part.dequantize(), whole.dequantize()[3:7])
        column = reader.read("blk.0.f32", 4, 9, 1)  # plain floats may be cut otherwise
        assert np.array_equal(column.dequantize().reshape(-1), TENSORS["blk.0.f32"][1].dequantize().reshape(-1)[4:9])
        with pytest.raises(ValueError, match="rows of 32 values"):
            reader.read("blk.0.q8_0", 0, 1, 32)
        with pytest.raises(IndexError):
            reader.read("blk.0.q8_0", 0, 7, 64)


def test_read_by_the_gguf_package(tmp_path: Path) -> None:
    (path,) = write_all(tmp_path)
    theirs = gguf.GGUFReader(path)
    assert [t.name for t in theirs.tensors] == list(TENSORS)
    for tensor in theirs.tensors:
        stored, values = TENSORS[tensor.name]
        assert tuple(int(n) for n in tensor.shape[::-1]) == stored.shape
        found = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        assert np.array_equal(found.reshape(-1), values.dequantize().reshape(-1))
    types = {name: field.types[0] for name, field in theirs.fields.items()}
    assert types["llama.block_count"] == GGUFValueType.UINT32
    assert types["llama.rope.freq_base"] == GGUFValueType.FLOAT32
    assert types["llama.attention.layer_norm_rms_epsilon"] == GGUFValueType.FLOAT32
    assert theirs.fields["general.tags"].contents() == ["x", "y"]
    assert theirs.fields["general.quantization_version"].contents() == 2
    assert theirs.fields["general.size_label"].contents() == "1.4K"


def test_same_bytes_as_the_gguf_package(tmp_path: Path) -> None:
    """Its writer, given the same keys and tensors."""
    (path,) = write_all(tmp_path)
    theirs = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    for name, field in gguf.GGUFReader(path).fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            theirs.add_key_value(name, field.contents(), field.types[0])
    for name, (stored, values) in TENSORS.items():
        raw = stored.format.pack_ggml(values).reshape(*stored.shape[:-1], -1)
        if stored.format.name in ("f32", "f16"):
            raw = raw.view(np.float32 if stored.format.name == "f32" else np.float16).reshape(stored.shape)
        theirs.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType(stored.format.ggml_type))
    theirs.write_header_to_file()
    theirs.write_kv_data_to_file()
    theirs.write_tensors_to_file()
    theirs.close()
    assert path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_any_order_and_any_number_of_threads(tmp_path: Path) -> None:
    (expected,) = write_all(tmp_path / "a")
    (tmp_path / "b").mkdir()
    target = writer(tmp_path / "b")
    shuffled = np.random.default_rng(1).permutation(np.array(pieces(), object))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda piece: target.write(*piece), shuffled))
    (path,) = target.finish()
    target.close()
    assert path.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("shard_size", [None, 400])
def test_resumed(tmp_path: Path, shard_size: int | None) -> None:
    """A second writer with the same arguments goes on where the first was killed."""
    expected = write_all(tmp_path / "a", shard_size)
    folder = tmp_path / "b"
    folder.mkdir()
    first = writer(folder, shard_size)
    for piece in pieces()[::2]:
        first.write(*piece)
    first.close()
    second = writer(folder, shard_size)
    for piece in pieces()[1::2]:
        second.write(*piece)
    paths = second.finish()
    second.close()
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in expected]
    assert sorted(folder.iterdir()) == paths


def test_killed_while_laying_out(tmp_path: Path) -> None:
    (expected,) = write_all(tmp_path / "a")
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "small.gguf.new").write_bytes(expected.read_bytes()[:100])
    (path,) = write_all(folder)
    assert path.read_bytes() == expected.read_bytes()
    assert list(folder.iterdir()) == [path]


def test_resumed_with_other_arguments(tmp_path: Path) -> None:
    write_all(tmp_path)
    with pytest.raises(BadCheckpoint, match="left by another conversion"):
        writer(tmp_path, config={**CONFIG, "llama.block_count": 3})


def test_split(tmp_path: Path) -> None:
    """llama.cpp's convention: parts numbered from 1 in their names, all keys in the first, the count of tensors in all."""
    paths = write_all(tmp_path, shard_size=400)
    count = len(paths)
    assert count > 2
    assert [p.name for p in paths] == [f"small-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    for path in [*paths, tmp_path]:
        with open_container(path) as reader:
            assert isinstance(reader, GgufReader)
            assert_holds_tensors(reader)
            assert reader.files() == paths
            assert reader.raw_config["llama.block_count"] == 2
    theirs = gguf.GGUFReader(paths[1])
    assert theirs.fields["split.no"].contents() == 1
    assert theirs.fields["split.tensors.count"].contents() == len(TENSORS)


def test_one_large_tensor_is_not_split(tmp_path: Path) -> None:
    tensor = StoredTensor("a", get_format("f32"), (100,))
    target = GgufWriter(tmp_path, Contents("one", [tensor], metadata(), CONFIG, shard_size=16))
    assert [p.name for p in target.finish()] == ["one.gguf"]
    target.close()


def test_missing_part(tmp_path: Path) -> None:
    paths = write_all(tmp_path, shard_size=400)
    paths[1].unlink()
    with pytest.raises(BadCheckpoint, match=rf"{paths[1].name}: this part of the split file {paths[0].name} is missing"):
        GgufReader(paths[0])


def test_renamed_part(tmp_path: Path) -> None:
    paths = write_all(tmp_path, shard_size=400)
    with pytest.raises(BadCheckpoint, match="not named so"):
        GgufReader(paths[0].rename(tmp_path / "renamed.gguf"))


def test_parts_joined_one_behind_the_other(tmp_path: Path) -> None:
    """Not a name that is wrong, as the first part's keys would have it."""
    paths = write_all(tmp_path, shard_size=400)
    joined = tmp_path / f"joined-00001-of-{len(paths):05d}.gguf"
    joined.write_bytes(b"".join(path.read_bytes() for path in paths))
    with pytest.raises(BadCheckpoint, match=rf"{len(paths)} parts of a split file joined .* --merge"):
        GgufReader(joined)


def test_part_of_another_model(tmp_path: Path) -> None:
    paths = write_all(tmp_path, shard_size=400)
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(BadCheckpoint, match="do not say part 3"):
        GgufReader(paths[0])


def test_folder_of_two_models(tmp_path: Path) -> None:
    (path,) = write_all(tmp_path)
    path.rename(tmp_path / "first.gguf")
    write_all(tmp_path)
    with pytest.raises(BadCheckpoint, match="holds 2 GGUF models"):
        GgufReader(tmp_path)


def test_total_bytes(tmp_path: Path) -> None:
    """All that is not header."""
    (path,) = write_all(tmp_path)
    data_offset = gguf.GGUFReader(path).data_offset
    assert path.stat().st_size == data_offset + GgufWriter.total_bytes([t for t, _ in TENSORS.values()])


def test_holds() -> None:
    formats = {name: get_format(name) for name in ("f32", "bf16", "q8_0", "mxfp4", "int8", "nvfp4")}
    held = {
        role: [n for n, f in formats.items() if GgufWriter.holds(f, role, "gpt_oss")]
        for role in ("norm", "router", "experts.down")
    }
    assert held == {"norm": ["f32"], "router": ["f32"], "experts.down": ["f32", "bf16", "q8_0", "mxfp4"]}


@pytest.mark.parametrize("scales", [[], [0.5], [0.5, 2.0, 1.0]])
def test_nvfp4(tmp_path: Path, scales: list[float]) -> None:
    """Read with its scale, which is a tensor of its own: none, one, or one for each expert."""
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (3, 4, 2 * 36), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("ffn.weight", raw, raw_dtype=gguf.GGMLQuantizationType.NVFP4)
    if scales:
        writer.add_tensor("ffn.scale", np.array(scales, np.float32))
        writer.add_tensor("ffn.input_scale", np.array([3.0], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType.NVFP4) * np.array(scales or [1.0]).reshape(-1, 1, 1)
    with GgufReader(tmp_path / "a.gguf") as reader:
        assert list(reader.tensors) == ["ffn.weight"]
        assert reader.tensors["ffn.weight"].format.name == "nvfp4"
        found = reader.read("ffn.weight", 2, 11, 128).dequantize()
    assert np.array_equal(found, expected.astype(np.float32).reshape(12, 128)[2:11])


def test_writing_outside_of_a_tensor(tmp_path: Path) -> None:
    target = writer(tmp_path)
    values = TENSORS["blk.0.q8_0"][1]
    for start in (-1, 1):
        with pytest.raises(IndexError):
            target.write("blk.0.q8_0", start, values)
    with pytest.raises(ValueError, match="rows in q8_0 for a tensor in f32"):
        target.write("blk.0.f32", 0, values)
    target.close()


def test_key_without_a_type(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="GGUF has no type for"):
        writer(tmp_path, config={**CONFIG, "llama.odd": {"a": 1}})


def test_lone_surrogate(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="not Unicode"):
        GgufWriter(tmp_path, Contents("a", [], metadata(description="\ud800"), CONFIG))


def test_truncated_while_open(tmp_path: Path) -> None:
    (path,) = write_all(tmp_path)
    with GgufReader(path) as reader:
        path.write_bytes(b"GGUF")
        with pytest.raises(BadCheckpoint, match="did it change"):
            reader.read("blk.0.q8_0", 0, 6, 64)


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="no such file"):
        GgufReader(tmp_path / "none.gguf")
    (tmp_path / "empty").mkdir()
    assert not GgufReader.recognizes(tmp_path / "empty")
    with pytest.raises(BadCheckpoint, match="holds 0 GGUF models"):
        GgufReader(tmp_path / "empty")
