"""OpenAI's own layout of gpt-oss: names, shapes and companions as its loader expects them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from oss_tools.checkpoints import Metadata, open_container
from oss_tools.checkpoints.hf import HfReader
from oss_tools.checkpoints.original import OriginalReader, OriginalWriter
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import get_format
from oss_tools.models.checkpoint import open_checkpoint
from tests.checkpoints.small_models import EXPERTS, GPT_OSS, save

MXFP4_EXPERTS = dict.fromkeys(EXPERTS, "mxfp4")


@pytest.mark.parametrize("formats", [{}, MXFP4_EXPERTS, {"experts.down": "mxfp4", "attention.q": "bf16", "router": "f32"}])
@pytest.mark.parametrize("shard_size", [None, 20_000])
def test_what_is_written_is_read_back(tmp_path: Path, formats: dict, shard_size: int | None) -> None:
    tensors = save(GPT_OSS, "original", tmp_path, formats, shard_size=shard_size)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.container == "original"
        assert (len(checkpoint.reader.files()) > 1) == (shard_size is not None)
        assert checkpoint.architecture.config == GPT_OSS.config  # type: ignore[attr-defined]
        for name, expected in tensors.items():
            assert checkpoint.entries[name].format == expected.format
            found = checkpoint.read_tensor(name)
            for plane, array in expected.planes.items():
                assert np.array_equal(found.planes[plane].reshape(array.shape), array), (name, plane)


def test_names_shapes_and_dtypes_are_those_of_openais_program(tmp_path: Path) -> None:
    save(GPT_OSS, "original", tmp_path, MXFP4_EXPERTS)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        stored = {
            name: (file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape()))
            for name in file.keys()  # noqa: SIM118 (it is no mapping)
        }
    layer = {name.removeprefix("block.1."): value for name, value in stored.items() if name.startswith("block.1.")}
    assert layer == {
        "attn.norm.scale": ("BF16", (64,)),
        "attn.qkv.weight": ("BF16", (128, 64)),
        "attn.qkv.bias": ("BF16", (128,)),
        "attn.out.weight": ("BF16", (64, 64)),
        "attn.out.bias": ("BF16", (64,)),
        "attn.sinks": ("BF16", (4,)),
        "mlp.norm.scale": ("BF16", (64,)),
        "mlp.gate.weight": ("BF16", (3, 64)),
        "mlp.gate.bias": ("BF16", (3,)),
        "mlp.mlp1_weight.blocks": ("U8", (3, 64, 2, 16)),
        "mlp.mlp1_weight.scales": ("U8", (3, 64, 2)),
        "mlp.mlp1_bias": ("BF16", (3, 64)),
        "mlp.mlp2_weight.blocks": ("U8", (3, 64, 1, 16)),
        "mlp.mlp2_weight.scales": ("U8", (3, 64, 1)),
        "mlp.mlp2_bias": ("BF16", (3, 64)),
    }
    assert {name for name in stored if not name.startswith("block.")} == {
        "embedding.weight",
        "norm.scale",
        "unembedding.weight",
    }
    dtypes = json.loads((tmp_path / "dtypes.json").read_text())
    assert dtypes.keys() == stored.keys()
    assert dtypes["block.0.mlp.mlp1_weight.blocks"] == "FP4"
    assert dtypes["block.0.mlp.mlp1_weight.scales"] == "UE8"
    assert dtypes["embedding.weight"] == "BF16"


def test_the_configuration_has_the_fields_of_openais_program_and_no_other(tmp_path: Path) -> None:
    save(GPT_OSS, "original", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert list(config) == [
        "num_hidden_layers",
        "num_experts",
        "experts_per_token",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "swiglu_limit",
        "head_dim",
        "num_attention_heads",
        "num_key_value_heads",
        "sliding_window",
        "initial_context_length",
        "rope_theta",
        "rope_scaling_factor",
        "rope_ntk_alpha",
        "rope_ntk_beta",
    ]


def test_shards_have_the_names_of_the_published_ones(tmp_path: Path) -> None:
    save(GPT_OSS, "original", tmp_path, shard_size=20_000)
    names = [path.name for path in tmp_path.glob("*.safetensors")]
    assert len(names) > 1
    assert all(re.fullmatch(r"model--\d{5}-of-\d{5}\.safetensors", name) for name in names)
    (tmp_path / "model.safetensors.index.json").unlink()  # OpenAI's loader needs none
    open_checkpoint(tmp_path).close()


def test_the_two_kinds_of_folder_are_told_apart(tmp_path: Path) -> None:
    save(GPT_OSS, "original", tmp_path / "original")
    save(GPT_OSS, "hf", tmp_path / "hf")
    for kind, reader, other in (("original", OriginalReader, HfReader), ("hf", HfReader, OriginalReader)):
        for path in (tmp_path / kind, tmp_path / kind / "model.safetensors"):
            assert reader.recognizes(path)
            assert not other.recognizes(path)
            with open_container(path) as opened:
                assert type(opened) is reader


def test_tokenizer_and_licence_travel_along(tmp_path: Path) -> None:
    metadata = Metadata(
        GPT_OSS.hf_config(), tokenizer={"version": "1.0"}, chat_template="{{ x }}", files={"LICENSE": b"Apache"}
    )
    save(GPT_OSS, "original", tmp_path, metadata=metadata)
    with open_checkpoint(tmp_path) as checkpoint:
        again = checkpoint.metadata()
    assert (again.tokenizer, again.chat_template, again.files) == (metadata.tokenizer, "{{ x }}", metadata.files)
    assert again.config == GPT_OSS.hf_config()


def test_what_the_original_layout_holds() -> None:
    assert OriginalWriter.holds(get_format("mxfp4"), "experts.gate_up", "gpt_oss")
    assert OriginalWriter.holds(get_format("bf16"), "attention.q", "gpt_oss")
    assert not OriginalWriter.holds(get_format("mxfp4"), "attention.q", "gpt_oss")


BLOCKS = np.zeros((2, 4, 2, 16), np.uint8)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x.blocks": BLOCKS}, r"x\.scales is missing"),
        ({"x.blocks": BLOCKS, "x.scales": BLOCKS}, "do not fit"),
        ({"x.blocks": BLOCKS.astype(np.float32), "x.scales": BLOCKS[..., 0]}, "do not fit"),
        ({"x.blocks": BLOCKS, "x.scales": BLOCKS[..., 0], "x": np.zeros((2, 4, 64), np.float32)}, "stored twice"),
        ({"x": np.zeros((0, 2), np.float32)}, "empty"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict, message: str) -> None:
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS.container_config("original")))
    with pytest.raises(BadCheckpoint, match=message):
        open_container(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    save(GPT_OSS, "original", tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    for number in (1, 2):
        (tmp_path / f"model--0000{number}-of-00002.safetensors").write_bytes(whole)
    with pytest.raises(BadCheckpoint, match=r"is in model--00001-of-00002\.safetensors as well"):
        open_checkpoint(tmp_path)
