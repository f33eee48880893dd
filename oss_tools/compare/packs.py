"""A pack: what a base model said on given tokens, in few megabytes, so that candidates are measured where the base does not fit.

Of each scored position the likeliest tokens are kept with their exact log-probabilities, and of the rest a few tokens that
were drawn in proportion to their probability. With R and Q the masses that the base p and the candidate q give to the rest, and p̃
and q̃ their shares of it,

    KL(p ‖ q) = Σ over kept tokens p · log(p / q) + R · (log(R / Q) + KL(p̃ ‖ q̃))

where all but the last term is exact, and KL(p̃ ‖ q̃) is the mean of r − 1 − log r over the drawn tokens, r = q̃ / p̃: unbiased, never
negative (the third estimator of http://joschu.net/blog/kl-approx.html). The spread of these values bounds the error.

The file: `OSSPACK1`, the header's size (8 bytes, little-endian), the header (JSON), the arrays of each passage in turn, and
SHA-256 of all before. The arrays are int32 tokens [chunks, size], int32 kept [n, KEPT], float32 their log-probabilities, int32
drawn [n, DRAWN], float32 theirs, float32 log-probabilities of the tokens that came [n]; there are
n = chunks · (size − 1 − size // 2) scored positions.

A reader takes nothing that has another size or hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.checkpoints.files import replace_file
from oss_tools.checkpoints.json_files import parse_json
from oss_tools.compare.predictions import Passage
from oss_tools.engine.engine import Engine
from oss_tools.errors import BadRequest
from oss_tools.escapes import json_text
from oss_tools.measure.fidelity import ROWS, Positions, joined, log_softmax

MAGIC = b"OSSPACK1"
SCHEMA = 1
KEPT = 128  # of the likeliest tokens
DRAWN = 64  # of the others
LARGEST_HEADER = 64 << 20
LARGEST_FILE = 4 << 30
LONGEST = 400  # characters of a question or an answer that a pack keeps
SUREST = 4.0  # standard errors of the draws that make the stated bound


@dataclass(frozen=True)
class PackedPassage:
    """A passage, and what the base said on its n scored positions.

    Attributes:
        kept: the likeliest tokens, the first one first, int32 [n, KEPT]; kept_logp: their natural log-probabilities, float32.
        drawn: of the others, in proportion to their probability, int32 [n, DRAWN]; drawn_logp: theirs, float32.
        came: log-probabilities of the tokens that came, float32 [n].
    """

    passage: Passage
    kept: np.ndarray
    kept_logp: np.ndarray
    drawn: np.ndarray
    drawn_logp: np.ndarray
    came: np.ndarray


@dataclass(frozen=True)
class Pack:
    """What a base said.

    Attributes:
        about: `candidate` (its fields in a comparison's record), `vocabulary` (rows), `tokens` (a hash of the tokenizer's
            vocabulary), `settings` on which answers depend.
        answers: by task, as `answers.answer` gives them.
        sha256: of the file's content.
    """

    about: dict[str, Any]
    passages: tuple[PackedPassage, ...]
    answers: dict[str, dict[str, Any]]
    sha256: str = ""

    @property
    def name(self) -> str:
        return str(self.about["candidate"]["name"])


def shortened(found: Mapping[str, Any]) -> dict[str, Any]:
    """A task's answers with the beginnings of what was asked and said."""
    said = [{name: text[:LONGEST] for name, text in row.items()} for row in found["said"]]
    return {**found, "said": said, "wire": None}


def vocabulary_hash(numbers: Mapping[str, int]) -> str:
    """Of a tokenizer's tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(numbers.items())).encode()).hexdigest()


# ---- making one -----------------------------------------------------------------------------------------------------


def pack_passage(
    engine: Engine, passage: Passage, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[PackedPassage, list[Positions]]:
    """What a model says on a passage, and its own positions, chunk by chunk."""
    rows: list[tuple[np.ndarray, ...]] = []
    own = []
    for number, chunk in enumerate(passage.chunks):
        first, at, parts = len(chunk) // 2, len(chunk) // 2, []
        for logits in engine.each_logits(list(chunk[:-1]), first):
            for begin in range(0, len(logits), ROWS):
                log_p = log_softmax(logits[begin : begin + ROWS])
                came = log_p[np.arange(len(log_p)), list(chunk[at + 1 : at + 1 + len(log_p)])]
                rows += [(*_told(row, number * len(chunk) + at + i), came[i]) for i, row in enumerate(log_p)]
                parts.append(came)
                at += len(log_p)
        nll = -np.concatenate(parts)
        own.append(Positions(np.zeros(len(nll)), nll, nll, np.ones(len(nll), bool)))
        progress(number + 1, len(passage.chunks))
    kept, kept_logp, drawn, drawn_logp, came = (np.array(column) for column in zip(*rows, strict=True))
    int32, float32 = np.int32, np.float32
    return (
        PackedPassage(
            passage, kept.astype(int32), kept_logp.astype(float32), drawn.astype(int32), drawn_logp.astype(float32),
            came.astype(float32),
        ),
        own,
    )  # fmt: skip


def _told(log_p: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of one position's log-probabilities: the likeliest tokens and theirs, and drawn ones of the others and theirs."""
    size = min(KEPT, len(log_p) - 1)
    likeliest = np.argpartition(-log_p, size)[:size]
    kept = likeliest[np.argsort(-log_p[likeliest], kind="stable")]
    rest = np.exp(log_p)
    rest[kept] = 0.0
    sums = np.cumsum(rest)
    spots = (np.arange(DRAWN) + np.random.default_rng(seed).random(DRAWN)) / DRAWN * sums[-1]  # one in each stratum
    drawn = np.minimum(np.searchsorted(sums, spots, side="right"), len(log_p) - 1)
    padding = KEPT - size  # of a vocabulary that is smaller
    kept, kept_logp = (
        np.pad(kept, (0, padding), constant_values=-1),
        np.pad(log_p[kept], (0, padding), constant_values=-np.inf),
    )
    return kept, kept_logp, drawn, log_p[drawn]


# ---- holding a candidate against one --------------------------------------------------------------------------------


def against(packed: PackedPassage, engine: Engine, progress: Callable[[int, int], None]) -> tuple[list[Positions], float]:
    """The positions of each chunk, and the bound on the error of the mean divergence: four standard errors of the draws."""
    found, variance, at = [], 0.0, 0
    for number, chunk in enumerate(packed.passage.chunks):
        parts, first, begin = [], len(chunk) // 2, at
        for logits in engine.each_logits(list(chunk[:-1]), first):
            for row in range(0, len(logits), ROWS):
                log_q = log_softmax(logits[row : row + ROWS])
                came = np.array(chunk[first + 1 + at - begin : first + 1 + at - begin + len(log_q)])
                positions, spread = _positions(packed, slice(at, at + len(log_q)), log_q, came)
                parts.append(positions)
                variance += spread
                at += len(log_q)
        found.append(joined(parts))
        progress(number + 1, len(packed.passage.chunks))
    return found, SUREST * variance**0.5 / at


def _positions(packed: PackedPassage, rows: slice, log_q: np.ndarray, came: np.ndarray) -> tuple[Positions, float]:
    """n positions, and the sum of the variances of their divergences."""
    n = np.arange(len(log_q))[:, None]
    log_p, kept = packed.kept_logp[rows].astype(np.float64), packed.kept[rows]
    there = kept >= 0
    p = np.where(there, np.exp(log_p), 0.0)
    q_kept = log_q[n, np.maximum(kept, 0)]
    exact = np.where(there, p * (np.where(there, log_p, 0.0) - q_kept), 0.0).sum(-1)
    rest_p = np.clip(1.0 - p.sum(-1), 1e-300, None)
    rest_q = np.clip(1.0 - np.where(there, np.exp(q_kept), 0.0).sum(-1), 1e-300, None)
    log_r = (log_q[n, packed.drawn[rows]] - packed.drawn_logp[rows].astype(np.float64)) + np.log(rest_p / rest_q)[:, None]
    drawn = np.expm1(log_r) - log_r
    tail = rest_p * (np.log(rest_p / rest_q) + drawn.mean(-1))
    variance = float((rest_p**2 * drawn.var(-1, ddof=1) / DRAWN).sum())
    nll = -log_q[n[:, 0], came]
    base_nll = -packed.came[rows].astype(np.float64)
    same = log_q.argmax(-1) == kept[:, 0]
    return Positions(np.maximum(exact + tail, 0.0), nll, base_nll, same), variance


# ---- the file -------------------------------------------------------------------------------------------------------


def write_pack(pack: Pack, file: Path) -> int:
    """Writes it; returns its bytes. Raises NoRoom, BadRequest."""
    header = {
        "schema": SCHEMA,
        "about": pack.about,
        "answers": pack.answers,
        "passages": [
            {"name": p.passage.name, "chunks": len(p.passage.chunks), "size": len(p.passage.chunks[0])}
            for p in pack.passages
        ],
    }
    text = json_text(header).encode()
    pieces = [MAGIC, len(text).to_bytes(8, "little"), text]
    for p in pack.passages:
        tokens = np.array(p.passage.chunks, np.int32)
        arrays = (tokens, p.kept, p.kept_logp, p.drawn, p.drawn_logp, p.came)
        pieces += [array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays]
    whole = b"".join(pieces)
    replace_file(file, whole + hashlib.sha256(whole).digest(), private=True)
    return len(whole) + 32


def read_pack(file: Path) -> Pack:
    """Raises BadRequest, in a line, for what is no whole pack of this version."""
    try:
        size = file.stat().st_size
        if size > LARGEST_FILE:
            raise BadRequest(f"{file}: {size:,} bytes are too many for a pack")
        data = file.read_bytes()
    except OSError as error:
        raise BadRequest(f"{file}: {error.strerror}") from None
    if data[:8] != MAGIC or len(data) < 48:
        raise BadRequest(f"{file}: no pack; `compare MODEL --write-pack FILE` makes one")
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise BadRequest(f"{file}: damaged or cut off: its content has another hash than it says")
    length = int.from_bytes(data[8:16], "little")
    if length > min(LARGEST_HEADER, len(data) - 48):
        raise BadRequest(f"{file}: its header is larger than the file")
    header = parse_json(data[16 : 16 + length], str(file))
    if header.get("schema") != SCHEMA:
        raise BadRequest(f"{file}: a pack of another version of this program; make it again")
    try:
        return _unpacked(header, memoryview(data)[16 + length : -32], hashlib.sha256(data).hexdigest())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadRequest(f"{file}: no whole pack: {error}") from None


def _unpacked(header: Mapping[str, Any], content: memoryview, sha256: str) -> Pack:
    about, answers = header["about"], header["answers"]
    vocabulary = about["vocabulary"]
    if type(vocabulary) is not int or not 1 < vocabulary < 1 << 31 or not isinstance(about["candidate"]["name"], str):
        raise ValueError("of an impossible vocabulary or name")
    at, passages = 0, []

    def take(kind: type, *shape: int) -> np.ndarray:
        nonlocal at
        nbytes = 4 * int(np.prod(shape, dtype=object))
        if at + nbytes > len(content):
            raise ValueError("its arrays are larger than the file")
        array = np.frombuffer(content, np.dtype(kind).newbyteorder("<"), nbytes // 4, at).reshape(shape)
        at += nbytes
        return array

    for entry in header["passages"]:
        chunks, size, name = entry["chunks"], entry["size"], entry["name"]
        if type(chunks) is not int or type(size) is not int or chunks < 1 or size < 4 or not isinstance(name, str):
            raise ValueError("a passage of impossible size")
        n = chunks * (size - 1 - size // 2)
        tokens = take(np.int32, chunks, size)
        kept, kept_logp = take(np.int32, n, KEPT), take(np.float32, n, KEPT)
        drawn, drawn_logp, came = take(np.int32, n, DRAWN), take(np.float32, n, DRAWN), take(np.float32, n)
        for ids, least in ((tokens, 0), (kept, -1), (drawn, 0)):
            if ids.min() < least or ids.max() >= vocabulary:
                raise ValueError("tokens outside of the vocabulary")
        if not all((values <= 1e-3).all() for values in (kept_logp, drawn_logp, came)):  # NaN is not
            raise ValueError("numbers that are no log-probabilities")
        passage = Passage(name, tuple(tuple(row) for row in tokens.tolist()))
        passages.append(PackedPassage(passage, kept, kept_logp, drawn, drawn_logp, came))
    if at != len(content):
        raise ValueError("it has bytes beyond its arrays")
    return Pack(dict(about), tuple(passages), dict(answers), sha256)
