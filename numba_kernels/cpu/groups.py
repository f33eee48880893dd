"""Work lists of `linear`: which rows of activations meet which matrix. A dense layer is one group; an expert layer has one for
each expert that was chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Groups:
    """Which rows of activations meet which matrix: the work list of `linear`.

    Attributes:
        count: int32 [1], how many groups.
        matrix: int32, the matrix of each group.
        start: int32, where each group's rows begin in `index`; one more entry at the end.
        index: int32, the row of activations for each row of the result.
        rows: rows of the result; for experts, tokens times experts per token.
    """

    count: np.ndarray
    matrix: np.ndarray
    start: np.ndarray
    index: np.ndarray
    rows: int


def one_group(rows: int) -> Groups:
    """All rows with the first matrix: a dense layer."""
    whole = np.array([0, rows], np.int32)
    return Groups(np.ones(1, np.int32), np.zeros(1, np.int32), whole, np.arange(rows, dtype=np.int32), rows)


def expert_groups(tokens: int, top: int, experts: int) -> Groups:
    """Memory for the groups that `group_by_expert` writes."""
    sizes = (1, experts, experts + 1, tokens * top)
    count, matrix, start, index = (np.zeros(size, np.int32) for size in sizes)
    return Groups(count, matrix, start, index, tokens * top)
