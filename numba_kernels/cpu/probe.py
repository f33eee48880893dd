"""What memory gives: the ceilings that kernels from memory are held against, and with them every token generated."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np

from numba_kernels.cpu.blocks import BLOCK
from numba_kernels.cpu.groups import Groups
from numba_kernels.cpu.linear import add_linear
from numba_kernels.cpu.op import op
from numba_kernels.cpu.packed import Packed
from numba_kernels.cpu.records import empty_records
from numba_kernels.cpu.team import Program, Team, take
from numba_kernels.simd.memory import load_floats, set_f32
from numba_kernels.simd.values import LANES, splat, sum_lanes

PIECE, STEP = 1 << 20, 16 * LANES  # bytes of a piece of work, and of a step in it
LEAST = 5  # replays, however long they take


@op
def read_memory(x, size, out, team, thread):  # type: ignore[no-untyped-def]
    """Sums float32, `size` bytes of them (a multiple of STEP) in pieces of PIECE; a sum for each piece goes to out."""
    item = take(team)
    while item * PIECE < size:
        a = b = c = d = splat(np.float32(0))
        for at in range(x + item * PIECE, x + min(item * PIECE + PIECE, size), STEP):
            a = a + load_floats(at)
            b = b + load_floats(at + 4 * LANES)
            c = c + load_floats(at + 8 * LANES)
            d = d + load_floats(at + 12 * LANES)
        set_f32(out + 4 * item, sum_lanes(a + b + (c + d)))
        item = take(team)


def reading(memories: Sequence[np.ndarray]) -> tuple[Program, int]:
    """A program that reads arrays once, all but a rest of less than STEP bytes, and the bytes that it reads."""
    program, total = Program(), 0
    for memory in memories:
        size = memory.nbytes // STEP * STEP
        program.add(read_memory, x=memory, size=size, out=np.zeros(-(-size // PIECE), np.float32))
        total += size
    return program, total


def multiplying(stacks: Sequence[Packed], threads: int) -> tuple[Program, int]:
    """A program that multiplies every row of stacks of matrices with one vector, as a token does but with nothing in between;
    and the bytes that it reads."""
    program = Program()
    for packed in stacks:
        count = packed.matrices
        groups = Groups(
            np.array([count], np.int32), np.arange(count, dtype=np.int32), np.arange(count + 1, dtype=np.int32),
            np.zeros(count, np.int32), count,
        )  # fmt: skip
        is_float = packed.layout.decode is None
        x = np.zeros((1, packed.blocks * BLOCK), np.float32) if is_float else empty_records(1, packed.columns)
        add_linear(program, packed, groups, x, np.zeros((count, packed.rows), np.float32), single=True, threads=threads)
    return program, sum(packed.nbytes for packed in stacks)


def rate(team: Team, program: Program, nbytes: int, seconds: float = 0.5) -> float:
    """Bytes per second: the median over replays of a program that reads so many."""
    rates: list[float] = []
    team.run(program)
    until = time.perf_counter() + seconds
    while len(rates) < LEAST or time.perf_counter() < until:
        began = time.perf_counter()
        team.run(program)
        rates.append(nbytes / (time.perf_counter() - began))
    return statistics.median(rates)
