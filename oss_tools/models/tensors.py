"""A canonical tensor, and where its rows lie in a stored one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

VECTOR_ROLES = ("norm", "bias", "sinks", "rope")  # last axis is the row axis: see TensorSpec.matrices


@dataclass(frozen=True)
class TensorSpec:
    """A canonical tensor.

    Attributes:
        name: Hugging Face parameter name, without format suffixes (`_blocks`, `_packed`, …).
        shape: [out, in], [experts, out, in], [n] or [experts, n].
        role: what it is for, as recipes name it: embedding, output, attention.q, attention.k, attention.v,
            attention.out, router, experts.gate_up (gpt-oss) or experts.gate and experts.up, experts.down, mlp.gate, mlp.up,
            mlp.down, norm, bias, sinks, rope, positions (a table of learned ones).
        layer: the decoder layer, or None.
        optional: whether a checkpoint may lack it (a tied lm_head, a bias).
    """

    name: str
    shape: tuple[int, ...]
    role: str
    layer: int | None = None
    optional: bool = False

    @property
    def is_vector(self) -> bool:
        """Whether it has no input axis: norms, biases, sinks. Such tensors stay plain floats."""
        return self.role in VECTOR_ROLES

    @property
    def matrices(self) -> tuple[int, int, int]:
        """(matrices, rows, columns): how it is read and written, one matrix at a time. A vector is a column: [n, 1]."""
        shape = (*self.shape, 1) if self.is_vector else self.shape
        count = 1
        for axis in shape[:-2]:
            count *= axis
        return count, shape[-2], shape[-1]

    @property
    def size(self) -> int:
        """Number of values."""
        count, rows, columns = self.matrices
        return count * rows * columns


@dataclass(frozen=True)
class Placement:
    """Where rows of a canonical matrix lie in a stored tensor.

    The canonical rows first, first + step, first + 2 step, … (`count` of them) are the stored matrix's rows
    offset, offset + 1, …, of `stored_rows` in all. A canonical tensor has one placement or several that together cover it.

    Attributes:
        stored: the tensor's name in the container.
        first, step, count: which canonical rows.
        offset, stored_rows: which rows of each stored matrix.
        rotary: rows of one attention head if the container interleaves the two halves of each head (GGUF's llama
            family: stored row 2 t + h of a head is canonical row h · rotary / 2 + t), else 0.
        transposed: the stored matrices are [in, out].
        matrix: the only canonical matrix that the stored tensor holds (one expert of a stack); None if it holds all of them.
        stored_matrix: the stored matrix, where one canonical matrix lies in several (DeepSeek's heads); None for that of the same
            number, or the only one.
        stored_shape: the stored tensor's whole shape.
    """

    stored: str
    stored_shape: tuple[int, ...]
    count: int
    stored_rows: int
    first: int = 0
    step: int = 1
    offset: int = 0
    rotary: int = 0
    transposed: bool = False
    matrix: int | None = None
    stored_matrix: int | None = None

    def matrix_of(self, matrix: int) -> int:
        """The stored matrix in which rows of a canonical one lie."""
        if self.stored_matrix is not None:
            return self.stored_matrix
        return matrix if self.matrix is None else 0

    def head_order(self) -> np.ndarray:
        """For `rotary`: the canonical row, within a head, of each stored row."""
        return np.arange(self.rotary).reshape(2, self.rotary // 2).T.reshape(-1)


def whole(name: str, shape: tuple[int, ...], spec: TensorSpec, **options: Any) -> list[Placement]:
    """The placement of a tensor that is stored alone and in order."""
    _, rows, _ = spec.matrices
    return [Placement(name, shape, count=rows, stored_rows=rows, **options)]
