"""How each number format lies on the device, and the product of 16 bytes of a row with the vector it meets.

A matrix is rows of codes, each padded to a multiple of 16 bytes: a thread takes 16 bytes, a *chunk*, at a time. Scales
stand apart, row after row. 4-bit codes lie as their formats have them: MXFP4's low and high nibbles are neighbours, q4_0's
stand 16 columns apart.

The vector lies in shared memory in *quads* of 16 bytes, four float32 or sixteen int8 with one scale. Quad p of chunk c is at
place p · (chunks, padded to whole warps) + c, so that neighbouring threads read neighbouring quads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from numba_kernels.cuda.intrinsics import as_int, bits_as_float, byte_permute, dp4a, half_as_float, load_floats, load_words
from numba_kernels.cuda.seam import WARP, cuda, device

CHUNK = 16  # bytes
GROUP = 16  # int8 activations that share a scale


@dataclass(frozen=True)
class Layout:
    """A format on the device.

    Attributes:
        bits: of a code, or of a float.
        scale: what the scales are: e8m0 (uint8), f16 or bf16 (uint16), or none.
        group: columns that share a scale; 0 is a whole row.
    """

    bits: int
    scale: str = "none"
    group: int = 32

    @property
    def is_float(self) -> bool:
        return self.scale == "none"

    @property
    def per_chunk(self) -> int:
        """Columns in 16 bytes."""
        return 8 * CHUNK // self.bits

    @property
    def scale_dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.scale == "e8m0" else np.uint16)

    def row_words(self, columns: int) -> int:
        """Words of a row's codes, padded."""
        return -(-columns * self.bits // (8 * CHUNK)) * (CHUNK // 4)

    def row_scales(self, columns: int) -> int:
        """Scales of a row."""
        return 0 if self.is_float else columns // self.group if self.group else 1


LAYOUTS = {
    "mxfp4": Layout(4, "e8m0"),
    "q4_0": Layout(4, "f16"),
    "q8_0": Layout(8, "f16"),
    "int8": Layout(8, "bf16", 0),
    "int8_g128": Layout(8, "bf16", 128),
    "int8_g32": Layout(8, "bf16", 32),
    "bf16": Layout(16),
    "f16": Layout(16),
    "f32": Layout(32),
}


def fits(name: str, columns: int) -> bool:
    """Whether rows of this length can be kept in a format here."""
    if name not in LAYOUTS:
        return False
    layout = LAYOUTS[name]
    return (layout.is_float or columns % 32 == 0) and not (layout.group and columns % layout.group)


@dataclass(frozen=True)
class Shape:
    """The compile-time numbers of a row of `columns` values in a format that meets a vector of `activations` (int8, f32)."""

    format: str
    columns: int
    activations: str

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.format]

    @property
    def quantized(self) -> bool:
        """Whether the vector is int8; floats always meet float32."""
        return self.activations == "int8" and not self.layout.is_float

    @property
    def chunks(self) -> int:
        """Of a row."""
        return self.layout.row_words(self.columns) * 4 // CHUNK

    @property
    def unroll(self) -> int:
        """Chunks of a row that a thread asks for before it works on the first: 2 to 4, whichever wastes least. Of several, what
        leaves registers for more blocks."""
        steps = -(-self.chunks // WARP)
        order = {8: (2, 3, 4), 4: (4, 3, 2)}.get(self.layout.bits, (3, 4, 2))
        return 1 if steps == 1 else min(order, key=lambda u: -steps % u)

    @property
    def steps(self) -> int:
        """Chunks of a row for each thread of a warp, rounded up to `unroll`."""
        return -(-self.chunks // (WARP * self.unroll)) * self.unroll

    @property
    def quads(self) -> int:
        """Quads of the padded vector."""
        return self.steps * WARP * self.parts

    @property
    def parts(self) -> int:
        """Quads that a chunk meets."""
        return self.layout.per_chunk // (16 if self.quantized else 4)

    def constants(self) -> dict[str, Any]:
        """Of the functions that multiply such rows."""
        return {
            "CHUNKS": self.chunks,
            "STEPS": self.steps,
            "UNROLL": self.unroll,
            "WORDS_PER_ROW": self.layout.row_words(self.columns),
            "SCALES_PER_ROW": self.layout.row_scales(self.columns),
            "DOT": dot_function(self.format, self.quantized, self.columns),
        }


# ---- codes as four signed bytes -------------------------------------------------------------------------------------

MXFP4_LOW, MXFP4_HIGH = np.uint32(0x03020100), np.uint32(0x0C080604)  # 2 · value of codes 0–3 and 4–7, a byte each
MXFP4_LOW_NEGATIVE, MXFP4_HIGH_NEGATIVE = np.uint32(0xFDFEFF00), np.uint32(0xF4F8FAFC)
SEVENS, EIGHTS, ORDER = np.uint32(0x7777), np.uint32(0x8888), np.uint32(0x3210)
NIBBLES, ONE_BITS = np.uint32(0x0F0F0F0F), np.uint32(0x01010101)
ONE, FOUR, FOURTEEN, SIXTEEN, TWENTY_THREE = (np.uint32(n) for n in (1, 4, 14, 16, 23))
SIGNS, HALF_BIT = np.uint32(0x88888888), np.uint32(0x00400000)


@device
def fp4_bytes(codes: Any) -> Any:
    """Twice the values of the four codes in the low half of a word."""
    index = np.uint32(codes & SEVENS)
    positive = byte_permute(MXFP4_LOW, MXFP4_HIGH, index)
    negative = byte_permute(MXFP4_LOW_NEGATIVE, MXFP4_HIGH_NEGATIVE, index)
    return byte_permute(positive, negative, np.uint32((codes & EIGHTS) >> np.uint32(1) | ORDER))


@device
def e8m0(code: Any) -> Any:
    """2^(code − 127) as float32; 255 is NaN."""
    word = np.uint32(code)
    bits = np.uint32(np.uint32(word << TWENTY_THREE) | np.uint32(np.uint32(np.uint32(word + ONE) << FOURTEEN) & HALF_BIT))
    return bits_as_float(max(bits, HALF_BIT))  # 0 is half of the least normal number; 255 + 1 makes of infinity NaN


@device
def bf16(bits: Any) -> Any:
    """A bfloat16 as float32."""
    return bits_as_float(np.uint32(np.uint32(bits) << SIXTEEN))


# ---- products with int8 activations ---------------------------------------------------------------------------------

ZERO = np.int32(0)
HALF = np.float32(0.5)
MINUS_EIGHT = np.int32(-8)
PADDED = 0  # chunks of the padded row
SCALE_SHIFT = 0  # the scale of chunk c is c >> SCALE_SHIFT


@device
def dot4(a0: Any, a1: Any, a2: Any, a3: Any, x: Any) -> Any:
    """Σ over the 16 signed bytes of four words with a quad."""
    return dp4a(a3, x[3], dp4a(a2, x[2], dp4a(a1, x[1], dp4a(a0, x[0], ZERO))))


@device
def fp4_sum(w: Any, v: Any, x: Any) -> Any:
    """Σ over the 16 codes of two words, as twice their values, with a quad. A selector with its highest bit set gives copies of a
    byte's sign, which is 0: so codes give the values that are not negative, and, signs turned, the others. `low` is no constant
    for the assembler, which would move one into a register before each permutation."""
    low = np.uint32(MXFP4_LOW | np.uint32(cuda.threadIdx.y))
    m, n = np.uint32(w ^ SIGNS), np.uint32(v ^ SIGNS)
    plus = dp4a(byte_permute(low, MXFP4_HIGH, w), x[0], ZERO)
    minus = dp4a(byte_permute(low, MXFP4_HIGH, m), x[0], ZERO)
    plus = dp4a(byte_permute(low, MXFP4_HIGH, np.uint32(w >> SIXTEEN)), x[1], plus)
    minus = dp4a(byte_permute(low, MXFP4_HIGH, np.uint32(m >> SIXTEEN)), x[1], minus)
    plus = dp4a(byte_permute(low, MXFP4_HIGH, v), x[2], plus)
    minus = dp4a(byte_permute(low, MXFP4_HIGH, n), x[2], minus)
    plus = dp4a(byte_permute(low, MXFP4_HIGH, np.uint32(v >> SIXTEEN)), x[3], plus)
    minus = dp4a(byte_permute(low, MXFP4_HIGH, np.uint32(n >> SIXTEEN)), x[3], minus)
    return np.int32(plus - minus)


def dot_mxfp4_int8(chunk, scale, c, x, x_scales):  # type: ignore[no-untyped-def]
    """Quad 0 meets the columns of words 0 and 1, quad 1 those of words 2 and 3."""
    a = fp4_sum(chunk[0], chunk[1], load_words(x, 4 * c))
    b = fp4_sum(chunk[2], chunk[3], load_words(x, 4 * (c + PADDED)))
    return e8m0(scale) * HALF * (np.float32(a) * x_scales[c] + np.float32(b) * x_scales[c + PADDED])


@device
def nibble_sum(x: Any) -> Any:
    """−8 times the sum of a quad: what the codes of q4_0 are off by."""
    ones = dp4a(ONE_BITS, x[3], dp4a(ONE_BITS, x[2], dp4a(ONE_BITS, x[1], dp4a(ONE_BITS, x[0], ZERO))))
    return np.int32(MINUS_EIGHT * ones)


def dot_q4_0_int8(chunk, scale, c, x, x_scales):  # type: ignore[no-untyped-def]
    """Quad 0 meets the low nibbles, quad 1 the high ones."""
    first, second = load_words(x, 4 * c), load_words(x, 4 * (c + PADDED))
    a, b = nibble_sum(first), nibble_sum(second)
    for i in range(4):
        a = dp4a(np.uint32(chunk[i] & NIBBLES), first[i], a)
        b = dp4a(np.uint32(chunk[i] >> FOUR & NIBBLES), second[i], b)
    return half_as_float(scale) * (np.float32(a) * x_scales[c] + np.float32(b) * x_scales[c + PADDED])


def dot_byte_int8(chunk, scale, c, x, x_scales):  # type: ignore[no-untyped-def]
    total = dot4(chunk[0], chunk[1], chunk[2], chunk[3], load_words(x, 4 * c))
    return SCALE(scale) * (np.float32(total) * x_scales[c])


# ---- products with float32 activations ------------------------------------------------------------------------------

SCALE: Any = bf16
VALUES: Any = None


@device
def byte_floats(word: Any) -> Any:
    """The four signed bytes of a word."""
    return (
        np.float32(as_int(np.uint32(word << np.uint32(24))) >> 24),
        np.float32(as_int(np.uint32(word << np.uint32(16))) >> 24),
        np.float32(as_int(np.uint32(word << np.uint32(8))) >> 24),
        np.float32(as_int(np.uint32(word)) >> 24),
    )


@device
def fma4(values: Any, x: Any, total: Any) -> Any:
    """total + Σ values · x over four."""
    return total + values[0] * x[0] + values[1] * x[1] + values[2] * x[2] + values[3] * x[3]


def dot_mxfp4_f32(chunk, scale, c, x, x_scales):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(4):
        low, high = fp4_bytes(chunk[i]), fp4_bytes(np.uint32(chunk[i] >> SIXTEEN))
        total = fma4(byte_floats(low), load_floats(x, 4 * (c + 2 * i * PADDED)), total)
        total = fma4(byte_floats(high), load_floats(x, 4 * (c + (2 * i + 1) * PADDED)), total)
    return e8m0(scale) * HALF * total


def dot_q4_0_f32(chunk, scale, c, x, x_scales):  # type: ignore[no-untyped-def]
    total, ones = np.float32(0), np.float32(0)
    for i in range(4):
        first, second = load_floats(x, 4 * (c + i * PADDED)), load_floats(x, 4 * (c + (4 + i) * PADDED))
        total = fma4(byte_floats(np.uint32(chunk[i] & NIBBLES)), first, total)
        total = fma4(byte_floats(np.uint32(chunk[i] >> FOUR & NIBBLES)), second, total)
        ones += first[0] + first[1] + first[2] + first[3] + second[0] + second[1] + second[2] + second[3]
    return half_as_float(scale) * (total - np.float32(8) * ones)


def dot_byte_f32(chunk, scale, c, x, x_scales):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(4):
        total = fma4(byte_floats(chunk[i]), load_floats(x, 4 * (c + i * PADDED)), total)
    return SCALE(scale) * total


UPPER = np.uint32(0xFFFF0000)


@device
def bf16_pair(word: Any) -> Any:
    """The two bfloat16 of a word."""
    return bits_as_float(np.uint32(word << SIXTEEN)), bits_as_float(np.uint32(word & UPPER))


@device
def f16_pair(word: Any) -> Any:
    """The two half-precision numbers of a word."""
    return half_as_float(np.uint16(word)), half_as_float(np.uint16(word >> SIXTEEN))


def dot_pairs(chunk, scale, c, x, x_scales):  # type: ignore[no-untyped-def]
    """bf16 and f16, by VALUES."""
    first, second = load_floats(x, 4 * c), load_floats(x, 4 * (c + PADDED))
    (a, b), (d, e) = VALUES(chunk[0]), VALUES(chunk[1])
    total = fma4((a, b, d, e), first, np.float32(0))
    (a, b), (d, e) = VALUES(chunk[2]), VALUES(chunk[3])
    return fma4((a, b, d, e), second, total)


def dot_f32(chunk, scale, c, x, x_scales):  # type: ignore[no-untyped-def]
    values = (bits_as_float(chunk[0]), bits_as_float(chunk[1]), bits_as_float(chunk[2]), bits_as_float(chunk[3]))
    return fma4(values, load_floats(x, 4 * c), np.float32(0))


def dot_function(format: str, quantized: bool, columns: int) -> Any:
    """(chunk's four words, scale, chunk's number, quads, their scales) -> float32, a device function."""
    layout = LAYOUTS[format]
    padded = Shape(format, columns, "int8" if quantized else "f32").steps * WARP
    if format in ("bf16", "f16"):
        return device(dot_pairs, PADDED=padded, VALUES=bf16_pair if format == "bf16" else f16_pair)
    if format == "f32":
        return device(dot_f32, PADDED=padded)
    scale = half_as_float if layout.scale == "f16" else bf16
    kind = "int8" if quantized else "f32"
    name = f"dot_{format}_{kind}" if layout.bits == 4 else f"dot_byte_{kind}"
    return device(globals()[name], PADDED=padded, SCALE=scale)


__all__ = ["GROUP", "LAYOUTS", "Layout", "Shape", "bf16", "cuda", "dot_function", "e8m0", "fits"]
