"""OpenAI's own layout of gpt-oss: config.json in its program's terms, fused qkv, experts in MXFP4, the rest in BF16.

Names and shapes after openai/gpt-oss (`gpt_oss/torch/weights.py`, `gpt_oss/torch/model.py`). Its loader reads every
.safetensors file of the folder and has no other quantized format than MXFP4 experts.
"""

from __future__ import annotations

from pathlib import Path

from oss_tools.checkpoints import companions
from oss_tools.checkpoints.base import StoredTensor
from oss_tools.checkpoints.compressed_tensors import FLOAT_DTYPES, FLOATS, Layout, Piece, assemble_mxfp4, mxfp4_layout
from oss_tools.checkpoints.files import json_bytes
from oss_tools.checkpoints.hf import has_original_config, looks_like_safetensors
from oss_tools.checkpoints.safetensors import RawTensor
from oss_tools.checkpoints.shards import ShardedReader, ShardedWriter
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import Format, get_format

BLOCKS, SCALES = ".blocks", ".scales"


class OriginalReader(ShardedReader):
    """OpenAI's layout of a gpt-oss model."""

    container = "original"
    model_type = "gpt_oss"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return looks_like_safetensors(path) and has_original_config(path)

    def _shard_names(self) -> list[str]:
        return sorted(p.name for p in self.folder.glob("*.safetensors"))

    def _assemble(self, raw: dict[str, RawTensor]) -> dict[str, Layout]:
        where = str(self.folder)
        layouts: dict[str, Layout] = {}
        scales = set()
        for tensor in raw.values():
            if 0 in tensor.shape:
                raise BadCheckpoint(f"{where}: tensor {tensor.name} is empty: shape {list(tensor.shape)}")
            if tensor.name.endswith(BLOCKS):
                layout = assemble_mxfp4(tensor, raw, BLOCKS, SCALES, where)
                layouts[tensor.name] = layout
                scales.add(layout.pieces[1].name)
            elif tensor.dtype in FLOATS:
                stored = StoredTensor(tensor.name, get_format(FLOATS[tensor.dtype]), tensor.shape or (1,))
                layouts[tensor.name] = Layout(stored, (Piece("values", tensor.name, tensor.dtype, tensor.shape),))
        stray = next((t for t in raw.values() if t.name not in layouts and t.name not in scales), None)
        if stray:
            raise BadCheckpoint(f"{where}: tensor {stray.name} has dtype {stray.dtype}, which is no weight's")
        by_name = {layout.tensor.name: layout for layout in layouts.values()}
        if len(by_name) < len(layouts):
            raise BadCheckpoint(f"{where}: a tensor is stored twice, in BF16 and in MXFP4")
        return by_name


class OriginalWriter(ShardedWriter):
    """A folder that OpenAI's gpt_oss program loads."""

    container = "original"
    shard_name = "model--{number:05d}-of-{count:05d}.safetensors"

    @classmethod
    def holds(cls, format: Format, role: str, model_type: str) -> bool:
        return format.is_float or (format.name == "mxfp4" and role.startswith("experts."))

    @classmethod
    def lay_out(cls, tensor: StoredTensor) -> Layout:
        if tensor.format.is_float:
            piece = Piece("values", tensor.name, FLOAT_DTYPES[tensor.format.name], tensor.shape)
            return Layout(tensor, (piece,))
        return mxfp4_layout(tensor, BLOCKS, SCALES)

    def small_files(self) -> dict[str, bytes]:
        dtypes = {}
        for tensor in self.tensors:
            if tensor.format.is_float:
                dtypes[tensor.name] = FLOAT_DTYPES[tensor.format.name]
            else:
                dtypes |= {tensor.name + BLOCKS: "FP4", tensor.name + SCALES: "UE8"}
        return {
            "config.json": json_bytes(self.container_config),
            "dtypes.json": json_bytes(dtypes),
            **companions.companion_files(self.metadata),
        }
