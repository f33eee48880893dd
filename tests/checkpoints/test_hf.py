"""Hugging Face folders: written, read back, and refused where they are not what they seem."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as library
from safetensors import safe_open

from oss_tools.checkpoints import Metadata, StoredTensor, open_container
from oss_tools.checkpoints.hf import HfReader, HfWriter
from oss_tools.checkpoints.original import OriginalWriter
from oss_tools.checkpoints.safetensors import SafetensorsFile
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import get_format
from oss_tools.models.checkpoint import Checkpoint, open_checkpoint
from oss_tools.models.entries import stored_tensors
from oss_tools.models.gpt_oss import GptOss, GptOssConfig
from tests.checkpoints.small_models import (
    EXPERTS,
    GPT_OSS,
    LINEARS,
    LLAMA,
    open_writer,
    placed,
    quantized,
    random_values,
    save,
    write_all,
)

MXFP4_EXPERTS = dict.fromkeys(EXPERTS, "mxfp4")
CASES = {
    "gpt_oss bf16": (GPT_OSS, {}),
    "gpt_oss f32": (GPT_OSS, dict.fromkeys(EXPERTS, "f32")),
    "gpt_oss mxfp4": (GPT_OSS, MXFP4_EXPERTS),
    "gpt_oss int8 experts": (GPT_OSS, dict.fromkeys(EXPERTS, "int8")),
    "gpt_oss int8_g32 experts": (GPT_OSS, dict.fromkeys(EXPERTS, "int8_g32")),
    "gpt_oss fp8 experts": (GPT_OSS, dict.fromkeys(EXPERTS, "fp8_e4m3")),
    "gpt_oss nvfp4 experts": (GPT_OSS, dict.fromkeys(EXPERTS, "nvfp4")),
    "gpt_oss mxfp4 and int8": (GPT_OSS, {**dict.fromkeys(LINEARS, "int8"), **MXFP4_EXPERTS}),
    "gpt_oss int8 attention": (GPT_OSS, dict.fromkeys(LINEARS, "int8")),
    "llama f16": (LLAMA, dict.fromkeys(LINEARS, "f16")),
    "llama int8": (LLAMA, {**dict.fromkeys(LINEARS, "int8"), "output": "int8"}),
    "llama int8_g128": (LLAMA, dict.fromkeys(LINEARS, "int8_g128")),
    "llama int8_g32": (LLAMA, dict.fromkeys(LINEARS, "int8_g32")),
    "llama fp8": (LLAMA, {**dict.fromkeys(LINEARS, "fp8_e4m3"), "output": "fp8_e4m3"}),
    "llama fp8 in blocks": (LLAMA, dict.fromkeys(LINEARS, "fp8_block")),
    "gpt_oss fp8 experts in blocks": (GPT_OSS, dict.fromkeys(EXPERTS, "fp8_block")),
    "llama nvfp4": (LLAMA, dict.fromkeys(LINEARS, "nvfp4")),
    "llama mxfp4": (LLAMA, dict.fromkeys(LINEARS, "mxfp4")),
    "llama mixed": (LLAMA, {**dict.fromkeys(LINEARS, "mxfp4"), "mlp.down": "int8"}),
}


def assert_holds(folder: Path, tensors: dict) -> Checkpoint:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.container == "hf"
    assert list(checkpoint.entries) == list(tensors)
    for name, expected in tensors.items():
        entry = checkpoint.entries[name]
        assert entry.format == expected.format, name
        found = checkpoint.read_tensor(name)
        for plane, array in expected.planes.items():
            assert np.array_equal(found.planes[plane].reshape(array.shape), array), (name, plane)
    return checkpoint


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shard_size", [None, 20_000])
def test_what_is_written_is_read_back(tmp_path: Path, case: str, shard_size: int | None) -> None:
    architecture, formats = CASES[case]
    tensors = save(architecture, "hf", tmp_path / "m", formats, shard_size=shard_size)
    checkpoint = assert_holds(tmp_path / "m", tensors)
    assert (len(checkpoint.reader.files()) > 1) == (shard_size is not None)
    assert checkpoint.nbytes == sum(
        raw.nbytes for f in checkpoint.reader.files() for raw in SafetensorsFile(f).tensors.values()
    )
    assert checkpoint.architecture.hf_config() | {"torch_dtype": "bfloat16"} == architecture.hf_config()
    checkpoint.close()


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    save(GPT_OSS, "hf", tmp_path, MXFP4_EXPERTS, shard_size=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert shards == [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    stored = {}
    for shard in shards:
        with safe_open(tmp_path / shard, "np") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                assert index["weight_map"].pop(name) == shard
                stored[name] = (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape())
    assert not index["weight_map"]
    assert stored["model.layers.1.mlp.experts.gate_up_proj_blocks"] == ("U8", [3, 64, 2, 16])
    assert stored["model.layers.1.mlp.experts.down_proj_scales"] == ("U8", [3, 64, 1])
    assert index["metadata"]["total_size"] == sum(np.prod(s) * (1 if d == "U8" else 2) for d, s in stored.values())


def test_total_bytes_are_those_of_the_files(tmp_path: Path) -> None:
    entries = placed(LLAMA, "hf", dict.fromkeys(LINEARS, "int8_g32"))
    writer = open_writer(LLAMA, "hf", tmp_path, entries)
    announced = HfWriter.total_bytes(writer.tensors)  # type: ignore[attr-defined]
    writer.finish()
    writer.close()
    header = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert (tmp_path / "model.safetensors").stat().st_size == 8 + header + announced


@pytest.mark.parametrize(("layers", "experts", "published"), [(24, 32, 13_761_264_768), (36, 128, 65_248_815_744)])
def test_gpt_oss_takes_the_bytes_of_the_published_files(layers: int, experts: int, published: int) -> None:
    model = GptOss(GptOssConfig(num_hidden_layers=layers, num_local_experts=experts))
    for container, writer in (("hf", HfWriter), ("original", OriginalWriter)):
        assert writer.total_bytes(stored_tensors(placed(model, container, MXFP4_EXPERTS))) == published


def test_the_bytes_do_not_depend_on_the_order_of_writing_nor_on_a_restart(tmp_path: Path) -> None:
    entries = placed(GPT_OSS, "hf", MXFP4_EXPERTS)
    tensors = quantized(random_values(GPT_OSS), entries)
    halves = (entries[: len(entries) // 2], entries[len(entries) // 2 :])
    for name, order in (("once", [entries]), ("reversed", [entries[::-1]]), ("resumed", halves)):
        for part in order:
            writer = open_writer(GPT_OSS, "hf", tmp_path / name, entries, shard_size=30_000)
            write_all(writer, part, tensors, chunk_bytes=3000)
            if part is order[-1]:
                writer.finish()
            writer.close()
    once = {p.name: p.read_bytes() for p in (tmp_path / "once").iterdir()}
    for other in ("reversed", "resumed"):
        assert {p.name: p.read_bytes() for p in (tmp_path / other).iterdir()} == once


def test_finish_returns_the_files_made(tmp_path: Path) -> None:
    metadata = Metadata(LLAMA.hf_config(), tokenizer={"model": {}}, files={"LICENSE": b"text"})
    entries = placed(LLAMA, "hf", {})
    writer = open_writer(LLAMA, "hf", tmp_path, entries, metadata, shard_size=100_000)
    assert sorted(writer.finish()) == sorted(tmp_path.iterdir())
    writer.close()


# ---- configuration --------------------------------------------------------------------------------------------------


def written_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_the_configuration_names_the_dtype(tmp_path: Path) -> None:
    save(LLAMA, "hf", tmp_path / "a", dict.fromkeys((*LINEARS, "embedding", "output"), "f16"))
    assert written_config(tmp_path / "a")["torch_dtype"] == "float16"
    config = {k: v for k, v in LLAMA.hf_config().items() if k != "torch_dtype"}
    save(LLAMA, "hf", tmp_path / "b", {}, Metadata(config))
    assert written_config(tmp_path / "b") == {**config, "dtype": "bfloat16"}


def test_mxfp4_experts_are_declared_as_openai_does(tmp_path: Path) -> None:
    save(GPT_OSS, "hf", tmp_path, MXFP4_EXPERTS)
    assert written_config(tmp_path)["quantization_config"] == {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
        "quant_method": "mxfp4",
    }


def test_layers_left_in_bf16_are_excepted_from_mxfp4(tmp_path: Path) -> None:
    kept = "model.layers.1.mlp.experts"
    formats = {**MXFP4_EXPERTS, f"{kept}.gate_up_proj": "bf16", f"{kept}.down_proj": "bf16"}
    save(GPT_OSS, "hf", tmp_path, formats)
    declared = written_config(tmp_path)["quantization_config"]
    assert declared["quant_method"] == "mxfp4"
    assert kept in declared["modules_to_not_convert"]


def test_stacks_without_a_convention_are_declared_as_our_own(tmp_path: Path) -> None:
    save(GPT_OSS, "hf", tmp_path, {"experts.down": "int8", "experts.gate_up": "mxfp4"})
    experts = "model.layers.{}.mlp.experts.{}_proj"
    assert written_config(tmp_path)["quantization_config"] == {
        "quant_method": "oss-tools",
        "formats": {
            "mxfp4": [experts.format(layer, "gate_up") for layer in range(2)],
            "int8": [experts.format(layer, "down") for layer in range(2)],
        },
    }


def test_one_format_is_declared_for_all_linears_but_those_ignored(tmp_path: Path) -> None:
    save(LLAMA, "hf", tmp_path, {**dict.fromkeys(LINEARS, "int8_g128"), "model.layers.1.mlp.up_proj.weight": "bf16"})
    declared = written_config(tmp_path)["quantization_config"]
    assert (declared["quant_method"], declared["format"]) == ("compressed-tensors", "int-quantized")
    assert declared["ignore"] == ["model.layers.1.mlp.up_proj", "lm_head"]
    group = declared["config_groups"]["group_0"]
    assert group["targets"] == ["Linear"]
    assert (group["weights"]["strategy"], group["weights"]["group_size"]) == ("group", 128)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ("gptq", "not an object"),
        ({}, "method 'None' is not supported"),
        ({"quant_method": "gptq", "bits": 4}, "method 'gptq' is not supported"),
        ({"quant_method": "awq"}, "method 'awq'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "method 'bitsandbytes'"),
        ({"quant_method": "fp8", "weight_block_size": [64, 128]}, r"weight_block_size is \[64, 128\]; only \[128, 128\]"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt is 'e5m2'; only e4m3 is supported"),
        ({"quant_method": "modelopt"}, "method 'modelopt'"),
        ({"quant_method": ["x"]}, "method"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}, "'pack-quantized'"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"format": "marlin-24"}}},
            "'marlin-24' is not supported",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"symmetric": False}}}}, "asymmetric"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"strategy": "block"}}}},
            "block_structure is None",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {}, "sparsity_config": {"format": "x"}}, "sparsity"),
    ],
)
def test_unknown_quantization_is_refused_by_name(tmp_path: Path, quantization: object, message: str) -> None:
    save(LLAMA, "hf", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**written_config(tmp_path), "quantization_config": quantization}))
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"model_type": 3}', "model_type is 3"),
        (b"{}", "model_type"),
        (b'{"model_type": "a\\nb"}', "model_type"),
        (b'{"model_type": "bloom"}', "'bloom' is not supported"),
        (b'{"model_type": "\xff"}', "not UTF-8"),
        (b'{"model_type": "llama", "model_type": "gpt_oss"}', "twice"),
        (b'{"model_type": "llama", "num_hidden_layers": 1e99}', "num_hidden_layers"),
    ],
)
def test_bad_configurations_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    save(LLAMA, "hf", tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(tmp_path)


# ---- folders --------------------------------------------------------------------------------------------------------


def test_the_hub_caches_links_are_followed(tmp_path: Path) -> None:
    tensors = save(LLAMA, "hf", tmp_path / "m", shard_size=100_000)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate((tmp_path / "m").iterdir()):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    checkpoint = assert_holds(snapshot, tensors)
    assert "name" not in checkpoint.metadata().general
    checkpoint.close()


def test_a_lone_file_is_read_with_the_configuration_beside_it(tmp_path: Path) -> None:
    tensors = save(LLAMA, "hf", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    assert_holds(tmp_path / "weights.safetensors", tensors).close()
    assert_holds(tmp_path, tensors).close()
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"weights\.safetensors: config\.json is missing beside it"):
        open_checkpoint(tmp_path / "weights.safetensors")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save(LLAMA, "hf", tmp_path, shard_size=100_000)
    return tmp_path


def test_a_whole_set_of_shards_is_read_without_its_index(tmp_path: Path) -> None:
    tensors = save(LLAMA, "hf", tmp_path, shard_size=100_000)
    (tmp_path / "model.safetensors.index.json").unlink()
    checkpoint = assert_holds(tmp_path, tensors)
    count = len(checkpoint.reader.files())
    assert any(f"all {count} parts of model are there" in remark for remark in checkpoint.remarks)
    checkpoint.close()
    (tmp_path / f"model-00002-of-{count:05d}.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=f"part 2 of {count} is missing"):
        open_checkpoint(tmp_path)


def test_a_model_is_opened_through_any_of_its_shards(sharded: Path) -> None:
    whole = open_checkpoint(sharded)
    shard = sorted(sharded.glob("*.safetensors"))[1]
    with open_checkpoint(shard) as checkpoint:
        assert checkpoint.reader.files() == whole.reader.files()
        assert list(checkpoint.entries) == list(whole.entries)
        assert any(shard.name in remark for remark in checkpoint.remarks)


def test_several_files_that_are_no_set_are_refused_without_an_index(tmp_path: Path) -> None:
    save(LLAMA, "hf", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    with pytest.raises(BadCheckpoint, match=r"2 \.safetensors files, but no model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


def test_only_what_the_index_names_is_read(sharded: Path) -> None:
    library.save_file({"model.norm.weight": np.zeros(128, np.float32)}, sharded / "model.fp16.safetensors")
    checkpoint = open_checkpoint(sharded)
    assert [r for r in checkpoint.remarks if "not read" in r] == [
        "model.fp16.safetensors: not read; model.safetensors.index.json does not name it"
    ]
    assert sharded / "model.fp16.safetensors" not in checkpoint.reader.files()
    checkpoint.close()


def test_a_whole_file_comes_before_shards(sharded: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    tensors = save(LLAMA, "hf", other, dict.fromkeys((*LINEARS, "embedding", "output"), "f16"))
    (other / "model.safetensors").rename(sharded / "model.safetensors")
    checkpoint = assert_holds(sharded, tensors)
    assert any("not read; model.safetensors is" in remark for remark in checkpoint.remarks)
    checkpoint.close()


def edit_index(folder: Path, edit) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "x.bin", "a\nb.safetensors"]
)
def test_an_index_that_leaves_the_folder_is_refused(sharded: Path, shard: str) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": shard}))
    with pytest.raises(BadCheckpoint, match=r"not the name of a \.safetensors file in this folder") as caught:
        open_checkpoint(sharded)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda index: index.pop("weight_map"), "weight_map"),
        (lambda index: index.update(weight_map=[]), "weight_map"),
        (lambda index: index.update(weight_map={}), "weight_map"),
        (lambda index: index["weight_map"].update({"model.norm.weight": 5}), "not the name"),
        (
            lambda index: index["weight_map"].update({"model.norm.weight": "absent.safetensors"}),
            r"absent\.safetensors: no such",
        ),
        (
            lambda index: index.update(weight_map={k: f"x-{v}" for k, v in index["weight_map"].items()}),
            r"index\.json: of another build: it names x-model",
        ),
        (lambda index: index["weight_map"].update({"a\nb": "a.safetensors"}), "unprintable"),
        (lambda index: index["weight_map"].update({"ghost": index["weight_map"]["model.norm.weight"]}), "ghost is missing"),
        (lambda index: index["weight_map"].update({f"t{n}": f"{n}.safetensors" for n in range(5000)}), "more than"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(sharded: Path, edit, message: str) -> None:
    edit_index(sharded, edit)
    with pytest.raises(BadCheckpoint, match=message) as caught:
        open_checkpoint(sharded)
    assert "\n" not in str(caught.value)


def test_of_a_tensor_in_two_shards_the_index_chooses_one(sharded: Path) -> None:
    name = "model.norm.weight"
    zeros = np.zeros(LLAMA.config.hidden_size, np.float32)
    library.save_file({name: zeros, "score.weight": zeros}, sharded / "extra.safetensors")
    kept = open_checkpoint(sharded).read_tensor(name).dequantize()
    edit_index(sharded, lambda index: index["weight_map"].update({"score.weight": "extra.safetensors"}))
    assert np.array_equal(open_checkpoint(sharded).read_tensor(name).dequantize(), kept)
    edit_index(sharded, lambda index: index["weight_map"].update({name: "extra.safetensors"}))
    assert not open_checkpoint(sharded).read_tensor(name).dequantize().any()
    edit_index(sharded, lambda index: index["weight_map"].pop(name))
    with pytest.raises(BadCheckpoint, match=r"model\.norm\.weight is in extra\.safetensors as well"):
        open_checkpoint(sharded)


def test_a_tensor_that_the_index_forgot_is_read(sharded: Path) -> None:
    name = "model.norm.weight"
    kept = open_checkpoint(sharded).read_tensor(name).dequantize()
    edit_index(sharded, lambda index: index["weight_map"].pop(name))
    checkpoint = open_checkpoint(sharded)
    assert np.array_equal(checkpoint.read_tensor(name).dequantize(), kept)
    assert any(name in remark and "not listed" in remark for remark in checkpoint.remarks)


def test_a_truncated_shard_is_refused_by_name(sharded: Path) -> None:
    shard = min(sharded.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 5)
    with pytest.raises(BadCheckpoint, match=f"{shard.name}: tensor .* truncated"):
        open_checkpoint(sharded)


# ---- pieces ---------------------------------------------------------------------------------------------------------


def container_of(folder: Path, tensors: dict[str, np.ndarray], quantization: dict | None = None) -> HfReader:
    """A folder with just these tensors, opened without asking what architecture they make."""
    library.save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama"} | ({"quantization_config": quantization} if quantization else {})
    (folder / "config.json").write_text(json.dumps(config))
    reader = open_container(folder)
    assert isinstance(reader, HfReader)
    return reader


CODES = np.arange(-64, 64, dtype=np.int8).reshape(4, 32)
W = "a.weight"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(4, 1), (4,), (1,), ()])
def test_scales_of_other_dtypes_and_shapes_are_read_exactly(tmp_path: Path, dtype: type, shape: tuple) -> None:
    scales = np.resize(np.array([0.5, 0.25, 0.75, 0.015625], dtype), shape)
    reader = container_of(tmp_path, {W: CODES, f"{W}_scale": scales})
    assert reader.tensors == {W: StoredTensor(W, get_format("int8"), (4, 32))}
    rows = np.broadcast_to(scales.astype(np.float32).reshape(-1, 1), (4, 1))
    assert np.array_equal(reader.read(W, 1, 4, 32).dequantize(), CODES[1:].astype(np.float32) * rows[1:])
    reader.close()


def test_scales_that_no_bfloat16_equals_are_refused(tmp_path: Path) -> None:
    reader = container_of(tmp_path, {W: CODES, f"{W}_scale": np.full((4, 1), 0.1, np.float32)})
    with pytest.raises(BadCheckpoint, match=r"F32 scale 0\.1\d* has no exact bfloat16"):
        reader.read(W, 0, 4, 32)
    reader.close()


U8 = np.zeros((4, 2, 16), np.uint8)
F32 = np.ones((4, 1), np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x_blocks": U8}, "tensor x_scales is missing"),
        ({"x_blocks": U8, "x_scales": U8}, "do not fit"),
        ({"x_blocks": U8, "x_scales": np.zeros((4, 2), np.float32)}, "do not fit"),
        ({"x_blocks": U8[0, 0], "x_scales": np.zeros(1, np.uint8)}, "do not fit"),
        ({"x_blocks": U8, "x_scales": np.zeros((4, 2), np.uint8), "x": F32}, "x is stored twice"),
        ({W: CODES}, "a.weight_scale is missing"),
        ({W: CODES, f"{W}_scale": np.ones((4, 1), np.int8)}, "do not fit"),
        ({W: CODES, f"{W}_scale": np.ones((3, 1), np.float32)}, "do not fit"),
        ({W: CODES, f"{W}_scale": np.ones((4, 3), np.float32)}, "do not fit"),
        ({W: CODES, f"{W}_scale": np.ones((4, 2), np.float32)}, "per group of 128 or 32"),
        ({W: CODES, f"{W}_scale": F32, f"{W}_zero_point": CODES}, "asymmetric"),
        ({W: CODES[0], f"{W}_scale": F32[0]}, "do not fit"),
        ({f"{W}_packed": np.zeros((4, 4), np.int32), f"{W}_scale": F32}, "pack-quantized"),
        ({f"{W}_packed": U8[:, 0]}, "a.weight_scale is missing"),
        ({f"{W}_packed": U8[:, 0], f"{W}_scale": F32}, "NVFP4"),
        ({"n": np.zeros((0, 3), np.float32)}, "empty"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict, message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message) as caught:
        container_of(tmp_path, tensors)
    assert "\n" not in str(caught.value)


# ---- companions -----------------------------------------------------------------------------------------------------

CARD = b"""---
license: apache-2.0
language:
- en
- de
tags: [vllm]
---
# A model
"""


def test_companions_travel_and_code_stays(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    save(LLAMA, "hf", source)
    kept = {"README.md": CARD, "LICENSE": b"x", "USAGE_POLICY": b"y", "special_tokens_map.json": b"{}"}
    left = {
        "modeling_llama.py": b"import os",
        "pytorch_model.bin": b"\x80",
        "LICENSE.py": b"",
        "README.pickle": b"",
        ".x": b"",
    }
    for name, content in {**kept, **left}.items():
        (source / name).write_bytes(content)
    (source / "tokenizer.json").write_text('{"model": {"vocab": {"\\ud83d": 0, "é": 1}}}')
    (source / "tokenizer_config.json").write_text('{"eos_token": "</s>", "chat_template": "{{ messages }}"}')
    (source / "generation_config.json").write_text('{"do_sample": true}')
    with open_checkpoint(source) as checkpoint:
        metadata = checkpoint.metadata()
    assert metadata.files == kept
    assert metadata.general == {"name": "source", "license": "apache-2.0", "languages": ["en", "de"], "tags": ["vllm"]}
    assert metadata.chat_template == "{{ messages }}"
    save(LLAMA, "hf", target, metadata=metadata)
    with open_checkpoint(target) as checkpoint:
        again = checkpoint.metadata()
    assert again.files == kept
    assert again.tokenizer == metadata.tokenizer
    assert again.tokenizer_config == {"eos_token": "</s>"}
    assert again.chat_template == "{{ messages }}"
    assert again.generation_config == {"do_sample": True}
    assert not any((target / name).exists() for name in left)


@pytest.mark.parametrize("name", ["../x", "config.json", "tokenizer.json", "a/b", "x.safetensors", "run.py", ""])
def test_companions_with_reserved_names_are_not_written(tmp_path: Path, name: str) -> None:
    metadata = Metadata(LLAMA.hf_config(), files={name: b"x"})
    with pytest.raises(BadCheckpoint, match="cannot be written"):
        save(LLAMA, "hf", tmp_path / "m", metadata=metadata)


@pytest.mark.parametrize(
    "card", [b"---\n- 1\n---\n", b"---\na: [\n---\n", b"---\n" + b"[" * 9000 + b"\n---\n", b"---\n\xff: 1\n---\n", b"x"]
)
def test_model_cards_that_cannot_be_read_are_no_error(tmp_path: Path, card: bytes) -> None:
    save(LLAMA, "hf", tmp_path)
    (tmp_path / "README.md").write_bytes(card)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.metadata().general == {"name": tmp_path.name}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_companions_that_cannot_be_parsed_are_refused(tmp_path: Path, name: str) -> None:
    save(LLAMA, "hf", tmp_path)
    (tmp_path / name).write_bytes(b"{'a': 1}")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(BadCheckpoint, match=f"{name}: not JSON"):
        checkpoint.metadata()


def test_what_hugging_face_folders_hold() -> None:
    assert HfWriter.holds(get_format("mxfp4"), "experts.down", "gpt_oss")
    assert HfWriter.holds(get_format("int8"), "attention.q", "llama")
    assert HfWriter.holds(get_format("f32"), "norm", "llama")
    assert not HfWriter.holds(get_format("q8_0"), "attention.q", "llama")
    assert not HfWriter.holds(get_format("mxfp4"), "norm", "llama")
