"""What adapters do to rows of a canonical tensor: low-rank updates, weight-decomposed ones (DoRA), weights kept whole.

LoRA: https://arxiv.org/abs/2106.09685; rank-stabilized: https://arxiv.org/abs/2312.03732; DoRA: https://arxiv.org/abs/2402.09353.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from oss_tools.adapters.places import Place
from oss_tools.adapters.tensors import AdapterTensor
from oss_tools.convert.updates import Pieces, Update

Rows = slice | np.ndarray


def _rows_of(tensor: AdapterTensor, base: int, rows: Rows) -> np.ndarray:
    """Rows of a tensor, counted from row `base`: float32 [n, width]."""
    if isinstance(rows, slice):
        return tensor.rows(base + rows.start, base + rows.stop)
    low = int(rows.min())
    return tensor.rows(base + low, base + int(rows.max()) + 1)[rows - low]


class Factors(ABC):
    """The two factors of a low-rank update of matrices [out, in], one matrix at a time."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What the factors are and how they lie; their values are known by the adapter's hash."""

    @abstractmethod
    def left(self, matrix: int, rows: Rows) -> np.ndarray:
        """float32 [n, rank]: these rows of the out × rank factor of a matrix."""

    @abstractmethod
    def right(self, matrix: int) -> np.ndarray:
        """float32 [rank, in]."""


@dataclass(frozen=True)
class Pair(Factors):
    """PEFT's lora_A [rank, in] and lora_B [out, rank].

    Of stacked experts they are [experts, …] each; or, as `target_parameters` has them, A's rows are [experts · rank], with an
    expert's together, and B's columns [rank · experts], with a rank's together.

    `flipped`: the stack is updated as [in, out]: A is [rank, out], B [in, rank].
    """

    a: AdapterTensor
    b: AdapterTensor
    rank: int
    stacked: int = 1
    flipped: bool = False

    @property
    def identity(self) -> str:
        return f"pair {self.a.name} {self.b.name} {self.rank} {self.stacked} {self.flipped}"

    def _a(self, matrix: int) -> np.ndarray:
        return self.a.rows(matrix * self.rank, (matrix + 1) * self.rank)

    def _b(self, matrix: int, rows: Rows) -> np.ndarray:
        if len(self.b.shape) == 3:
            return _rows_of(self.b, matrix * self.b.shape[1], rows)
        return _rows_of(self.b, 0, rows)[:, matrix :: self.stacked]

    def left(self, matrix: int, rows: Rows) -> np.ndarray:
        return self._a(matrix)[:, rows].T if self.flipped else self._b(matrix, rows)

    def right(self, matrix: int) -> np.ndarray:
        return self._b(matrix, slice(0, self.b.shape[-2])).T if self.flipped else self._a(matrix)


@dataclass(frozen=True)
class EmbeddingPair(Factors):
    """Of a table [tokens, width]: A [rank, tokens] (llama.cpp's GGUF: [tokens, rank]), B [width, rank]."""

    a: AdapterTensor
    b: AdapterTensor
    rank: int
    by_token: bool = False

    @property
    def identity(self) -> str:
        return f"embedding {self.a.name} {self.b.name} {self.rank} {self.by_token}"

    def left(self, matrix: int, rows: Rows) -> np.ndarray:
        assert isinstance(rows, slice)  # no table is stored in a rotary order
        return self.a.rows(rows.start, rows.stop) if self.by_token else self.a.columns(rows.start, rows.stop).T

    def right(self, matrix: int) -> np.ndarray:
        return self.b.rows(0, self.b.height).T


# ---- changes --------------------------------------------------------------------------------------------------------


class Change(ABC):
    """Of the rows that a place has in a canonical tensor.

    Attributes:
        place: these rows.
        identity: what is done, and with which tensors; their values are known by the adapter's hash.
    """

    place: Place
    identity: str

    def prepare(self, base: Pieces) -> None:  # noqa: B027 (most need nothing)
        """Looks at the whole tensor, where that is needed."""

    @abstractmethod
    def apply(self, values: np.ndarray, base: np.ndarray, matrix: int, rows: Rows) -> None:
        """Changes values [n, K], in place, which are these rows of the stored matrix; `base` is what they were at first."""

    def finish(self) -> None:  # noqa: B027
        """Forgets what was kept in memory for the next rows."""

    def needs_base(self) -> bool:
        return False


class LowRank(Change):
    """Adds scale · left · right."""

    def __init__(self, place: Place, factors: Factors, scale: float) -> None:
        self.place, self.factors, self.scale = place, factors, scale
        self.identity = f"low rank {factors.identity} {scale!r}"
        self._right: tuple[int, np.ndarray] | None = None  # of the matrix that was seen last

    def stored_matrix(self, matrix: int) -> int:
        return self.place.placement.matrix_of(matrix)

    def right(self, matrix: int) -> np.ndarray:
        if self._right is None or self._right[0] != matrix:
            self._right = matrix, np.ascontiguousarray(self.factors.right(matrix))
        return self._right[1]

    def finish(self) -> None:
        self._right = None

    def apply(self, values: np.ndarray, base: np.ndarray, matrix: int, rows: Rows) -> None:
        from numba_kernels.codec.low_rank import add_low_rank

        stored = self.stored_matrix(matrix)
        add_low_rank(values, self.factors.left(stored, rows), self.right(stored), self.scale)


class Decomposed(LowRank):
    """DoRA: magnitude · (W + Δ) / ‖base + Δ‖, the norm of each row, or, in an embedding (`by_column`), of each column.

    With several adapters on a tensor W holds those before, the norm is of the base, as in PEFT.
    """

    def __init__(self, place: Place, factors: Factors, scale: float, magnitude: AdapterTensor, *, by_column: bool) -> None:
        super().__init__(place, factors, scale)
        self.magnitude, self.by_column = magnitude, by_column
        self.identity = f"decomposed {magnitude.name} {by_column} {self.identity}"
        self._norm: np.ndarray | None = None  # of each column

    def needs_base(self) -> bool:
        return True

    def prepare(self, base: Pieces) -> None:
        if not self.by_column:
            return
        squared = np.zeros(self.place.columns)
        for matrix, start, values in base():
            found = self.place.rows(start, start + len(values))
            if found and self.place.covers(matrix):
                updated = np.ascontiguousarray(values[found[0]])
                super().apply(updated, updated, matrix, found[1])
                squared += np.square(updated, dtype=np.float64).sum(0)
        self._norm = np.sqrt(squared)

    def apply(self, values: np.ndarray, base: np.ndarray, matrix: int, rows: Rows) -> None:
        super().apply(values, base, matrix, rows)
        magnitude = self.magnitude.vector()
        if self._norm is not None:
            factor = magnitude / self._norm
        else:
            updated = np.array(base)
            super().apply(updated, base, matrix, rows)
            norms = np.sqrt(np.square(updated, dtype=np.float64).sum(1))
            factor = (magnitude[rows] / norms)[:, None]
        values *= factor.astype(np.float32)


class Replacement(Change):
    """Takes the rows from the adapter: modules_to_save, trained biases and norms.

    Attributes:
        of_base: whether they are the base's own, which PEFT saves beside an embedding's factors.
    """

    def __init__(self, place: Place, tensor: AdapterTensor, *, transposed: bool) -> None:
        self.place, self.tensor, self.transposed = place, tensor, transposed
        self.of_base = ".base_layer." in tensor.name
        self.identity = f"whole {tensor.name} {transposed}"

    def apply(self, values: np.ndarray, base: np.ndarray, matrix: int, rows: Rows) -> None:
        stored = self.place.placement.matrix_of(matrix)
        if self.place.spec.is_vector:
            row = self.tensor.rows(stored, stored + 1)[0]
            values[:, 0] = row[rows]
        elif self.transposed:
            assert isinstance(rows, slice)
            first = stored * self.place.columns
            values[:] = self.tensor.columns(rows.start, rows.stop, first, first + self.place.columns).T
        else:
            values[:] = _rows_of(self.tensor, stored * self.place.out, rows)


class TokenRows(Change):
    """Takes single rows from the adapter: trained tokens (`trainable_token_indices`)."""

    def __init__(self, place: Place, tensor: AdapterTensor, tokens: tuple[int, ...]) -> None:
        self.place, self.tensor, self.tokens = place, tensor, np.array(tokens)
        self.identity = f"tokens {tensor.name} {tokens}"

    def apply(self, values: np.ndarray, base: np.ndarray, matrix: int, rows: Rows) -> None:
        assert isinstance(rows, slice)
        (taken,) = np.nonzero((self.tokens >= rows.start) & (self.tokens < rows.stop))
        for place in taken:
            values[self.tokens[place] - rows.start] = self.tensor.rows(int(place), int(place) + 1)[0]


class BiasUpdate(Change):
    """Adds scale · a vector: lora_B's own bias."""

    def __init__(self, place: Place, tensor: AdapterTensor, scale: float) -> None:
        self.place, self.tensor, self.scale = place, tensor, scale
        self.identity = f"bias {tensor.name} {scale!r}"

    def apply(self, values: np.ndarray, base: np.ndarray, matrix: int, rows: Rows) -> None:
        values[:, 0] += np.float32(self.scale) * self.tensor.vector()[rows]


class AdapterUpdate(Update):
    """All changes of a tensor, in the order of the adapters."""

    def __init__(self, changes: list[tuple[str, Change]]) -> None:
        """`changes`: (the adapter's hash, the change)."""
        self.changes = [change for _, change in changes]
        text = "\n".join(f"{adapter} {change.place.placement} {change.identity}" for adapter, change in changes)
        self.identity = hashlib.sha256(text.encode()).hexdigest()
        self.source = "the adapter" if len({adapter for adapter, _ in changes}) == 1 else "the adapters"
        self._needs_base = any(change.needs_base() for change in self.changes)
        count, rows, _ = self.changes[0].place.spec.matrices
        self._end = count - 1, rows

    def prepare(self, base: Pieces) -> None:
        for change in self.changes:
            change.prepare(base)

    def apply(self, values: np.ndarray, matrix: int, start: int) -> None:
        base = values.copy() if self._needs_base else values
        for change in self.changes:
            found = change.place.rows(start, start + len(values)) if change.place.covers(matrix) else None
            if found is None:
                continue
            taken, rows = found
            part = values[taken]
            if part.flags.c_contiguous:
                change.apply(part, base[taken], matrix, rows)
            else:
                part = np.ascontiguousarray(part)
                change.apply(part, base[taken], matrix, rows)
                values[taken] = part
        if (matrix, start + len(values)) == self._end:
            for change in self.changes:
                change.finish()
