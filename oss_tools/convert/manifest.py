"""The manifest beside every output: what was made of what, tensor by tensor, with hashes that prove it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from oss_tools import __version__
from oss_tools.checkpoints.files import replace_file
from oss_tools.convert.updates import Kept
from oss_tools.errors import BadCheckpoint
from oss_tools.escapes import json_text
from oss_tools.formats import Format, QTensor

SCHEMA = 2
READABLE = (1, 2)  # schema 1 had SHA-256 alone, under `source_sha256` and `sha256`
FOLDER_NAME = "oss-tools-manifest.json"
MAX_BYTES = 256 << 20
BLAKE3, SHA256 = "blake3", "sha256"

T = TypeVar("T")


class TensorHash:
    """The hash of a tensor's canonical content, fed in row order.

    Canonical content is the same in every container: the format's planes (for MXFP4: codes in value order, scales), rows in
    Hugging Face's order. Two tensors of one format have equal hashes exactly if all their codes and scales are equal.

    Hashed are the format's name, a space and the shape, then for each plane, in order of their names, its name and the hash of
    its bytes.
    """

    def __init__(self, format: Format, shape: tuple[int, ...], algorithm: str = BLAKE3) -> None:
        """`algorithm`: BLAKE3, or SHA256 to compare with older manifests."""
        self._head = f"{format.name} {list(shape)}"
        self._algorithm = algorithm
        self._planes: dict[str, Any] = {}

    @staticmethod
    def like(expected: str, format: Format, shape: tuple[int, ...]) -> TensorHash:
        """One whose result can be compared with `expected`, a result."""
        return TensorHash(format, shape, SHA256 if expected.startswith(f"{SHA256}:") else BLAKE3)

    def update(self, rows: QTensor) -> None:
        for name, plane in rows.planes.items():
            if name not in self._planes:
                self._planes[name] = _hash(self._algorithm)
            self._planes[name].update(np.ascontiguousarray(plane))

    def result(self) -> str:
        """As `blake3:…` or `sha256:…`, in hexadecimal."""
        whole = b"".join(name.encode() + self._planes[name].digest() for name in sorted(self._planes))
        digest = _hash(self._algorithm)
        digest.update(np.frombuffer(self._head.encode() + whole, np.uint8))
        return f"{self._algorithm}:{digest.digest().hex()}"


def _hash(algorithm: str) -> Any:
    if algorithm == SHA256:
        return hashlib.sha256()
    from numba_kernels.hashes.blake3 import Blake3

    return Blake3()


@dataclass(frozen=True)
class TensorError:
    """What rounding cost in one tensor.

    Attributes:
        relative_error: ||decoded - original|| / ||original||, Frobenius norms.
        sqnr_db: signal to quantization noise, 10 log10(||original||^2 / ||decoded - original||^2), in dB; None if exact.
        max_error: largest |decoded - original|.
        clipped: share of values beyond what their block's scale can express.
        squared_error, squared_norm, values: the sums behind these, for totals.
    """

    relative_error: float
    sqnr_db: float | None
    max_error: float
    clipped: float
    squared_error: float
    squared_norm: float
    values: int

    @staticmethod
    def of(squared_error: float, squared_norm: float, max_error: float, clipped: int, values: int) -> TensorError:
        """From sums over a tensor's values."""
        ratio = squared_error / squared_norm if squared_norm else float(squared_error > 0)
        sqnr = -10 * float(np.log10(ratio)) if ratio else None
        return TensorError(ratio**0.5, sqnr, max_error, clipped / max(values, 1), squared_error, squared_norm, values)

    @staticmethod
    def total(errors: list[TensorError]) -> TensorError:
        """Over several tensors together."""
        return TensorError.of(
            sum(e.squared_error for e in errors),
            sum(e.squared_norm for e in errors),
            max((e.max_error for e in errors), default=0.0),
            round(sum(e.clipped * e.values for e in errors)),
            sum(e.values for e in errors),
        )


@dataclass(frozen=True)
class OutputError:
    """What rounding does to the outputs y = W x of a tensor, for the inputs x of a text, in its first rows.

    Attributes:
        before: ‖rounded outputs − outputs‖ / ‖outputs‖ where each value is rounded by itself.
        after: the same as the tensor was rounded.
        tokens: inputs that its matrices met, on average.
        unmet: matrices that met none, or too few to learn from; they were rounded by themselves.
    """

    before: float
    after: float
    tokens: float
    unmet: int


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of a manifest: formats and hashes before and after, how it was made, what that cost, of an updated tensor how
    much of the update is left, and, of one that was rounded for its outputs' sake, what becomes of these."""

    name: str
    role: str
    shape: list[int]
    source_format: str
    source_hash: str
    format: str
    hash: str
    action: str
    note: str = ""
    error: TensorError | None = None
    kept: Kept | None = None
    output: OutputError | None = None

    @property
    def proven_equal(self) -> bool:
        """Whether the hashes show that no value changed."""
        return self.hash == self.source_hash

    @staticmethod
    def from_json(raw: dict[str, Any]) -> TensorRecord:
        """Raises ValueError, TypeError, AttributeError or KeyError where it is none."""
        if "sha256" in raw:  # of schema 1
            hashes = {"hash": f"{SHA256}:{raw['sha256']}", "source_hash": f"{SHA256}:{raw['source_sha256']}"}
            raw = {name: value for name, value in raw.items() if name not in ("sha256", "source_sha256")} | hashes
        kinds = {"error": TensorError, "kept": Kept, "output": OutputError}
        read = {name: _typed(kind(**raw[name])) if raw.get(name) else None for name, kind in kinds.items()}
        return _typed(TensorRecord(**{**raw, **read}))

    def to_json(self) -> dict[str, Any]:
        """The same as JSON; without `kept` and `output`, which older versions do not read, where there is none."""
        return {name: value for name, value in asdict(self).items() if name not in ("kept", "output") or value is not None}


@dataclass
class Manifest:
    """The record of one conversion.

    Attributes:
        source: the source's file or folder name.
        plan: what decided the output beside the source's tensors, as `convert.journal.facts` gives it; {} from older versions.
    """

    source: str
    source_container: str
    container: str
    model_type: str
    recipe: dict[str, Any]
    tensors: list[TensorRecord] = field(default_factory=list)
    tool: str = f"oss-tools {__version__}"
    schema: int = SCHEMA
    plan: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        replace_file(path, json_text(asdict(self) | {"tensors": [t.to_json() for t in self.tensors]}, indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> Manifest:
        """Raises BadCheckpoint if the file is no manifest of this schema."""
        try:
            if path.stat().st_size > MAX_BYTES:
                raise ValueError("too large")
            raw = json.loads(path.read_text("utf-8"))
            if raw["schema"] not in READABLE:
                raise ValueError(f"schema {raw['schema']}, this program reads {' and '.join(map(str, READABLE))}")
            tensors = [TensorRecord.from_json(t) for t in raw["tensors"]]
            return _typed(Manifest(**{**raw, "schema": SCHEMA, "tensors": tensors}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadCheckpoint(f"{path}: not a manifest of oss-tools: {error}") from None


TYPES: dict[str, tuple[type, ...]] = {  # what JSON may hold for a field of these dataclasses, by its annotation
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "list[int]": (list,),
    "dict[str, Any]": (dict,),
    "TensorError | None": (TensorError, type(None)),
    "Kept | None": (Kept, type(None)),
    "OutputError | None": (OutputError, type(None)),
    "list[TensorRecord]": (list,),
}


def _typed(value: T) -> T:
    """A dataclass's value, if its fields are of the types that they are annotated with. Raises ValueError."""
    for entry in fields(value):  # type: ignore[arg-type]
        found = getattr(value, entry.name)
        if not isinstance(found, TYPES[str(entry.type)]) or isinstance(found, bool):
            raise ValueError(f"the field {entry.name} is {str(found)[:40]!r}")
    return value


def manifest_path(output: Path) -> Path:
    """Where an output's manifest lies: inside a folder, beside a file."""
    return output / FOLDER_NAME if output.is_dir() else output.with_name(output.name + ".manifest.json")
