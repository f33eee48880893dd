"""A team whose kernels work between guard bytes: a test mode that shows what is written beside an array, or read there and used.

Every array that a program points to is copied to memory of its own before a replay, with guards on both sides, and back after it.
Guards read as NaN in every float format. `OSS_TOOLS_GUARDS=1` gives the tests of this folder such teams.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from numba_kernels.cpu.team import Program, Team

GUARD = 4096  # bytes on each side: further than any vector, block of weights or row of these tests reaches
PATTERN = np.frombuffer(bytes.fromhex("c17f"), np.uint16)[
    0
]  # NaN as bfloat16, float16 and float32, and not the one kernels make
LARGE = 32 << 20  # of a larger array the part that is used is guarded, not the whole


class Overrun(AssertionError):
    """A kernel has written where it has no business."""


class Region:
    """A piece of memory and its guarded copy, which lies as it does to the lines of a cache."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self._memory = np.full((stop - start + 2 * GUARD + 128) // 2, PATTERN).view(np.uint8)
        self._first = GUARD + (start - self._memory.ctypes.data - GUARD) % 64
        self.moved = self._memory.ctypes.data + self._first - start
        self._inside = self._memory[self._first : self._first + stop - start]
        self._clean = [part.copy() for part in self._outside()]
        ctypes.memmove(self._inside.ctypes.data, start, stop - start)
        self._given = self._inside.copy()

    def _outside(self) -> tuple[np.ndarray, np.ndarray]:
        return self._memory[: self._first], self._memory[self._first + self.stop - self.start :]

    def end(self, what: str) -> None:
        """Copies back what has changed. Raises Overrun."""
        if not np.array_equal(self._inside, self._given):
            ctypes.memmove(self.start, self._inside.ctypes.data, self.stop - self.start)
        for side, now, then in zip(("before", "behind"), self._outside(), self._clean, strict=True):
            if not np.array_equal(now, then):
                raise Overrun(f"{what}: {int((now != then).sum())} bytes {side} an array of {self.stop - self.start} bytes")


def span(array: np.ndarray) -> tuple[int, int]:
    """First and last address of an array, with all of the one that it is a part of."""
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    return np.lib.array_utils.byte_bounds(root if root.nbytes <= LARGE else array)


def regions(arrays: Iterable[np.ndarray]) -> list[Region]:
    """Guarded copies of what the arrays lie in; parts that overlap are one."""
    joined: list[list[int]] = []
    for start, stop in sorted({span(array) for array in arrays if array.size}):
        if joined and start < joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], stop)
        else:
            joined.append([start, stop])
    return [Region(start, stop) for start, stop in joined]


class GuardedTeam(Team):
    """Replays every operation between guards."""

    runs = 0

    def run(self, program: Program, first: int = 0, stop: int | None = None) -> None:
        program.link()
        guarded = regions(program._kept)
        moved = Program()
        moved.ops, moved._linked = program.ops, True
        moved._table = program.table.copy()
        cells = moved._table[:, 1:]
        moves = np.zeros_like(cells)
        for region in guarded:
            moves[(cells >= region.start) & (cells < region.stop)] = region.moved
        cells += moves
        super().run(moved, first, stop)
        GuardedTeam.runs += 1
        for region in guarded:
            region.end(", ".join(dict.fromkeys(op.name for op in program.ops[first:stop])))


def guarded_rows(over_rows: Callable[..., None]) -> Callable[..., None]:
    """`numba_kernels.codec.call.over_rows` between guards."""

    def guarded(op: Any, rows: int, arrays: Mapping[str, np.ndarray], threads: int = 1, **parameters: Any) -> None:
        held = regions(arrays.values())
        there = {}
        for name, array in arrays.items():
            region = next((r for r in held if r.start <= array.ctypes.data < r.stop), None)
            there[name] = array if region is None else at_address(array, region.moved)
        over_rows(op, rows, there, threads, **parameters)
        for region in held:
            region.end(op.name)

    return guarded


def guarded_arrays(over_rows: Callable[..., None]) -> Callable[..., None]:
    """`numba_kernels.parallel.over_rows` between guards."""

    def guarded(
        kernel: Any,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
        parameters: Sequence[Any] = (),
        threads: int = 1,
    ) -> None:
        held = regions([*inputs, *outputs])

        def there(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
            found = []
            for array in arrays:
                region = next((r for r in held if r.start <= array.ctypes.data < r.stop), None)
                found.append(array if region is None else at_address(array, region.moved))
            return found

        over_rows(kernel, there(inputs), there(outputs), parameters, threads)
        for region in held:
            region.end(str(kernel))

    return guarded


def at_address(array: np.ndarray, moved: int) -> np.ndarray:
    """An array of the same shape and strides, so many bytes further on."""
    low, high = np.lib.array_utils.byte_bounds(array)
    memory = np.frombuffer((ctypes.c_uint8 * (high - low)).from_address(low + moved), np.uint8)
    return np.ndarray(array.shape, array.dtype, memory, array.ctypes.data - low, array.strides)


def guard_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has all codec modules call their kernels between guards."""
    from numba_kernels import parallel
    from numba_kernels.codec import call

    for plain, guarded in (
        (call.over_rows, guarded_rows(call.over_rows)),
        (parallel.over_rows, guarded_arrays(parallel.over_rows)),
    ):
        for name, module in list(sys.modules.items()):
            if name.startswith(("numba_kernels.", "oss_tools.")) and getattr(module, "over_rows", None) is plain:
                monkeypatch.setattr(module, "over_rows", guarded)
