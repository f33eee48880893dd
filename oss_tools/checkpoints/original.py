"""OpenAI's own layout of gpt-oss: config.json in its program's terms, fused qkv, experts in MXFP4, the rest in BF16.

Names and shapes after openai/gpt-oss (`gpt_oss/torch/weights.py`, `gpt_oss/torch/model.py`). Its loader reads every
.safetensors file of the folder and has no other quantized format than MXFP4 experts.
"""

from __future__ import annotations

from pathlib import Path

from oss_tools.checkpoints import companions
from oss_tools.checkpoints.assemble import EMPTY, Assembled, assemble_mxfp4, plain
from oss_tools.checkpoints.base import StoredTensor
from oss_tools.checkpoints.hf import has_original_config, looks_like_safetensors
from oss_tools.checkpoints.json_files import json_bytes
from oss_tools.checkpoints.layouts import FLOAT_DTYPES, FLOATS, Layout, Piece, mxfp4_layout
from oss_tools.checkpoints.prefixes import ORIGINAL
from oss_tools.checkpoints.safetensors import RawTensor
from oss_tools.checkpoints.shards import ShardedReader
from oss_tools.checkpoints.shards_writer import ShardedWriter
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import Format

BLOCKS, SCALES = ".blocks", ".scales"


class OriginalReader(ShardedReader):
    """OpenAI's layout of a gpt-oss model."""

    container = "original"
    model_type = "gpt_oss"
    naming = ORIGINAL

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return looks_like_safetensors(path) and has_original_config(path)

    def _assemble(self, raw: dict[str, RawTensor]) -> Assembled:
        where = str(self.folder)
        layouts: dict[str, Layout] = {}
        others: dict[str, str] = {}
        scales = set()
        for tensor in raw.values():
            if 0 in tensor.shape:
                raise BadCheckpoint(f"{where}: tensor {tensor.name} is empty: shape {list(tensor.shape)}; {EMPTY}")
            if tensor.name.endswith(BLOCKS):
                layout = assemble_mxfp4(tensor, raw, BLOCKS, SCALES, where)
                layouts[tensor.name] = layout
                scales.add(layout.pieces[1].name)
            elif tensor.dtype in FLOATS:
                layouts[tensor.name] = plain(tensor)
            else:
                others[tensor.name] = tensor.dtype
        by_name = {layout.tensor.name: layout for layout in layouts.values()}
        if len(by_name) < len(layouts):
            raise BadCheckpoint(f"{where}: a tensor is stored twice, in BF16 and in MXFP4")
        return Assembled(by_name, [], {name: dtype for name, dtype in others.items() if name not in scales})


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
        for tensor in self.contents.tensors:
            if tensor.format.is_float:
                dtypes[tensor.name] = FLOAT_DTYPES[tensor.format.name]
            else:
                dtypes |= {tensor.name + BLOCKS: "FP4", tensor.name + SCALES: "UE8"}
        return {
            "config.json": json_bytes(self.contents.container_config),
            "dtypes.json": json_bytes(dtypes),
            **companions.companion_files(self.contents.metadata),
        }
