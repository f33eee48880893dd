"""Small random models, written into any container and format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from oss_tools.checkpoints import Contents, Metadata, Writer, writer_for
from oss_tools.formats import QTensor, get_format
from oss_tools.models.base import Architecture
from oss_tools.models.checkpoint import Checkpoint, open_checkpoint
from oss_tools.models.entries import Entry, chunks, stored_tensors
from oss_tools.models.gpt_oss import GptOss, GptOssConfig
from oss_tools.models.llama import Llama, LlamaConfig
from oss_tools.models.rows import write_rows

GPT_OSS = GptOss(
    GptOssConfig(
        num_hidden_layers=2,
        num_local_experts=3,
        num_experts_per_tok=2,
        hidden_size=64,
        intermediate_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=40,
        sliding_window=8,
    )
)
LLAMA = Llama(
    LlamaConfig(
        num_hidden_layers=2,
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=40,
    )
)
EXPERTS = ("experts.gate_up", "experts.down")
LINEARS = ("attention.q", "attention.k", "attention.v", "attention.out", "mlp.gate", "mlp.up", "mlp.down")


def random_values(architecture: Architecture, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 values by canonical name, each exactly a bfloat16."""
    rng = np.random.default_rng(seed)
    values = {}
    for spec in architecture.tensors():
        bits = (rng.standard_normal(spec.shape) * 0.05).astype(np.float32).view(np.uint32) & 0xFFFF0000
        values[spec.name] = bits.view(np.float32)
    return values


def placed(architecture: Architecture, container: str, formats: dict[str, str]) -> list[Entry]:
    """Every tensor in the format given for its role or name, else bf16."""
    entries = []
    for spec in architecture.tensors():
        form = get_format(formats.get(spec.name, formats.get(spec.role, "bf16")))
        entries.append(Entry(spec, form, tuple(architecture.placements(container, spec, form.is_float))))
    return entries


def quantized(values: dict[str, np.ndarray], entries: list[Entry]) -> dict[str, QTensor]:
    """Each tensor as a QTensor [matrices · rows, columns] in its entry's format."""
    return {e.name: e.format.quantize(values[e.name].reshape(-1, e.spec.matrices[2])) for e in entries}


def open_writer(
    architecture: Architecture,
    container: str,
    folder: Path,
    entries: list[Entry],
    metadata: Metadata | None = None,
    shard_size: int | None = None,
) -> Writer:
    folder.mkdir(exist_ok=True)
    metadata, config = metadata or Metadata(architecture.hf_config()), architecture.container_config(container)
    return writer_for(container)(folder, Contents("model", stored_tensors(entries), metadata, config, shard_size))


def write_all(writer: Writer, entries: list[Entry], tensors: dict[str, QTensor], chunk_bytes: int = 1 << 20) -> None:
    for entry in entries:
        _, rows, _ = entry.spec.matrices
        for matrix, start, stop in chunks([entry], chunk_bytes):
            write_rows(
                writer, entry, matrix, start, tensors[entry.name].rows(slice(matrix * rows + start, matrix * rows + stop))
            )


def save(
    architecture: Architecture,
    container: str,
    folder: Path,
    formats: dict[str, str] | None = None,
    metadata: Metadata | None = None,
    shard_size: int | None = None,
) -> dict[str, QTensor]:
    """Writes a random model and returns what was written, by canonical name."""
    entries = placed(architecture, container, formats or {})
    tensors = quantized(random_values(architecture), entries)
    writer = open_writer(architecture, container, folder, entries, metadata, shard_size)
    write_all(writer, entries, tensors)
    writer.finish()
    writer.close()
    return tensors


def rename_tensors(file: Path, new_name: Callable[[str], str]) -> None:
    """Gives the tensors of a safetensors file other names, and changes nothing else."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    text = json.dumps({k if k == "__metadata__" else new_name(k): v for k, v in header.items()}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def assert_holds(folder: Path, tensors: dict) -> Checkpoint:
    """Opens a folder that must hold just these tensors."""
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
