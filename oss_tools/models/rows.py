"""Rows of a canonical tensor, read from and written to where its placements say."""

from __future__ import annotations

import numpy as np

from oss_tools.checkpoints import Reader, Writer
from oss_tools.formats import QTensor, get_format
from oss_tools.models.entries import Entry
from oss_tools.models.tensors import Placement

TRANSPOSED_ROWS = 256  # in one strip


def read_rows(reader: Reader, entry: Entry, matrix: int, start: int, stop: int) -> QTensor:
    """Rows [start, stop) of one matrix of a tensor, in canonical order: [stop - start, columns]."""
    _, _, columns = entry.spec.matrices
    placements = (p for p in entry.placements if p.matrix in (None, matrix))
    read = ((p, _read_part(reader, p, matrix, start, stop, columns)) for p in placements)
    parts = [(p, part) for p, part in read if part is not None]
    if entry.mixed:
        f32 = entry.format
        parts = [(p, QTensor(f32, q.shape, {"values": q.dequantize()})) for p, q in parts]
    if len(parts) == 1:
        return parts[0][1]
    planes = {plane: np.empty((stop - start, array.shape[-1]), array.dtype) for plane, array in parts[0][1].planes.items()}
    for placement, part in parts:
        first, _ = _covered(placement, start, stop)
        for plane, array in part.planes.items():
            planes[plane][placement.first + first * placement.step - start :: placement.step][: len(array)] = array
    return QTensor(entry.format, (stop - start, columns), planes)


def _read_part(reader: Reader, p: Placement, matrix: int, start: int, stop: int, columns: int) -> QTensor | None:
    first, last = _covered(p, start, stop)
    if first >= last:
        return None
    matrix = p.matrix_of(matrix)
    if p.transposed:
        size = columns * p.stored_rows
        stored = reader.read(p.stored, matrix * columns, (matrix + 1) * columns, p.stored_rows)
        if not stored.format.is_float:
            stored = QTensor(get_format("f32"), stored.shape, {"values": stored.dequantize()})
        values = stored.planes["values"].reshape(columns, size // columns)[:, p.offset + first : p.offset + last]
        return QTensor(stored.format, (last - first, columns), {"values": _transposed(values)})
    base = matrix * p.stored_rows + p.offset
    if not p.rotary:
        return reader.read(p.stored, base + first, base + last, columns)
    low, high = first // p.rotary * p.rotary, -(-last // p.rotary) * p.rotary
    heads = reader.read(p.stored, base + low, base + high, columns)
    order = np.argsort(p.head_order())  # stored row of each canonical row
    index = (np.arange(low, high).reshape(-1, p.rotary)[:, order] - low).reshape(-1)
    return heads.rows(index[first - low : last - low])


def write_rows(writer: Writer, entry: Entry, matrix: int, start: int, rows: QTensor) -> None:
    """Writes canonical rows [start, start + n) of one matrix to wherever the entry's placements say.

    `start` and n are multiples of the entry's `row_unit`, except at the matrix's end; a transposed matrix is written whole.
    """
    stop = start + rows.shape[0]
    for p in entry.placements:
        if p.matrix not in (None, matrix):
            continue
        first, last = _covered(p, start, stop)
        if first >= last:
            continue
        stored_matrix = p.matrix_of(matrix)
        begin = p.first + first * p.step - start
        part = rows.rows(slice(begin, begin + (last - first - 1) * p.step + 1, p.step))
        if p.transposed:
            values = _transposed(part.planes["values"])  # [in, out]
            _write_columns(writer, p, stored_matrix * part.columns, QTensor(part.format, values.shape, {"values": values}))
            continue
        if p.rotary:
            heads = np.arange(last - first).reshape(-1, p.rotary)
            part = part.rows(heads[:, p.head_order()].reshape(-1))
        writer.write(p.stored, stored_matrix * p.stored_rows + p.offset + first, part)


def _write_columns(writer: Writer, p: Placement, first: int, values: QTensor) -> None:
    """Writes a whole matrix [in, out] from a row of the stored tensor on; or, where several share its rows (GPT-2's q, k and v),
    to its columns of each row."""
    if p.count == p.stored_rows:
        writer.write(p.stored, first, values)
        return
    share, place = p.stored_rows // p.count, p.offset // p.count
    for row in range(values.shape[0]):
        writer.write(p.stored, (first + row) * share + place, values.rows(slice(row, row + 1)))


def _transposed(matrix: np.ndarray) -> np.ndarray:
    """A contiguous copy of the transpose, made in strips that stay in the cache: several times as fast as in one piece."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, matrix.shape[0], TRANSPOSED_ROWS):
        result[:, start : start + TRANSPOSED_ROWS] = matrix[start : start + TRANSPOSED_ROWS].T
    return result


def _covered(p: Placement, start: int, stop: int) -> tuple[int, int]:
    """Which of a placement's rows, counted from its first, lie in the canonical range [start, stop)."""
    first = max(-(-(start - p.first) // p.step), 0)
    last = min(-(-(stop - p.first) // p.step), p.count)
    return first, last
