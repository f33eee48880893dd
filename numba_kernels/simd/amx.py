"""Intel's matrix registers (AMX): eight of 1 KiB, up to 16 rows of up to 64 bytes, and products of two of them into a third.

A right operand has four columns of a row of weights in each 32-bit lane, as the vectors of codes of a panel have. The shapes of
the registers are a thread's own state: `configure` gives all eight theirs, `release` takes them back.
Reference: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume 2 (TDPBSSD, TDPBF16PS).
"""

from __future__ import annotations

import ctypes
import struct
import sys
from functools import cache

from llvmlite import ir

from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import I8, I64, Builder, Value, call
from numba_kernels.simd.x86 import Avx512, Avx512Bf16

ROWS, ROW = 16, 64  # of a matrix register; bytes of a row
ARCH_PRCTL, ASK, TILES = 158, 0x1023, 18  # Linux: the system call, ARCH_REQ_XCOMP_PERM, the registers' state component
VOID = ir.VoidType()


@cache
def permitted() -> bool:
    """Asks the system for the matrix registers, for this process and its threads: Linux gives them only to those that ask."""
    if not sys.platform.startswith("linux"):
        return False
    return ctypes.CDLL(None).syscall(ARCH_PRCTL, ASK, TILES) == 0


class Amx(Avx512):
    """Besides AVX-512: tdpbssd and tdpbf16ps, which multiply 16 rows by 16 tokens over 64 columns of bytes, or 32 of bfloat16, in
    16 cycles.

    Of AVX-512's instructions for bfloat16 it has the one that rounds. `vdpbf16ps` is left alone: a core of these processors
    executes half as many of its products as multiply-adds of float32.
    """

    name = "amx"
    features = Avx512Bf16.features | {"amx-tile", "amx-int8", "amx-bf16"}
    matrix_registers = True
    round_to_bf16 = Avx512Bf16.round_to_bf16


def configure(b: Builder, shapes: list[tuple[int, int]]) -> None:
    """Gives each of the registers its (rows, bytes of a row); all are zero then."""
    if len(shapes) != 8:
        raise ValueError(f"{len(shapes)} shapes for eight registers")
    text = struct.pack("<BB14x8H16x8B8x", 1, 0, *(size for _, size in shapes), *(rows for rows, _ in shapes))
    kind = ir.ArrayType(I8, len(text))
    with b.goto_entry_block():
        place = b.alloca(kind)
        place.align = 64
    b.store(ir.Constant(kind, bytearray(text)), place)
    call(b, "llvm.x86.ldtilecfg", VOID, [b.bitcast(place, I8.as_pointer())])


def release(b: Builder) -> None:
    """Forgets the registers' shapes and values, so that a change of threads need not save them."""
    call(b, "llvm.x86.tilerelease", VOID, [])


def zero(b: Builder, register: int) -> None:
    """Sets a register to zero."""
    call(b, "llvm.x86.tilezero", VOID, [I8(register)])


def load(b: Builder, register: int, address: Value, stride: int | Value) -> None:
    """Rows `stride` bytes apart from memory."""
    call(b, "llvm.x86.tileloadd64", VOID, [I8(register), emit.pointer(b, address, I8), _number(stride)])


def store(b: Builder, register: int, address: Value, stride: int | Value = ROW) -> None:
    """Rows to memory, `stride` bytes apart."""
    call(b, "llvm.x86.tilestored64", VOID, [I8(register), emit.pointer(b, address, I8), _number(stride)])


def _number(value: int | Value) -> Value:
    return I64(value) if isinstance(value, int) else value


def multiply_bytes(b: Builder, sums: int, x: int, codes: int) -> None:
    """sums[t, r] += Σ x[t, 4j + i] · codes[j, 4r + i] of signed bytes in registers of these numbers, in 32 bits."""
    call(b, "llvm.x86.tdpbssd", VOID, [I8(sums), I8(x), I8(codes)])


def multiply_floats(b: Builder, sums: int, x: int, weights: int) -> None:
    """sums[t, r] += (Σ x[t, 2j] · weights[j, 2r]) + (Σ x[t, 2j + 1] · weights[j, 2r + 1]) of bfloat16, each Σ a chain of
    multiply-adds in float32, subnormal numbers taken for zero."""
    call(b, "llvm.x86.tdpbf16ps", VOID, [I8(sums), I8(x), I8(weights)])
