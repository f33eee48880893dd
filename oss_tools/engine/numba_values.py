"""What the kernels work on: values in memory that is used again, and what a pass is about."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import numpy as np

from numba_kernels.cpu.records import empty_records
from numba_kernels.cpu.team import Program
from oss_tools.engine.backend import Run
from oss_tools.engine.numba_cache import SEQUENCES
from oss_tools.models.operations import Rope

CHUNK = 512  # tokens in one pass
OUTPUTS = 64  # rows of logits in one pass


@dataclass(eq=False)
class Value:
    """A value of the recorded forward pass: float32 rows, and their records where a consumer wants those.

    Attributes:
        program, producer: the operation that fills it.
        floats: [rows, columns], padded to 32 columns, or columns of a wider buffer.
        columns, rows: its width, and its rows for each token (the chosen experts of one, usually 1).
        records: memory for the quantized rows by kind ("int8", "int8_g16", "bf16").
        on_demand: the producer fills floats and one kind of records only when told to.
        filled: what it was told to fill, its arguments "out" and "records".
        norm: weight and epsilon of a norm of heads, which is still to be carried out.
        rope, rope_first: a rotation that is still to be carried out, and the first value of each head that it turns.
    """

    program: Program
    floats: np.ndarray
    columns: int
    rows: int = 1
    producer: int = -1
    records: dict[str, np.ndarray] = field(default_factory=dict)
    on_demand: bool = False
    filled: set[str] = field(default_factory=set)
    norm: tuple[str, float] | None = None
    rope: Rope | None = None
    rope_first: int = 0

    @property
    def stride(self) -> int:
        return self.floats.strides[0]


@dataclass(eq=False)
class Routing:
    """Chosen experts [tokens, chosen], their weights, and the tokens sorted by expert; `begins`: the operation that makes the
    router's input."""

    begins: int
    chosen: int
    ids: np.ndarray
    weights: np.ndarray
    place: np.ndarray
    groups: dict[str, np.ndarray]


def aligned_zeros(rows: int, columns: int) -> np.ndarray:
    """float32 zeros [rows, columns] at a multiple of 64 bytes: a vector across two lines takes twice as long to load."""
    memory = np.zeros(rows * columns + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + rows * columns].reshape(rows, columns)


class Buffers:
    """Memory for values, used again when a value is gone. All programs share it, as they never run at the same time."""

    def __init__(self) -> None:
        self._free: dict[tuple[str, int, int], list[np.ndarray]] = {}

    def lend(self, value: Value | None, kind: str, rows: int, columns: int) -> np.ndarray:
        """`floats` [rows, columns padded to 32], zero beyond `columns`, or a kind of records; comes back when the value is
        dropped."""
        free = self._free.setdefault((kind, rows, columns), [])
        if free:
            buffer = free.pop()
        elif kind == "floats":
            buffer = aligned_zeros(rows, -(-columns // 32) * 32)
        else:
            buffer = empty_records(rows, columns, kind)
        if value is not None:
            weakref.finalize(value, free.append, buffer)
        return buffer


class State:
    """What a pass is about, in arrays that the programs point to."""

    def __init__(self) -> None:
        self.tokens = np.zeros(CHUNK, np.int32)
        self.positions = np.zeros(CHUNK, np.int32)
        self.sequence = np.zeros(CHUNK, np.int32)
        self.first_row = np.zeros(SEQUENCES, np.int32)
        self.row_count = np.zeros(SEQUENCES, np.int32)
        self.outputs = np.zeros(OUTPUTS, np.int32)
        one, zero = np.ones(1, np.int32), np.zeros(1, np.int32)
        every = np.arange(CHUNK, dtype=np.int32)
        self.all_rows = {"groups": one, "group_matrix": zero, "group_start": np.zeros(2, np.int32), "index": every}
        self.output_rows = self.all_rows | {"group_start": np.zeros(2, np.int32), "index": self.outputs}
        self._head_rows: dict[int, dict[str, np.ndarray]] = {}

    def head_rows(self, heads: int) -> dict[str, np.ndarray]:
        """Groups of rows for products of which each head has its own matrix: the rows of a head follow each other."""
        if heads not in self._head_rows:
            numbers = np.arange(heads + 1, dtype=np.int32)
            index = np.arange(CHUNK * heads, dtype=np.int32)
            groups = {
                "groups": numbers[-1:].copy(),
                "group_matrix": numbers[:-1],
                "group_start": numbers.copy(),
                "index": index,
            }
            self._head_rows[heads] = groups
        return self._head_rows[heads]

    def fill(self, runs: list[Run]) -> int:
        """Takes the runs in; returns the number of rows."""
        at = 0
        for s, run in enumerate(runs):
            n = len(run.tokens)
            if n == 1:  # as in every pass that generates: a tenth of the time that slices take
                self.tokens[at], self.positions[at], self.sequence[at] = run.tokens[0], run.start, s
            else:
                self.tokens[at : at + n] = run.tokens
                self.positions[at : at + n] = np.arange(run.start, run.start + n)
                self.sequence[at : at + n] = s
            self.first_row[s], self.row_count[s] = at, n
            at += n
        self.all_rows["group_start"][1] = at
        for groups in self._head_rows.values():
            np.multiply(groups["group_matrix"], at, out=groups["group_start"][:-1])
            groups["group_start"][-1] = at * len(groups["group_matrix"])
        return at
