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
from oss_tools.convert.imatrix import Means
from oss_tools.errors import BadCheckpoint
from oss_tools.models import Architecture, Checkpoint, TensorSpec
from oss_tools.models.decoder import gguf_name

HEAD = 512  # bytes by which a file is known
KINDS = "llama.cpp's imatrix in GGUF or its older binary form, or safetensors with float32 weights"
EVEN = 0.1  # the part of a weight that all columns have alike
LAYER = re.compile(r"blk\.\d+\..*")


class Importance(dict[str, np.ndarray]):
    """Weights for a checkpoint's tensors: canonical name -> float32 [K] or [matrices, K], each with mean 1.

    Attributes:
        unreached: the matrices of each tensor (experts) whose inputs the file's text never reached. They have the weights of all
            others of their layer together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unreached: dict[str, list[int]] = {}


def load_importance(path: Path, checkpoint: Checkpoint) -> Importance:
    """The weights that a file holds for the checkpoint's tensors.

    An importance matrix says what inputs one text brought, and nothing of how they go together: its weights are moved a tenth of
    the way to their mean (`EVEN`), so that no column counts nothing. Weights in safetensors are taken as they are.

    Raises BadCheckpoint if the file is of another kind, damaged or of another model, or has a shape, sign or NaN that no
    importance can have.
    """
    kind = _kind(path)
    known = Importance()
    if kind == "safetensors":
        stored = raw = _from_safetensors(path, checkpoint)
    else:
        stored = imatrix.read_gguf(path) if kind == "gguf" else imatrix.read_binary(path)
        raw = _placed(stored, path, checkpoint)
    for name, means in raw.items():
        if name in checkpoint.entries:
            weights, unreached = _checked(means, name, checkpoint, path)
            known[name] = weights if kind == "safetensors" else np.float32(EVEN) + np.float32(1 - EVEN) * weights
            if unreached:
                known.unreached[name] = unreached
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


def _checked(means: Means, name: str, checkpoint: Checkpoint, path: Path) -> tuple[np.ndarray, list[int]]:
    """The weights, each matrix's with mean 1, and the matrices that have their layer's. Raises BadCheckpoint."""
    weights = means.values
    count, _, columns = checkpoint.entries[name].spec.matrices
    if weights.shape not in ((columns,), (1, columns), (count, columns)):
        raise BadCheckpoint(
            f"{path}: {name} has shape {list(weights.shape)}, expected [{columns}] or [{count}, {columns}]; "
            "is it of another model?"
        )
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise BadCheckpoint(f"{path}: {name} holds a weight that is negative, NaN or infinite")
    weights = np.array(weights.reshape(-1, columns), np.float32)
    empty = weights.max(axis=1) == 0
    if means.counts is not None and len(means.counts) == len(weights):
        empty |= means.counts == 0
    if not empty.all():
        counts = None if means.counts is None or len(means.counts) != len(weights) else means.counts[~empty]
        weights[empty] = np.average(weights[~empty], axis=0, weights=counts)
    else:
        weights[:] = 1  # a layer that no token reached: all alike
    weights /= weights.mean(axis=1, keepdims=True)
    unreached = np.flatnonzero(empty).tolist() if len(weights) > 1 else []
    return np.ascontiguousarray(weights.reshape(columns) if weights.size == columns else weights, np.float32), unreached


def _from_safetensors(path: Path, checkpoint: Checkpoint) -> dict[str, Means]:
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
            weights[name] = Means(file.read(tensor, 0, tensor.nbytes).view(np.float32).reshape(tensor.shape), None)
        return weights
    finally:
        file.close()


def stored_names(architecture: Architecture, spec: TensorSpec) -> list[str]:
    """The names under which importance matrices have a tensor's inputs: those of its parts in GGUF files; of one whose parts are
    turned there and meet other inputs (the keys of DeepSeek's latents), that of the older files that have it whole."""
    placements = architecture.placements("gguf", spec, False)
    if any(placement.stored_matrix is not None for placement in placements):
        return [gguf_name(spec)]
    return list(dict.fromkeys(placement.stored for placement in placements))


def _placed(stored: dict[str, Means], path: Path, checkpoint: Checkpoint) -> dict[str, Means]:
    """By canonical name, from the names that tensors have in GGUF files. Gate and up projections share their input, so either
    serves. Raises BadCheckpoint for a tensor of a layer that the model does not have."""
    weights = {}
    unknown = set(stored)
    for entry in checkpoint.entries.values():
        count, _, columns = entry.spec.matrices
        unknown.difference_update(p.stored for p in checkpoint.architecture.placements("gguf", entry.spec, False))
        for name in stored_names(checkpoint.architecture, entry.spec):
            unknown.discard(name)
            means = stored.get(name)
            if means is not None:
                values = means.values
                fits = values.size in (columns, count * columns)
                values = values.reshape(-1, columns) if fits else np.atleast_2d(values)
                weights[entry.name] = Means(values, means.counts)
    if strange := sorted(name for name in unknown if LAYER.fullmatch(name)):
        raise BadCheckpoint(
            f"{path}: an importance matrix of another model: {strange[0][:80]!r} is none of the tensors of {checkpoint.path}"
        )
    return weights
