"""How large weight panels are: arithmetic alone, for any number of lanes, without a compiler. What lies in them: `blocks.py`."""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 32  # columns
CODES = {  # bytes of a row's codes in a block, and of its scales there
    "mxfp4": (16, 1),
    "q4_0": (16, 2),
    "q4_1": (16, 4),
    "q5_0": (20, 2),
    "q5_1": (20, 4),
    "iq4_nl": (16, 2),
    "q8_0": (32, 2),
    "int8": (32, 2),
    "int8_g32": (32, 2),
    "int8_g128": (32, 2),
    "q2_k": (8, 20),
    "q3_k": (12, 14),
    "q4_k": (16, 16),
    "q5_k": (20, 16),
    "q6_k": (24, 18),
    "bf16": (64, 0),
    "f16": (64, 0),
    "f32": (128, 0),
}
BYTES = ("q8_0", "int8", "int8_g32", "int8_g128")  # codes are signed bytes, which some processors' panels keep raised by 128
K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
GROUPED = {"int8": 62, "int8_g128": 2} | dict.fromkeys(
    K_QUANTS, 3
)  # scales stand behind all codes: that of block k is number k >> shift
MULTIPLES = {"int8": 1, "bf16": 1, "f16": 1, "f32": 1, "int8_g128": 128} | dict.fromkeys(
    K_QUANTS, 256
)  # of columns; of others 32


@dataclass(frozen=True)
class Geometry:
    """A matrix in panels of `lanes` rows.

    Attributes:
        format: a number format's name, a key of CODES.
        rows, columns: of the matrix.
        lanes: rows of a panel; those beyond the last are zeros.
    """

    format: str
    rows: int
    columns: int
    lanes: int

    @property
    def blocks(self) -> int:
        """Blocks of 32 columns in a row, the last one padded."""
        return -(-self.columns // BLOCK)

    @property
    def panels(self) -> int:
        return -(-self.rows // self.lanes)

    @property
    def groups(self) -> int:
        """Scale groups in a row, where scales stand behind the codes; else 0."""
        return ((self.blocks - 1) >> GROUPED[self.format]) + 1 if self.format in GROUPED else 0

    @property
    def block_bytes(self) -> int:
        """From one block of a panel to the next."""
        codes, scales = CODES[self.format]
        return self.lanes * (codes if self.groups else codes + scales)

    @property
    def scales_at(self) -> int:
        """Bytes from a panel's beginning to its first scales."""
        return _round_up(self.blocks * self.block_bytes) if self.groups else self.lanes * CODES[self.format][0]

    @property
    def scale_step(self) -> int:
        """From the scales of one block, or group, to the next."""
        return self.lanes * CODES[self.format][1] if self.groups else self.block_bytes

    @property
    def panel_bytes(self) -> int:
        return _round_up(self.blocks * self.block_bytes) + _round_up(self.groups * self.scale_step)

    @property
    def nbytes(self) -> int:
        """Of the matrix."""
        return self.panels * self.panel_bytes


def divides(format: str, columns: int) -> bool:
    """Whether a format has panels, and rows of so many columns divide into its blocks."""
    return format in CODES and columns % MULTIPLES.get(format, BLOCK) == 0


def _round_up(value: int) -> int:
    return -(-value // 64) * 64
