"""How far one checkpoint's weights are from another's, by layer and role, and which of them are damaged rather than rounded."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from oss_tools.errors import BadCheckpoint
from oss_tools.formats import Format, get_format
from oss_tools.models import Checkpoint
from oss_tools.models.checkpoint import chunks
from oss_tools.report.comparison import Cell, Finding, WeightError

FAR = 3.0  # times what the format costs, beyond which rounding does not explain an error
LEAST = 0.005  # relative error below which nothing is suspicious: bf16 costs 0.002
MOST_FINDINGS = 12
PADDED = ("embedding", "output")  # roles whose tensors have a row for each token, and may have more
PROBE = (64, 1024)  # normal values on which a format's own error is measured


@dataclass
class Slice:
    """One matrix of a tensor (of one expert, where there are several): the sums over its values.

    Attributes:
        usual: what the like of it costs.
        suspicious: whether its error is far beyond that.
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
    formats, held between what the formats cost on normal values and twice that.

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
    formats = (ours.format.name, theirs.format.name)
    found = [Slice(f"{name}[{i}]" if count > 1 else name, spec.layer, spec.role, formats) for i in range(count)]
    smaller = sorted((ours, theirs), key=lambda entry: entry.spec.size)  # the other may have rows of padding more
    for matrix, start, stop in chunks(smaller):
        x, y = (c.read(name, matrix, start, stop).dequantize().astype(np.float64) for c in (base, other))
        piece = found[matrix]
        with np.errstate(all="ignore"):
            piece.squared_error += float(np.nan_to_num(np.square(x - y), nan=0.0, posinf=np.inf).sum())
            piece.squared_norm += float(np.square(x).sum())
        if not np.isfinite(y).all():
            raise BadCheckpoint(f"{other.path}: tensor {piece.name} holds NaN or infinity")
        piece.values += x.size
        progress(x.size)
    return found


def _mark(slices: list[Slice]) -> None:
    """Sets `usual` and `suspicious`."""
    like: dict[tuple[str, tuple[str, str]], list[Slice]] = defaultdict(list)
    for piece in slices:
        like[piece.role, piece.formats].append(piece)
    for (_, formats), pieces in like.items():
        own = math.hypot(*(_own_error(get_format(name)) for name in formats))
        middle = statistics.median(piece.error for piece in pieces)
        for piece in pieces:
            piece.usual = min(max(middle, own), 2 * own)
            piece.suspicious = piece.error > max(FAR * piece.usual, LEAST)


@cache
def _own_error(format: Format) -> float:
    """What a format costs on normal values; 0 for one that only reads."""
    if not (format.rules or format.is_float):
        return 0.0
    values = np.random.default_rng(0).standard_normal(PROBE).astype(np.float32)
    rounded = format.quantize(values).dequantize()
    return relative(float(np.square(rounded - values).sum()), float(np.square(values).sum()))


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
        message = (
            f"{subject}: relative error {worst.error:.3g}{experts}, where {worst.formats[1]} usually costs {worst.usual:.2g};"
            " rounding does not explain it"
        )
        found.append(Finding("weights", subject, message, worst.layer, worst.role))
    more = len(found) - MOST_FINDINGS
    if more > 0:
        last = found[MOST_FINDINGS - 1]
        found = [*found[: MOST_FINDINGS - 1], replace(last, message=f"{last.message} (and {more} more tensors)")]
    return found
