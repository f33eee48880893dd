"""Importance weights: how much the squared error of each input column counts when scales are searched.

Two kinds of file are read: llama.cpp's importance matrix in GGUF (`NAME.in_sum2` and `NAME.counts`: the mean square of each
input activation), and safetensors with a float32 tensor [K] or [matrices, K] under each canonical name.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from oss_tools.checkpoints.files import read_at
from oss_tools.checkpoints.gguf_header import read_header
from oss_tools.checkpoints.safetensors import SafetensorsFile
from oss_tools.errors import BadCheckpoint
from oss_tools.models import Checkpoint


def load_importance(path: Path, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Weights for the checkpoint's tensors: canonical name -> float32 [K] or [matrices, K], each with mean 1.

    Raises BadCheckpoint if the file is damaged, or has a shape, sign or NaN that no importance can have, or names no tensor.
    """
    raw = _from_gguf(path, checkpoint) if path.suffix == ".gguf" else _from_safetensors(path)
    known = {name: _checked(weights, name, checkpoint, path) for name, weights in raw.items() if name in checkpoint.entries}
    if not known:
        raise BadCheckpoint(f"{path}: holds no weights for any tensor of {checkpoint.path}")
    return known


def _checked(weights: np.ndarray, name: str, checkpoint: Checkpoint, path: Path) -> np.ndarray:
    count, _, columns = checkpoint.entries[name].spec.matrices
    if weights.shape not in ((columns,), (1, columns), (count, columns)):
        raise BadCheckpoint(f"{path}: {name} has shape {list(weights.shape)}, expected [{columns}] or [{count}, {columns}]")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise BadCheckpoint(f"{path}: {name} holds a weight that is negative, NaN or infinite")
    mean = weights.mean(axis=-1, keepdims=True)
    weights = np.where(mean > 0, weights / np.where(mean > 0, mean, 1), 1)  # an expert that never ran: all alike
    return np.ascontiguousarray(weights.reshape(columns) if weights.size == columns else weights, np.float32)


def _from_safetensors(path: Path) -> dict[str, np.ndarray]:
    file = SafetensorsFile(path)
    try:
        weights = {}
        for name, tensor in file.tensors.items():
            if tensor.dtype != "F32":
                raise BadCheckpoint(f"{path}: {name} is {tensor.dtype}, importance weights are F32")
            weights[name] = file.read(tensor, 0, tensor.nbytes).view(np.float32).reshape(tensor.shape)
        return weights
    finally:
        file.close()


def _from_gguf(path: Path, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Names are those that the tensors have in GGUF files. Gate and up projections share their input, so either serves."""
    stored = _read_imatrix(path)
    weights = {}
    for entry in checkpoint.entries.values():
        for placement in checkpoint.architecture.placements("gguf", entry.spec, False):
            sums, counts = stored.get(placement.stored + ".in_sum2"), stored.get(placement.stored + ".counts")
            if sums is not None and counts is not None:
                matrices = counts.size
                if sums.size % max(matrices, 1):
                    raise BadCheckpoint(f"{path}: {placement.stored}: {sums.size} sums for {matrices} matrices")
                weights[entry.name] = sums.reshape(matrices, -1) / np.maximum(counts.reshape(-1, 1), 1)
    return weights


def _read_imatrix(path: Path) -> dict[str, np.ndarray]:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        header = read_header(descriptor, path)
        if header.keys.get("general.type") != "imatrix":
            raise BadCheckpoint(f"{path}: not an importance matrix: general.type is {header.keys.get('general.type')!r}")
        tensors = {}
        for info in header.tensors:
            if info.ggml_type.name != "F32":
                raise BadCheckpoint(f"{path}: {info.name} is {info.ggml_type.name}, importance weights are F32")
            tensors[info.name] = read_at(descriptor, info.offset, info.nbytes, path).view(np.float32)
        return tensors
    finally:
        os.close(descriptor)
