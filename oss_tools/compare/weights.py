"""How far one checkpoint's weights are from another's, by layer and role, and which of them are damaged rather than rounded."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from oss_tools.compare.usual import Usual, usual, usual_of
from oss_tools.errors import BadCheckpoint
from oss_tools.models import Checkpoint
from oss_tools.models.entries import Entry, chunks
from oss_tools.models.operations import Heads
from oss_tools.report.comparison import Finding
from oss_tools.report.fidelity import Cell, WeightError

FAR = 3.0  # times what the format costs, beyond which rounding does not explain an error
LEAST = 0.005  # relative error below which nothing is suspicious: bf16 costs 0.002
MOST_FINDINGS = 12
HEADS = ("attention.q", "attention.k", "attention.v", "attention.out")
PADDED = ("embedding", "output")  # roles whose tensors have a row for each token, and may have more
BLOCK = 16  # rows whose slope is taken together; of queries, keys and values the rows of a head
NEAR = 0.01  # by how much all slopes of a role may lie beside what their format has on made-up values
DRIFT = 0.03  # by how much a block's slope may lie beside the others', whatever the format
SPREADS = 6.0  # standard errors of a block's slope that are no evidence
MOST_DRIFT = 0.5


@dataclass(frozen=True)
class Block:
    """Some rows or columns of a slice, and the slope of the candidate's values on the base's: ⟨x, y⟩ / ⟨x, x⟩.

    Attributes:
        where: in words: "rows 16–31", "head 3".
        values: how many.
    """

    where: str
    slope: float
    values: int


@dataclass
class Slice:
    """One matrix of a tensor (of one expert, where there are several): the sums over its values.

    Attributes:
        usual: what the like of it costs.
        suspicious: whether its error is far beyond that, or a block's slope far from what is usual.
        blocks: its blocks of rows, and, of attention's output, of columns.
        biased: those whose slope is off, the worst first.
    """

    name: str
    layer: int | None
    role: str
    formats: tuple[str, str]
    squared_error: float = 0.0
    squared_norm: float = 0.0
    values: int = 0
    suspicious: bool = False
    usual: float = 0.0
    blocks: list[Block] = field(default_factory=list)
    biased: list[Block] = field(default_factory=list)

    @property
    def error(self) -> float:
        return relative(self.squared_error, self.squared_norm)


def relative(squared_error: float, squared_norm: float) -> float:
    """‖error‖ / ‖original‖; 1 for an error where all was zero."""
    return math.sqrt(squared_error / squared_norm) if squared_norm else float(squared_error > 0)


def compare_weights(
    base: Checkpoint, other: Checkpoint, progress: Callable[[int], None] = lambda values: None
) -> tuple[WeightError, list[Finding]]:
    """The relative error of every tensor, and what is wrong.

    Values are compared as the checkpoints' files say them, in chunks, whatever the containers. A slice (one expert's matrix) is
    suspicious if its error is more than `FAR` times that of its like: the median of the slices of the same role and
    formats, held between what the formats cost on normal values and twice that. It is suspicious as well if the values of a
    block of it, a head or some rows, are larger or smaller than the base's on the whole, as rounding leaves them.

    Args:
        progress: called with the number of values just compared.

    Raises BadCheckpoint if the two do not have the same tensors.
    """
    require_same_tensors(base, other)
    slices = [piece for name in base.entries for piece in _slices(base, other, name, progress)]
    _mark(slices)
    cells: dict[tuple[int | None, str], list[Slice]] = defaultdict(list)
    for piece in slices:
        cells[piece.layer, piece.role].append(piece)
    total = relative(sum(s.squared_error for s in slices), sum(s.squared_norm for s in slices))
    return WeightError(total, [_cell(*key, pieces) for key, pieces in cells.items()]), _findings(slices)


def require_same_tensors(base: Checkpoint, other: Checkpoint) -> None:
    """Raises BadCheckpoint unless both have the same tensors in the same shapes, rows of padding aside (PADDED)."""
    for one, two in ((base, other), (other, base)):
        for name, entry in one.entries.items():
            if name not in two.entries:
                raise BadCheckpoint(f"tensor {name} is in {one.path}, but not in {two.path}; they are not one model")
            ours, theirs = entry.spec, two.entries[name].spec
            same = ours.shape[1:] == theirs.shape[1:] if ours.role in PADDED else ours.shape == theirs.shape
            if not same:
                shapes = f"{list(ours.shape)} in {one.path}, {list(theirs.shape)} in {two.path}"
                raise BadCheckpoint(f"tensor {name} is {shapes}; they are not one model")


def rows_of_tokens(checkpoint: Checkpoint) -> int:
    """Rows of the embedding."""
    return next(e.spec.shape[0] for e in checkpoint.entries.values() if e.spec.role == "embedding")


def _slices(base: Checkpoint, other: Checkpoint, name: str, progress: Callable[[int], None]) -> list[Slice]:
    ours, theirs = base.entries[name], other.entries[name]
    spec = ours.spec
    count, _, _ = spec.matrices
    formats = (_format_of(ours), _format_of(theirs))
    found = [Slice(f"{name}[{i}]" if count > 1 else name, spec.layer, spec.role, formats) for i in range(count)]
    sums = [_Sums(min(ours.spec.matrices[1], theirs.spec.matrices[1]), spec.matrices[2]) for _ in found]
    smaller = sorted((ours, theirs), key=lambda entry: entry.spec.size)  # the other may have rows of padding more
    for matrix, start, stop in chunks(smaller):
        x, y = (c.read(name, matrix, start, stop).dequantize().astype(np.float64) for c in (base, other))
        piece = found[matrix]
        with np.errstate(all="ignore"):
            piece.squared_error += float(np.nan_to_num(np.square(x - y), nan=0.0, posinf=np.inf).sum())
            piece.squared_norm += float(np.square(x).sum())
            sums[matrix].add(start, x, y)
        if not np.isfinite(y).all():
            raise BadCheckpoint(f"{other.path}: tensor {piece.name} holds NaN or infinity")
        piece.values += x.size
        progress(x.size)
    for piece, total in zip(found, sums, strict=True):
        if not spec.is_vector:
            piece.blocks = _blocks(total, base, piece)
    return found


def _format_of(entry: Entry) -> str:
    """Its number format; where its parts have several, the one that costs most."""
    return max(entry.mixed or (entry.format,), key=lambda format: usual(format).error).name


class _Sums:
    """⟨x, y⟩ and ⟨x, x⟩ of a matrix by row and by column, float64."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = np.zeros((2, rows)), np.zeros((2, columns))

    def add(self, start: int, x: np.ndarray, y: np.ndarray) -> None:
        for k, product in enumerate((x * y, x * x)):
            self.rows[k, start : start + len(x)] = product.sum(1)
            self.columns[k] += product.sum(0)


def _blocks(sums: _Sums, base: Checkpoint, piece: Slice) -> list[Block]:
    """The blocks of a matrix that are not zero in the base."""
    head = 0
    if piece.layer is not None and piece.role in HEADS:
        head = next(
            (h.size for h in base.architecture.attention_layers() if isinstance(h, Heads) and h.layer == piece.layer), 0
        )
    rows, columns = sums.rows.shape[1], sums.columns.shape[1]
    by_column = head and piece.role == "attention.out"
    found = _slopes(sums.rows, BLOCK if by_column or not head else head, columns, "" if by_column or not head else "head")
    return found + (_slopes(sums.columns, head, rows, "head") if by_column else [])


def _slopes(sums: np.ndarray, size: int, across: int, name: str) -> list[Block]:
    """Blocks of `size` lines of a matrix with `across` values each; `sums` are ⟨x, y⟩ and ⟨x, x⟩ by line: [2, lines]."""
    lines = sums.shape[1]
    starts = range(0, lines, size)
    xy, xx = np.add.reduceat(sums, list(starts), axis=1)
    found = []
    for number, start in enumerate(starts):
        stop = min(start + size, lines)
        if xx[number] > 0:
            where = f"{name} {number}" if name else f"rows {start}–{stop - 1}"
            found.append(Block(where, float(xy[number] / xx[number]), (stop - start) * across))
    return found


def _mark(slices: list[Slice]) -> None:
    """Sets `usual`, `biased` and `suspicious`."""
    like: dict[tuple[str, tuple[str, str]], list[Slice]] = defaultdict(list)
    for piece in slices:
        like[piece.role, piece.formats].append(piece)
    for (_, formats), pieces in like.items():
        own = usual_of(formats)
        middle = statistics.median(piece.error for piece in pieces)
        cost = min(max(middle, own.error), 2 * own.error)
        slopes = [block.slope for piece in pieces for block in piece.blocks]
        slope = min(max(statistics.median(slopes or [1.0]), own.low - NEAR), own.high + NEAR)
        for piece in pieces:
            piece.usual = cost
            piece.biased = [block for block in piece.blocks if _is_off(block, slope, own)]
            piece.biased.sort(key=lambda block: -abs(block.slope - slope))
            far = piece.error > FAR * cost
            piece.suspicious = piece.error > LEAST and (far or bool(piece.biased))


def _is_off(block: Block, slope: float, own: Usual) -> bool:
    """Whether a block's slope lies far from that of its like. Formats with few bits draw large and small values differently
    (about by the square of their error), some cut off the largest ones, and errors of a few values do not cancel each other."""
    room = max(DRIFT, 2 * own.error**2 + SPREADS * own.error / math.sqrt(block.values))
    low, high = slope - room - max(slope - own.low, 0.0), slope + room + max(own.high - slope, 0.0)
    return not max(low, slope - MOST_DRIFT) <= block.slope <= min(high, slope + MOST_DRIFT)


def _cell(layer: int | None, role: str, pieces: list[Slice]) -> Cell:
    worst = max(pieces, key=lambda piece: (piece.suspicious, piece.error))
    return Cell(
        layer,
        role,
        "+".join(sorted({piece.formats[1] for piece in pieces})),
        relative(sum(p.squared_error for p in pieces), sum(p.squared_norm for p in pieces)),
        sum(piece.values for piece in pieces),
        worst.error,
        worst.name,
        worst.suspicious,
    )


def _findings(slices: list[Slice]) -> list[Finding]:
    """One for each damaged tensor, the worst first; experts of one tensor together."""
    groups: dict[str, list[Slice]] = defaultdict(list)
    for piece in slices:
        if piece.suspicious:
            groups[piece.name.partition("[")[0]].append(piece)
    found = []
    for name, pieces in sorted(groups.items(), key=lambda group: -max(p.error for p in group[1])):
        worst = max(pieces, key=lambda piece: piece.error)
        subject = worst.name if len(pieces) == 1 else name
        experts = f" (in {len(pieces)} of its experts)" if len(pieces) > 1 else ""
        message = _bias(pieces) or (
            f"{subject}: relative error {worst.error:.3g}{experts}, where {worst.formats[1]} usually costs {worst.usual:.2g};"
            " rounding does not explain it"
        )
        found.append(Finding("weights", subject, message, worst.layer, worst.role))
    more = len(found) - MOST_FINDINGS
    if more > 0:
        last = found[MOST_FINDINGS - 1]
        found = [*found[: MOST_FINDINGS - 1], replace(last, message=f"{last.message} (and {more} more tensors)")]
    return found


def _bias(pieces: list[Slice]) -> str:
    """What is off about a tensor whose error is no larger than rounding's; "" where the error says it all."""
    if any(piece.error > FAR * piece.usual for piece in pieces):
        return ""
    piece = max(pieces, key=lambda piece: len(piece.biased))
    block, more = piece.biased[0], sum(len(p.biased) for p in pieces) - 1
    others = f" (and {more} more)" if more else ""
    return (
        f"{piece.name}, {block.where}{others}: values are {block.slope:.3g} times the base's on the whole, relative error"
        f" {piece.error:.3g}; rounding to {piece.formats[1]} does not explain it"
    )
