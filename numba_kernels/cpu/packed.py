"""Packed matrices: shapes and sizes of panels of LANES rows, and the memory that they lie in."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from numba_kernels.cpu.blocks import BLOCK, LAYOUTS, Layout
from numba_kernels.cpu.geometry import GROUPED
from numba_kernels.cpu.huge_pages import Region
from numba_kernels.cpu.k_panels import K_BLOCKS
from numba_kernels.simd.values import LANES

INT8_GROUPS = {"int8_g32": 32, "int8_g128": 128}  # columns that share a scale; int8 has one for a row
_region = Region()


def kernel_format(name: str) -> str:
    """The kernel that serves a format: int8 with scales for a row or for 128 columns share one."""
    return "int8" if name == "int8_g128" else name


@dataclass
class Packed:
    """`matrices` matrices of one shape, [rows, columns] each, in panels.

    Attributes:
        format: the number format's name, as `LAYOUTS` has it, or int8_g32, int8_g128.
        matrices, rows, columns: the logical shape; columns as the caller counts them.
        data: uint8 [matrices, panels, panel_bytes]; rows beyond the last are zeros. Fresh memory unless it is given: then its
            matrices may lie apart (in a file, each beside others).
        shift: the scale group of block k is k >> shift.
    """

    format: str
    matrices: int
    rows: int
    columns: int
    data: np.ndarray = field(default=None, repr=False)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if kernel_format(self.format) not in LAYOUTS:
            raise ValueError(f"no kernels for the format {self.format!r}; there are {', '.join(all_formats())}")
        if not fits(self.format, self.columns):
            raise ValueError(f"{self.format}: {self.columns} columns are no multiple of {_step(self.format)}")
        shape = self.matrices, self.panels, self.panel_bytes
        if self.data is None:
            self.data = _region.take(self.matrices * self.panels * self.panel_bytes).reshape(shape)
        elif self.data.shape != shape or self.data.dtype != np.uint8 or self.data.strides[1:] != (self.panel_bytes, 1):
            raise ValueError(f"{self.data.dtype} {self.data.shape} for panels uint8 {shape}")

    @property
    def layout(self) -> Layout:
        return LAYOUTS[kernel_format(self.format)]

    @property
    def blocks(self) -> int:
        """Blocks of 32 columns in a row, the last one padded."""
        return -(-self.columns // BLOCK)

    @property
    def panels(self) -> int:
        return -(-self.rows // LANES)

    @property
    def shift(self) -> int:
        return GROUPED.get(self.format, 0)

    @property
    def groups(self) -> int:
        """Scale groups in a row."""
        return 0 if self.layout.scale == "none" else ((self.blocks - 1) >> self.shift) + 1

    @property
    def scales_at(self) -> int:
        """Bytes from a panel's beginning to its first scales."""
        return self._block_bytes if self.layout.is_grouped else LANES * self.layout.code_bytes

    @property
    def _block_bytes(self) -> int:
        return _round_up(self.blocks * self.layout.block_bytes, 64)

    @property
    def panel_bytes(self) -> int:
        grouped = self.groups * self.layout.scale_step if self.layout.is_grouped else 0
        return self._block_bytes + _round_up(grouped, 64)

    @property
    def matrix_bytes(self) -> int:
        """From one matrix to the next."""
        return self.data.strides[0] if self.matrices > 1 else self.panels * self.panel_bytes

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


def all_formats() -> list[str]:
    """The names of all formats that can be packed."""
    return [*LAYOUTS, "int8_g128"]


def fits(name: str, columns: int) -> bool:
    """Whether there are kernels for a format and rows of so many columns."""
    return kernel_format(name) in LAYOUTS and columns % _step(name) == 0


def _step(name: str) -> int:
    """Columns of which a format's rows have a multiple."""
    if name == "int8" or LAYOUTS[kernel_format(name)].decode is None:
        return 1
    return 256 if name in K_BLOCKS else INT8_GROUPS.get(name, BLOCK)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
