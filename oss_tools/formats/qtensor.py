"""A tensor in a number format, and the planes that it is kept in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from oss_tools.formats.base import Format


@dataclass(frozen=True)
class Plane:
    """One array of a QTensor: `columns` elements of `dtype` for every row of the logical tensor. In a `shared` one all rows are
    equal: files hold it once. Where `rows` is more than 1, so many rows of a matrix, counted from its first, are equal: files
    hold one for all of them."""

    dtype: np.dtype
    columns: int
    shared: bool = False
    rows: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes per row."""
        return self.dtype.itemsize * self.columns

    def stored_bytes(self, rows: int, matrices: int) -> int:
        """Bytes in a file, of matrices of so many rows."""
        return self.nbytes * (1 if self.shared else matrices * -(-rows // self.rows))


@dataclass(frozen=True)
class QTensor:
    """A tensor in some number format.

    Attributes:
        format: the number format.
        shape: logical shape, [..., K]; a row is the last axis.
        planes: name -> array of shape [..., plane.columns], as `format.planes(K)` says. Every plane has the rows of
            the logical tensor, so a range of rows is the same range of every plane.
    """

    format: Format
    shape: tuple[int, ...]
    planes: dict[str, np.ndarray]

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def nbytes(self) -> int:
        return sum(plane.nbytes for plane in self.planes.values())

    def rows(self, index: slice | np.ndarray) -> QTensor:
        """The selected rows, as a QTensor of shape [n, K]. A slice makes a view, an index array a copy."""
        planes = {name: plane.reshape(-1, plane.shape[-1])[index] for name, plane in self.planes.items()}
        count = next(iter(planes.values())).shape[0]
        return QTensor(self.format, (count, self.columns), planes)

    def reshape(self, *shape: int) -> QTensor:
        """The same rows under other leading axes; the last axis cannot change."""
        if shape[-1] != self.columns:
            raise ValueError(f"the last axis is {self.columns}, not {shape[-1]}")
        planes = {name: plane.reshape(*shape[:-1], plane.shape[-1]) for name, plane in self.planes.items()}
        return QTensor(self.format, shape, planes)

    def dequantize(self) -> np.ndarray:
        """The values as float32 [..., K]."""
        return self.format.dequantize(self)


def concatenate(parts: list[QTensor]) -> QTensor:
    """Tensors [n_i, K] of one format, one under another: [sum n_i, K]."""
    if len(parts) == 1:
        return parts[0]
    planes = {name: np.concatenate([p.planes[name] for p in parts]) for name in parts[0].planes}
    return QTensor(parts[0].format, (sum(p.shape[0] for p in parts), parts[0].columns), planes)
