"""Files and folders that are no checkpoint: one line that says what they are and what to do; nothing of them is unpickled."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import gguf
import pytest
from safetensors import numpy as library

from oss_tools.errors import BadCheckpoint
from oss_tools.models.checkpoint import open_checkpoint
from tests.checkpoints.small_models import GPT_OSS, LLAMA, save

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 4096\n"


def refusal(path: Path) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        open_checkpoint(path)
    said = str(caught.value)
    assert "\n" not in said
    return said


def zipped() -> bytes:
    with zipfile.ZipFile(content := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1, 2]))
    return content.getvalue()


def tarred() -> bytes:
    with tarfile.open(fileobj=(content := io.BytesIO()), mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return content.getvalue()


CONTENTS = {
    "pointer": (POINTER.encode(), "a Git LFS pointer"),
    "page": (b"\n<!DOCTYPE html><html><body>Please log in</body></html>", "a web page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
    "zip": (zipped(), "a zip archive"),
    "tar": (tarred(), "an archive"),
    "gzip": (gzip.compress(b"something"), "an archive"),
    "pickle": (pickle.dumps({"weight": [1.0] * 100}), "a Python pickle"),
    "ggml": (b"lmgg" + bytes(60), "before GGUF (ggml)"),
    "ggjt": (b"tjgg" + bytes(60), "before GGUF (ggjt)"),
    "ggla": (b"algg" + bytes(60), "before GGUF (ggla, a LoRA adapter)"),
    "empty": (b"", "empty"),
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_what_a_file_is_that_is_named_like_a_model(tmp_path: Path, name: str, kind: str) -> None:
    content, said = CONTENTS[kind]
    save(LLAMA, "hf", tmp_path)
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, tmp_path) if name != "model.gguf" else (tmp_path / name,):
        message = refusal(path)
        assert said in message
        assert name in message


def test_each_format_is_recognized_under_the_others_name(tmp_path: Path) -> None:
    save(LLAMA, "hf", tmp_path / "a")
    save(LLAMA, "gguf", tmp_path / "b", dict.fromkeys(("norm", "bias"), "f32"))
    (tmp_path / "b/config.json").write_bytes((tmp_path / "a/config.json").read_bytes())
    (tmp_path / "a/model.safetensors").rename(tmp_path / "a/wrong.gguf")
    (tmp_path / "b/model.gguf").rename(tmp_path / "b/model.safetensors")
    assert "a safetensors file under another name" in refusal(tmp_path / "a/wrong.gguf")
    assert "a GGUF file under another name" in refusal(tmp_path / "b")
    with open_checkpoint(tmp_path / "b/model.safetensors") as checkpoint:  # a file by itself is what its bytes are
        assert checkpoint.container == "gguf"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_small_files_may_be_pointers_too(tmp_path: Path, name: str) -> None:
    save(LLAMA, "hf", tmp_path, shard_size=100_000)
    (tmp_path / name).write_text(POINTER)
    assert f"{name}: a Git LFS pointer" in refusal(tmp_path)


def test_a_tokenizer_may_be_a_pointer(tmp_path: Path) -> None:
    save(LLAMA, "hf", tmp_path)
    (tmp_path / "tokenizer.json").write_text(POINTER)
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(BadCheckpoint, match=r"tokenizer\.json: a Git LFS pointer"):
        checkpoint.metadata()


# ---- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its tensors, which a test takes away."""
    save(GPT_OSS, "hf", tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["pytorch_model.bin"], "holds pytorch_model.bin, PyTorch's pickled weights"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "pickled weights"),
        (["consolidated.00.pth"], "holds consolidated.00.pth"),
        (["model.pt"], "holds model.pt"),
        (["tf_model.h5"], "weights of TensorFlow"),
        (["saved_model.pb"], "weights of TensorFlow"),
        (["flax_model.msgpack"], "weights of Flax"),
        (["model.onnx", "model.onnx_data"], "weights of ONNX"),
        (["model.nemo"], "NeMo"),
        (["__0_0.distcp"], "distributed checkpoints"),
        (["model.safetensors.incomplete"], "an unfinished download"),
        ([".cache/huggingface/download/abc.incomplete"], "an unfinished download"),
        ([], "no weights"),
    ],
)
def test_folders_without_tensors_that_we_read(folder: Path, names: list[str], said: str) -> None:
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert said in refusal(folder)


def test_names_that_would_break_a_line_are_not_repeated(folder: Path) -> None:
    (folder / "a\nb.safetensors").write_bytes(b"x")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.remarks == []
    (folder / "model.safetensors").rename(folder / "pytorch_model\n.bin")
    (folder / "a\nb.safetensors").unlink()
    refusal(folder)


def test_an_empty_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("an empty folder")


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_alone_names_its_base(folder: Path, with_config: bool) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/base"}))
    if not with_config:
        (folder / "config.json").unlink()
    for path in (folder, folder / "adapter_model.safetensors"):
        if path == folder or not with_config:
            assert "an adapter (LORA) of some/base alone" in refusal(path)


def test_an_adapter_beside_a_model_is_not_applied_and_said_so(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.remarks == ["adapter_model.safetensors: an adapter beside the model, which is not applied to it"]


def test_a_training_run_names_its_latest_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for step in (90, 100, 20):
        (run / f"checkpoint-{step}").mkdir()
        for name in ("config.json", "model.safetensors"):
            (run / f"checkpoint-{step}" / name).write_bytes((folder / name).read_bytes())
    (run / "checkpoint-300").mkdir()  # begun, and holds nothing yet
    assert refusal(run).endswith(f"a training run; give one of its checkpoints (3), the latest is {run / 'checkpoint-100'}")
    open_checkpoint(run / "checkpoint-100").close()


def test_a_training_run_of_adapters(tmp_path: Path) -> None:
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    message = refusal(tmp_path)
    assert "a training run of an adapter" in message
    assert "checkpoint-10" in message
    assert "some/base" in message


def test_an_ollama_manifest_names_its_blob(tmp_path: Path) -> None:
    path = tmp_path / "models/manifests/registry.ollama.ai/library/gpt-oss/20b"
    path.parent.mkdir(parents=True)
    digest = "sha256:" + "0a" * 32
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0b" * 32},
        {"mediaType": "application/vnd.ollama.image.model", "digest": digest},
    ]
    path.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    assert refusal(path).endswith(f"its model is {tmp_path}/models/blobs/{digest.replace(':', '-')}")


def test_a_gguf_file_beside_a_configuration_is_the_model(folder: Path, tmp_path: Path) -> None:
    save(LLAMA, "gguf", tmp_path / "g", dict.fromkeys(("norm", "bias"), "f32"))
    (tmp_path / "g/config.json").write_bytes((folder / "config.json").read_bytes())
    with open_checkpoint(tmp_path / "g") as checkpoint:
        assert (checkpoint.container, checkpoint.architecture.model_type) == ("gguf", "llama")


def test_a_model_in_the_folder_below(folder: Path) -> None:
    assert f"give {folder}" in refusal(folder.parent)


def test_tensors_without_a_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model.bin", "pickled weights"),
        ("model.onnx", "a file of ONNX"),
        ("sha256-" + "0a" * 32, "a blob of Ollama that holds no model"),
        ("model.safetensors.index.json", "give the folder that it lies in"),
    ],
)
def test_files_that_are_a_part_or_something_else(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / name).write_bytes(b"{}")
    assert said in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantized by MLX"),
        ({"quantization_config": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "quantized by MLX"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "model.dequantize()"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}},
            "weight_block_size is [64, 64], which",
        ),
        ({"quantization_config": {"quant_method": "exl2"}}, "'exl2' is not supported"),
    ],
)
def test_other_programs_quantizations_are_named(folder: Path, quantization: dict, said: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | quantization))
    assert said in refusal(folder)


def test_mlx_is_told_by_its_tensors_too(folder: Path) -> None:
    import numpy as np

    name = "model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.weight": np.zeros((4, 4), np.uint32), f"{name}.scales": np.ones((4, 1), np.float16)}
    library.save_file(tensors, folder / "model.safetensors")
    assert "quantized by MLX" in refusal(folder)


# ---- GGUF files of other kinds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "architecture", "said"),
    [
        ("adapter", "llama", "a LoRA adapter"),
        ("imatrix", None, "an importance matrix"),
        ("mmproj", "clip", "mmproj"),
        (None, "clip", "mmproj"),
        ("model", "llama", "holds no tensors"),
    ],
)
def test_gguf_files_that_hold_no_model(tmp_path: Path, kind: str | None, architecture: str | None, said: str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", architecture or "llama")
    if kind:
        writer.add_type(kind)
    for key, value in LLAMA.container_config("gguf").items():
        if key != "general.architecture":
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    assert said in refusal(tmp_path / "x.gguf")


def test_big_endian_files_are_named(tmp_path: Path) -> None:
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "big-endian" in refusal(tmp_path / "x.gguf")
