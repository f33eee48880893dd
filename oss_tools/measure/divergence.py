"""How far a checkpoint's predictions are from another's over a text, in float32: the weights alone make the difference.

The final hidden states of all scored positions come from one `BreadthFirst` pass; logits are made of them a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from numba_kernels.parallel import cores
from oss_tools.calibration.breadth_first import BreadthFirst
from oss_tools.errors import BadRequest
from oss_tools.measure.fidelity import Positions, joined
from oss_tools.models import Checkpoint

ROWS = 64  # positions whose logits are in memory at a time, for each thread
HEAD = "lm_head.weight"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Passages:
    """Texts to be predicted, each read with nothing before it.

    Attributes:
        sequences: tokens, int64 [n] each.
        context: so many tokens of each are not scored: they are what the others are predicted from.
    """

    sequences: tuple[np.ndarray, ...]
    context: int

    @classmethod
    def of(
        cls, tokens: Sequence[int], size: int, context: int, first: Sequence[int] = (), limit: int | None = None
    ) -> Passages:
        """A text in pieces of one size, each beginning with `first` in place of as many of its own tokens. Raises BadRequest
        where it is too short for one."""
        if len(tokens) < size:
            raise BadRequest(f"{len(tokens)} tokens are too few: {size} make a passage")
        pieces = [np.array([*first, *tokens[at + len(first) : at + size]]) for at in range(0, len(tokens) - size + 1, size)]
        return cls(tuple(pieces[:limit]), context)

    def only(self, numbers: Sequence[int]) -> Passages:
        """Those of these numbers."""
        return Passages(tuple(self.sequences[number] for number in numbers), self.context)

    def __len__(self) -> int:
        """Scored tokens."""
        return sum(self.counts)

    @property
    def counts(self) -> list[int]:
        """Scored tokens of each sequence."""
        return [len(sequence) - self.context for sequence in self.sequences]

    @property
    def rows(self) -> np.ndarray:
        """The positions before the scored tokens, counted over all sequences, int [n]."""
        starts = np.cumsum([0, *(len(sequence) for sequence in self.sequences)])
        parts = [start + np.arange(self.context - 1, len(s) - 1) for start, s in zip(starts, self.sequences, strict=False)]
        return np.concatenate(parts)

    @property
    def came(self) -> np.ndarray:
        """The scored tokens, int64 [n]."""
        return np.concatenate([sequence[self.context :] for sequence in self.sequences])


@dataclass(frozen=True)
class Predictions:
    """What a model says at n positions: logits are hidden · headᵀ.

    Attributes:
        hidden: final hidden states, normed, float32 [n, width].
        head: float32 [vocabulary, width].
    """

    hidden: np.ndarray
    head: np.ndarray

    def logits(self, rows: slice) -> np.ndarray:
        product: np.ndarray = self.hidden[rows] @ self.head.T
        return product


def predict(checkpoint: Checkpoint, passages: Passages) -> Predictions:
    """What a checkpoint says before each scored token."""
    with BreadthFirst(checkpoint, passages.sequences) as ops:
        hidden = ops.forward()[passages.rows]
    return Predictions(np.ascontiguousarray(hidden), head_of(checkpoint))


def head_of(checkpoint: Checkpoint) -> np.ndarray:
    """The output's matrix, float32 [vocabulary, width]: the embedding's where the two are tied."""
    tied = next(name for name, entry in checkpoint.entries.items() if entry.spec.role == "embedding")
    return checkpoint.read_tensor(HEAD if HEAD in checkpoint.entries else tied).dequantize()


class Base:
    """What a base says on passages, against which others are held.

    Its logits are kept while they take no more than `room` bytes, else made anew each time.
    """

    def __init__(self, predictions: Predictions, came: np.ndarray, room: int = 0) -> None:
        self.predictions, self.came = predictions, came
        self._room, self._kept = room, {}  # type: int, dict[int, np.ndarray]

    def compare(self, other: Predictions, progress: Progress = lambda done, total: None) -> Positions:
        """The positions, in order."""
        starts = range(0, len(self.came), ROWS)
        found = []
        with ThreadPoolExecutor(cores()) as pool:
            for part in pool.map(lambda start: self._rows(other, slice(start, start + ROWS)), starts):
                found.append(part)
                progress(len(found), len(starts))
        return joined(found)

    def _rows(self, other: Predictions, rows: slice) -> Positions:
        p = self._kept.get(rows.start)
        if p is None:
            p = self.predictions.logits(rows)
            if self._room >= p.nbytes:
                self._room -= p.nbytes
                self._kept[rows.start] = p
        return measured(p, other.logits(rows), self.came[rows])


def measured(p: np.ndarray, q: np.ndarray, came: np.ndarray) -> Positions:
    """The positions of logits float32 [n, vocabulary] of a base and another; q is overwritten. Sums are float64.

    KL(p ‖ q) = log Σ e^q − log Σ e^p − Σ p · (q − p): the last sum is of small differences, so float32 does not hurt it.
    """
    at = np.arange(len(came))
    p_top, q_top = p.argmax(-1), q.argmax(-1)
    p_max, q_max = p[at, p_top], q[at, q_top]
    p_came, q_came = p[at, came].astype(np.float64), q[at, came].astype(np.float64)
    weight = np.exp(p - p_max[:, None])
    p_sum = weight.sum(-1, dtype=np.float64)
    moved = np.einsum("nv,nv->n", weight, q - p, dtype=np.float64, casting="unsafe") / p_sum
    q -= q_max[:, None]
    p_log = np.log(p_sum) + p_max
    q_log = np.log(np.exp(q, out=q).sum(-1, dtype=np.float64)) + q_max
    return Positions(np.maximum(q_log - p_log - moved, 0.0), q_log - q_came, p_log - p_came, p_top == q_top)
