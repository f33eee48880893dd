"""Hugging Face folders: written, read back; the configuration says which number format they are in."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.hf import HfWriter
from oss_tools.checkpoints.original import OriginalWriter
from oss_tools.checkpoints.safetensors import SafetensorsFile
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import get_format
from oss_tools.models.checkpoint import open_checkpoint
from oss_tools.models.entries import stored_tensors
from oss_tools.models.gpt_oss import GptOss, GptOssConfig
from tests.checkpoints.small_models import (
    EXPERTS,
    GPT_OSS,
    LINEARS,
    LLAMA,
    assert_holds,
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
    announced = HfWriter.total_bytes(writer.contents.tensors)  # type: ignore[attr-defined]
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


def test_what_hugging_face_folders_hold() -> None:
    assert HfWriter.holds(get_format("mxfp4"), "experts.down", "gpt_oss")
    assert HfWriter.holds(get_format("int8"), "attention.q", "llama")
    assert HfWriter.holds(get_format("f32"), "norm", "llama")
    assert not HfWriter.holds(get_format("q8_0"), "attention.q", "llama")
    assert not HfWriter.holds(get_format("mxfp4"), "norm", "llama")


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
