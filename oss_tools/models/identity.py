"""What tells models apart, found without reading them whole."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from oss_tools.models.checkpoint import Checkpoint

SAMPLED = 8192  # rows in all, about
MOST, LEAST = 16, 2  # of a tensor


def sampled_digest(checkpoint: Checkpoint, config: dict[str, Any]) -> str:
    """sha256, in hex, of the configuration, of every stored tensor's name, format and shape, and of some of its rows, evenly
    spaced, the first and the last among them. Vectors count in whole. A model that was trained further has another one; the
    same model in another container has another one too."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    reader = checkpoint.reader
    each = min(max(SAMPLED // max(len(reader.tensors), 1), LEAST), MOST)
    for name, tensor in sorted(reader.tensors.items()):
        digest.update(repr((name, tensor.format.name, tensor.shape)).encode())
        if not tensor.size:
            continue
        for row in np.unique(np.linspace(0, tensor.rows - 1, each).astype(np.int64)).tolist():
            planes = reader.read(name, row, row + 1, tensor.shape[-1]).planes
            for plane in sorted(planes):
                digest.update(planes[plane].tobytes())
    return digest.hexdigest()
