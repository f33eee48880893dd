"""Records of activations: rows rounded for the multiplication with packed weights.

Activations come as rows of float32, or as int8 records of 44 bytes per block: 32 codes, the float32 scale, the int32 that
undoes the weights' offset, and scale · Σ codes as float32. Where sums are narrow (`Portable.narrow_sums`), two int16 stand for
the int32: what undoes the offset of the first two of every four columns, and of the others. In the finer kind, int8_g16, each
16 of the 32 codes have a scale and an undoing int32 of their own: 52 bytes. For weights in bf16 there are records of bfloat16, 64
bytes per block.
"""

from __future__ import annotations

RECORD = 44  # bytes of a quantized activation block
SCALE, START, SUM = 32, 36, 40  # offsets of its scale, start and scale · Σ codes
RECORDS = {"int8": 44, "int8_g16": 52, "bf16": 64}  # bytes of a record by kind
OFFSETS = {"int8": (32, 36, 40), "int8_g16": (32, 40, 48)}  # of its scales, starts and sum
