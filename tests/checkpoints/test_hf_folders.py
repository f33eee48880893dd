"""Hugging Face folders: which of their files are read, and which are no folder of a model."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as library

from oss_tools.errors import BadCheckpoint
from oss_tools.models.checkpoint import open_checkpoint
from tests.checkpoints.small_models import (
    LINEARS,
    LLAMA,
    assert_holds,
    save,
)


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
