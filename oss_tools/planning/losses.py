"""What each format costs each tensor: sampled rows, rounded, their errors weighted by what their columns are multiplied with.

Rounding adds noise to a matrix's product whose power is Σ over columns k of (mean of x_k²) · (w_k − q_k)². For small errors the
divergence is proportional to it. So it is measured for one format a tensor, and scaled by the power of the others'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from oss_tools.formats import Format
from oss_tools.models import Checkpoint
from oss_tools.models.entries import Entry

ROWS = 256  # of a tensor that are rounded, or a few more
MATRICES = 4  # experts of which they are taken


def noise(
    checkpoint: Checkpoint,
    entry: Entry,
    formats: Sequence[Format],
    sums: Mapping[str, np.ndarray],
    importance: np.ndarray | None,
) -> dict[str, float]:
    """The noise's power by format's name.

    Args:
        sums: squares of inputs, float [matrices, K] by tensor; of one that is not there (an embedding) all columns are alike.
        importance: that rounding is to be weighted by, float32 [K] or [matrices, K], or None.
    """
    count, rows, columns = entry.spec.matrices
    matrices = np.unique(np.linspace(0, count - 1, MATRICES).astype(int))
    unit = int(np.lcm.reduce([format.row_block for format in formats]))
    each = max(ROWS // len(matrices) // unit, 1) * unit
    total = dict.fromkeys((format.name for format in formats), 0.0)
    amax = checkpoint.largest_magnitude(entry.name) if any(format.needs_amax for format in formats) else None
    for matrix in map(int, matrices):
        weight = sums[entry.name][matrix] if entry.name in sums else np.ones(columns)
        if not weight.any():
            continue
        own = None if importance is None else importance[matrix] if importance.ndim > 1 else importance
        for values in _samples(checkpoint, entry.name, matrix, rows, each, unit):
            for format in formats:
                error = values - format.quantize(values, importance=own, amax=amax).dequantize()
                total[format.name] += float((np.square(error, dtype=np.float64) @ weight).sum())
    return total


def _samples(checkpoint: Checkpoint, name: str, matrix: int, rows: int, wanted: int, unit: int) -> list[np.ndarray]:
    """Some rows of a matrix, float32, in four stretches that are spread over it."""
    if rows <= wanted:
        return [np.array(checkpoint.read(name, matrix, 0, rows).dequantize())]
    stretch = max(wanted // 4 // unit, 1) * unit
    starts = np.linspace(0, rows - stretch, 4).astype(int) // unit * unit
    return [np.array(checkpoint.read(name, matrix, int(at), int(at) + stretch).dequantize()) for at in starts]
