"""Importance weights: how much the squared error of each input column counts when scales are searched.

Three kinds of file are read, known by their content: llama.cpp's importance matrix in GGUF and in the binary form that came
before (`imatrix.py`), and safetensors with a float32 tensor [K] or [matrices, K] under each canonical name.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from oss_tools.checkpoints.files import what_bytes_are
from oss_tools.checkpoints.gguf_header import MAGIC
from oss_tools.checkpoints.safetensors import SafetensorsFile
from oss_tools.convert import imatrix
from oss_tools.errors import BadCheckpoint
from oss_tools.models import Checkpoint

HEAD = 512  # bytes by which a file is known
KINDS = "llama.cpp's imatrix in GGUF or its older binary form, or safetensors with float32 weights"
LAYER = re.compile(r"blk\.\d+\..*")


def load_importance(path: Path, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Weights for the checkpoint's tensors: canonical name -> float32 [K] or [matrices, K], each with mean 1.

    Raises BadCheckpoint if the file is of another kind, damaged or of another model, or has a shape, sign or NaN that no
    importance can have.
    """
    kind = _kind(path)
    if kind == "safetensors":
        stored = raw = _from_safetensors(path, checkpoint)
    else:
        stored = imatrix.read_gguf(path) if kind == "gguf" else imatrix.read_binary(path)
        raw = _placed(stored, path, checkpoint)
    known = {name: _checked(weights, name, checkpoint, path) for name, weights in raw.items() if name in checkpoint.entries}
    if not known:
        named = f"; it names {next(iter(stored))[:80]!r}" if stored else ""
        raise BadCheckpoint(f"{path}: holds no weights for any tensor of {checkpoint.path}{named}; is it of another model?")
    return known


def _kind(path: Path) -> str:
    """`gguf`, `binary` or `safetensors`, by the first bytes. Raises BadCheckpoint that says what else the file is."""
    if path.is_dir():
        raise BadCheckpoint(f"{path}: a folder; --importance wants a file: {KINDS}")
    with imatrix.opened(path) as descriptor:
        if not path.is_file():
            raise BadCheckpoint(f"{path}: not a regular file; --importance wants {KINDS}")
        with open(descriptor, "rb", closefd=False) as file:
            head = file.read(HEAD)
    if head.startswith(MAGIC):
        return "gguf"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    if what := what_bytes_are(head):
        raise BadCheckpoint(f"{path}: {what}")
    if imatrix.is_binary(head):
        return "binary"
    what = "empty" if not head else "text" if _is_text(head) else "of no known kind"
    raise BadCheckpoint(f"{path}: {what}, not an importance matrix; --importance wants {KINDS}")


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", "ignore")
    return len(text.encode()) > len(head) - 4 and all(c.isprintable() or c in "\t\r\n" for c in text)


def _checked(weights: np.ndarray, name: str, checkpoint: Checkpoint, path: Path) -> np.ndarray:
    count, _, columns = checkpoint.entries[name].spec.matrices
    if weights.shape not in ((columns,), (1, columns), (count, columns)):
        raise BadCheckpoint(
            f"{path}: {name} has shape {list(weights.shape)}, expected [{columns}] or [{count}, {columns}]; "
            "is it of another model?"
        )
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise BadCheckpoint(f"{path}: {name} holds a weight that is negative, NaN or infinite")
    mean = weights.mean(axis=-1, keepdims=True)
    weights = np.where(mean > 0, weights / np.where(mean > 0, mean, 1), 1)  # an expert that never ran: all alike
    return np.ascontiguousarray(weights.reshape(columns) if weights.size == columns else weights, np.float32)


def _from_safetensors(path: Path, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    file = SafetensorsFile(path)
    try:
        weights = {}
        for name, tensor in file.tensors.items():
            entry = checkpoint.entries.get(name)
            if entry and len(tensor.shape) > 1 and tensor.shape == entry.spec.shape:
                raise BadCheckpoint(
                    f"{path}: a model's weights, not an importance matrix: {name} has a value for every weight"
                )
            if tensor.dtype != "F32":
                raise BadCheckpoint(f"{path}: {name} is {tensor.dtype}, importance weights are F32")
            weights[name] = file.read(tensor, 0, tensor.nbytes).view(np.float32).reshape(tensor.shape)
        return weights
    finally:
        file.close()


def _placed(stored: dict[str, np.ndarray], path: Path, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """By canonical name, from the names that tensors have in GGUF files. Gate and up projections share their input, so either
    serves. Raises BadCheckpoint for a tensor of a layer that the model does not have."""
    weights = {}
    unknown = set(stored)
    for entry in checkpoint.entries.values():
        count, _, columns = entry.spec.matrices
        for placement in checkpoint.architecture.placements("gguf", entry.spec, False):
            unknown.discard(placement.stored)
            means = stored.get(placement.stored)
            if means is not None and placement.stored_matrix is None:  # not of heads that lie apart (DeepSeek's attn_k_b)
                fits = means.size in (columns, count * columns)
                weights[entry.name] = means.reshape(-1, columns) if fits else np.atleast_2d(means)
    if strange := sorted(name for name in unknown if LAYER.fullmatch(name)):
        raise BadCheckpoint(
            f"{path}: an importance matrix of another model: {strange[0][:80]!r} is none of the tensors of {checkpoint.path}"
        )
    return weights
