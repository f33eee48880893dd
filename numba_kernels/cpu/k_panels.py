"""ggml's k-quants in panels: their blocks of 256 columns taken apart and put together again, bit for bit.

A panel holds the codes of each 32 columns as other formats' do: nibbles, then pairs of bits (two words of a row: in byte i of
word h the columns 16h + i, 16h + 4 + i, …, lowest first), then single bits (bit j of byte i: column 4j + i). Behind all codes
stands the head of each 256 columns: the rows' half-precision scales, then each byte of the groups' scales, as in the file.
Source: ggml's `ggml-common.h`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np


@dataclass(frozen=True)
class KBlock:
    """Where the parts of a block lie in a file; −1 for a part that it lacks.

    Attributes:
        nbytes: of a block.
        nibbles, pairs, bits: of 4, 2 and 1 bits of a code.
        halves: d, and dmin.
        scales, scale_bytes: the groups' scales, and minima.
        nibbles_apart: neighbours in a byte of nibbles are this many columns apart.
    """

    nbytes: int
    nibbles: int
    pairs: int
    bits: int
    halves: tuple[int, int]
    scales: int
    scale_bytes: int
    nibbles_apart: int = 32


K_BLOCKS = {
    "q2_k": KBlock(84, -1, 16, -1, (80, 82), 0, 16),
    "q3_k": KBlock(110, -1, 32, 0, (108, -1), 96, 12),
    "q4_k": KBlock(144, 16, -1, -1, (0, 2), 4, 12),
    "q5_k": KBlock(176, 48, -1, 16, (0, 2), 4, 12),
    "q6_k": KBlock(210, 0, 128, -1, (208, -1), 192, 16, 64),
}
NBYTES, NIBBLES, PAIRS, BITS, D, DMIN, SCALES, SCALE_BYTES, APART = 144, 16, -1, -1, 0, 2, 4, 12, 32  # of a KBlock
BLOCK_BYTES, SCALE_STEP, LANES = 0, 0, 16  # of a panel: from 32 columns to the next, from one head to the next; its rows


def constants(name: str) -> dict[str, Any]:
    """What the kernels here are specialized with for a format."""
    block = K_BLOCKS[name]
    return {
        "NBYTES": block.nbytes, "NIBBLES": block.nibbles, "PAIRS": block.pairs, "BITS": block.bits, "D": block.halves[0],
        "DMIN": block.halves[1], "SCALES": block.scales, "SCALE_BYTES": block.scale_bytes, "APART": block.nibbles_apart,
    }  # fmt: skip


@numba.njit(nogil=True, inline="always")
def _word(source, row, at):  # type: ignore[no-untyped-def]
    """Four bytes as one number."""
    word = np.uint32(0)
    for i in range(4):
        word |= np.uint32(source[row, at + i]) << np.uint32(8 * i)
    return word


@numba.njit(nogil=True, inline="always")
def _places(k, apart):  # type: ignore[no-untyped-def]
    """Of the k-th 32 columns of a block: the byte where their nibbles begin and its shift, then those of their pairs."""
    step = apart // 32
    return k // (2 * step) * apart + k % step * 32, k // step % 2 * 4, k // 4 * 32, k % 4 * 2


def pack_k(source, _scales, target, first, step, begin, end, blocks, scales_at):  # type: ignore[no-untyped-def]
    """Panels [begin, end) from rows of blocks; see `packing.pack_kernel`."""
    words = target.view(np.uint32)
    n = source.shape[0]
    for p in range(begin, end):
        low = max(-((first - p * LANES) // step), 0)
        high = min(-((first - (p + 1) * LANES) // step), n)
        for k in range(blocks):
            block = k // 8 * NBYTES
            nibbles, shift, pairs, up = _places(k % 8, APART)
            for row in range(low, high):
                lane = first + row * step - p * LANES
                to = k * BLOCK_BYTES // 4 + lane
                if NIBBLES >= 0:
                    for j in range(4):
                        at = block + NIBBLES + nibbles + 4 * j
                        near = (_word(source, row, at) >> np.uint32(shift)) & np.uint32(0x0F0F0F0F)
                        far = (_word(source, row, at + 16) >> np.uint32(shift)) & np.uint32(0x0F0F0F0F)
                        words[p, to] = near | (far << np.uint32(4))
                        to += LANES
                if PAIRS >= 0:
                    for h in range(2):
                        word = np.uint32(0)
                        for s in range(4):
                            some = _word(source, row, block + PAIRS + pairs + 16 * h + 4 * s)
                            word |= ((some >> np.uint32(up)) & np.uint32(0x03030303)) << np.uint32(2 * s)
                        words[p, to] = word
                        to += LANES
                if BITS >= 0:
                    word = np.uint32(0)
                    for s in range(8):
                        some = _word(source, row, block + BITS + 4 * s)
                        word |= ((some >> np.uint32(k % 8)) & np.uint32(0x01010101)) << np.uint32(s)
                    words[p, to] = word
        for b in range((blocks + 7) // 8):
            for row in range(low, high):
                lane = first + row * step - p * LANES
                block, to = b * NBYTES, scales_at + b * SCALE_STEP
                target[p, to + 2 * lane], target[p, to + 2 * lane + 1] = source[row, block + D], source[row, block + D + 1]
                to += 2 * LANES
                if DMIN >= 0:
                    target[p, to + 2 * lane] = source[row, block + DMIN]
                    target[p, to + 2 * lane + 1] = source[row, block + DMIN + 1]
                    to += 2 * LANES
                for s in range(SCALE_BYTES):
                    target[p, to + s * LANES + lane] = source[row, block + SCALES + s]


def unpack_k(panels, out, first, step, n, lanes, blocks, block_bytes, scales_at, scale_step):  # type: ignore[no-untyped-def]
    """The inverse, for panels of any number of lanes; see `unpacking.unpack`."""
    words = panels.view(np.uint32)
    out[:] = 0
    for i in range(n):
        p, lane = divmod(first + i * step, lanes)
        for k in range(blocks):
            block = k // 8 * NBYTES
            nibbles, shift, pairs, up = _places(k % 8, APART)
            at = k * block_bytes // 4 + lane
            if NIBBLES >= 0:
                for j in range(4):
                    word = words[p, at]
                    for b in range(4):
                        to, both = block + NIBBLES + nibbles + 4 * j + b, (word >> np.uint32(8 * b)) & np.uint32(255)
                        out[i, to] |= (both & np.uint32(15)) << np.uint32(shift)
                        out[i, to + 16] |= (both >> np.uint32(4)) << np.uint32(shift)
                    at += lanes
            if PAIRS >= 0:
                for h in range(2):
                    word = words[p, at]
                    for s in range(4):
                        for b in range(4):
                            pair = (word >> np.uint32(8 * b + 2 * s)) & np.uint32(3)
                            out[i, block + PAIRS + pairs + 16 * h + 4 * s + b] |= pair << np.uint32(up)
                    at += lanes
            if BITS >= 0:
                word = words[p, at]
                for s in range(8):
                    for b in range(4):
                        bit = (word >> np.uint32(8 * b + s)) & np.uint32(1)
                        out[i, block + BITS + 4 * s + b] |= bit << np.uint32(k % 8)
        for g in range((blocks + 7) // 8):
            block, at = g * NBYTES, scales_at + g * scale_step
            out[i, block + D], out[i, block + D + 1] = panels[p, at + 2 * lane], panels[p, at + 2 * lane + 1]
            at += 2 * lanes
            if DMIN >= 0:
                out[i, block + DMIN] = panels[p, at + 2 * lane]
                out[i, block + DMIN + 1] = panels[p, at + 2 * lane + 1]
                at += 2 * lanes
            for s in range(SCALE_BYTES):
                out[i, block + SCALES + s] = panels[p, at + s * lanes + lane]
