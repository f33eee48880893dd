"""Hugging Face folders: config.json, safetensors in one file or in shards with an index, tokenizer and companions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oss_tools.checkpoints import companions
from oss_tools.checkpoints.assemble import Assembled, assemble
from oss_tools.checkpoints.base import StoredTensor
from oss_tools.checkpoints.compressed_tensors import QUANTIZED, lay_out, quantization_config
from oss_tools.checkpoints.index import INDEX
from oss_tools.checkpoints.json_files import json_bytes, read_json
from oss_tools.checkpoints.layouts import Layout
from oss_tools.checkpoints.methods import check_method, check_names
from oss_tools.checkpoints.prefixes import HF
from oss_tools.checkpoints.safetensors import RawTensor, is_sane_name
from oss_tools.checkpoints.shards import ShardedReader
from oss_tools.checkpoints.shards_writer import ShardedWriter, float_dtype_name
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import Format

FLOAT_ROLES = (
    "norm",
    "bias",
    "sinks",
    "rope",
    "router",
    "embedding",
    "positions",
)  # what transformers has no quantized layer for
CONV1D = ("gpt2",)  # transformers holds the linears of these transposed, and has no quantized layer for them either
TORCH_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


class HfReader(ShardedReader):
    """A Hugging Face folder, or a lone .safetensors file with config.json beside it."""

    container = "hf"
    naming = HF

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return looks_like_safetensors(path) and not has_original_config(path)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        model_type = self._raw_config.get("model_type")
        if not isinstance(model_type, str) or not is_sane_name(model_type):
            self.close()
            raise BadCheckpoint(f"{self.folder / 'config.json'}: model_type is {repr(model_type)[:80]}, expected a name")
        self.model_type = model_type

    def _assemble(self, raw: dict[str, RawTensor]) -> Assembled:
        where = str(self.folder)
        check_method(self._raw_config, f"{where}/config.json")
        check_names(raw, where)
        return assemble(raw, self._raw_config, self._is_zero, where)


class HfWriter(ShardedWriter):
    """A Hugging Face folder that transformers loads."""

    container = "hf"
    shard_name = "model-{number:05d}-of-{count:05d}.safetensors"

    @classmethod
    def holds(cls, format: Format, role: str, model_type: str) -> bool:
        return format.is_float or (format.name in QUANTIZED and role not in FLOAT_ROLES and model_type not in CONV1D)

    @classmethod
    def lay_out(cls, tensor: StoredTensor) -> Layout:
        return lay_out(tensor)

    def small_files(self) -> dict[str, bytes]:
        return {"config.json": json_bytes(self._config()), **companions.companion_files(self.contents.metadata)}

    def _config(self) -> dict[str, Any]:
        """The model's config with the dtype and the quantization that these files have."""
        config = {key: value for key, value in self.contents.metadata.config.items() if key != "quantization_config"}
        dtype_key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config[dtype_key] = float_dtype_name(self.contents.tensors, TORCH_DTYPES.__getitem__)
        quantization = quantization_config(self.contents.tensors)
        return {**config, "quantization_config": quantization} if quantization else config


def looks_like_safetensors(path: Path) -> bool:
    """Whether it is a .safetensors file, or a folder with config.json and such files or their index."""
    if path.is_file():
        return path.suffix == ".safetensors"
    has_tensors = (path / INDEX).exists() or any(path.glob("*.safetensors"))
    return has_tensors and (path / "config.json").exists()


def has_original_config(path: Path) -> bool:
    """Whether config.json is in the terms of OpenAI's own program: `num_experts`, and no `model_type`."""
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        fields = read_json(config, companions.MAX_CONFIG)
    except BadCheckpoint:  # opening it as a Hugging Face folder says what is wrong with it
        return False
    return "num_experts" in fields and "experts_per_token" in fields and "model_type" not in fields
