"""What a number format is: the class that each format subclasses, and the registry of all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from oss_tools.errors import BadRecipe, BadTensor
from oss_tools.formats.qtensor import Plane, QTensor
from oss_tools.guesses import none_named
from oss_tools.rooms import modules_of


@dataclass(frozen=True)
class RoundingError:
    """What became of float32 values: sums of squared errors and of squared values, the largest absolute error, and how many
    values lay outside of what their block's scale can express (`Format.representable_range`)."""

    squared_error: float
    squared_norm: float
    max_error: float
    clipped: int


@dataclass(frozen=True)
class Lattice:
    """The values that a tensor's scales let its codes have: value = scale · level + offset.

    Attributes:
        levels: float32 [L], L ≤ 256, ascending: what each code stands for; a code is an index into it.
        scale: float32 [R, K / width], of either sign; 0 where all values are the offset.
        offset: float32 [R, K / width], or None where it is 0 everywhere.
        width: neighbouring values that share a scale.
    """

    levels: np.ndarray
    scale: np.ndarray
    offset: np.ndarray | None
    width: int


class Format(ABC):
    """A number format. Subclassing it in a module of this package registers it under `name`.

    Attributes:
        name: the format's name on the command line and in recipes.
        summary: one line for help texts.
        block: values along the last axis that share one scale: 1 for plain floats, 0 for a whole row.
        rules: the rules that `quantize` knows, the default first; empty if the format can only be read.
        ggml_type: its number in GGUF files (gguf.GGMLQuantizationType), or None where GGUF has no such type.
        is_float: whether it is a plain float type (one plane named `values`, a value an element).
        exact_in: the narrowest plain float format that holds every value of this format exactly.
        needs_amax: whether `quantize` needs the whole tensor's largest magnitude, not only its rows' own.
        row_block: rows of a matrix that are quantized together, counted from its first.
        lattice_block: columns whose scales are chosen together, 0 for a whole row; None where the format has no `lattice`.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    block: ClassVar[int]
    rules: ClassVar[tuple[str, ...]] = ()
    ggml_type: ClassVar[int | None] = None
    is_float: ClassVar[bool] = False
    exact_in: ClassVar[str] = "f32"
    needs_amax: ClassVar[bool] = False
    row_block: ClassVar[int] = 1
    lattice_block: ClassVar[int | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.name:
            _REGISTRY[cls.name] = cls()

    def __repr__(self) -> str:
        return f"<format {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Format) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    @abstractmethod
    def planes(self, columns: int) -> dict[str, Plane]:
        """The planes of a tensor whose rows have `columns` values."""

    def quantize(
        self,
        values: np.ndarray,
        *,
        rule: str | None = None,
        importance: np.ndarray | None = None,
        amax: float | None = None,
        threads: int = 1,
    ) -> QTensor:
        """Rounds float32 values [..., K] to this format.

        Args:
            values: float32, finite; of one matrix, from a multiple of `row_block` on, where that is more than 1.
            rule: one of `rules`; None is the default.
            importance: float32 weights of the squared error, finite and not negative, broadcastable to values' shape
                (usually [K]), or None. Only rules that search use them.
            amax: the whole tensor's largest magnitude, for formats that `needs_amax`; None takes it from values.
            threads: how many threads share the work.

        Raises BadTensor if K is not a multiple of the block, BadRecipe if there is no such rule.
        """
        return self._quantize(values, rule, importance, amax, threads)[0]

    def quantize_measured(
        self,
        values: np.ndarray,
        *,
        rule: str | None = None,
        importance: np.ndarray | None = None,
        amax: float | None = None,
        threads: int = 1,
    ) -> tuple[QTensor, RoundingError]:
        """As `quantize`, and what rounding cost, which most formats find while a block is in registers."""
        from numba_kernels.codec import error

        tensor, rows = self._quantize(values, rule, importance, amax, threads)
        if rows is not None:
            return tensor, RoundingError(*error.total(rows))
        return tensor, self.rounding_error(values, tensor, threads=threads)

    def rounding_error(self, values: np.ndarray, tensor: QTensor, *, threads: int = 1) -> RoundingError:
        """What a tensor of this format lacks of float32 values of its shape."""
        from numba_kernels.codec import error

        low, high = self.representable_range(tensor) or (None, None)
        decoded = self.dequantize(tensor, threads=threads)
        return RoundingError(*error.error_sums(values, decoded, low, high, threads))

    def _quantize(
        self, values: np.ndarray, rule: str | None, importance: np.ndarray | None, amax: float | None, threads: int
    ) -> tuple[QTensor, np.ndarray | None]:
        """The tensor, and what `quantize_rows` says of its errors."""
        if not self.rules:
            raise BadRecipe(f"{self.name} can be read but not written; choose another format")
        if rule is not None and rule not in self.rules:
            raise BadRecipe(f"{self.name}: {none_named('rule', rule, self.rules)}")
        self.check(values.shape, "values")
        columns = values.shape[-1]
        rows = np.ascontiguousarray(values, np.float32).reshape(-1, columns)
        weights = np.ones((1, columns), np.float32)
        if importance is not None:
            shape = (1, columns) if importance.size <= columns else values.shape
            weights = np.ascontiguousarray(np.broadcast_to(importance.astype(np.float32), shape)).reshape(-1, columns)
        if self.needs_amax and amax is None:
            amax = float(max(rows.max(initial=0), -rows.min(initial=0)))
        planes = {name: np.empty((len(rows), p.columns), p.dtype) for name, p in self.planes(columns).items()}
        errors = self.quantize_rows(rows, weights, planes, rule or self.rules[0], amax or 0.0, threads)
        return QTensor(self, rows.shape, planes).reshape(*values.shape), errors

    def dequantize(self, tensor: QTensor, *, threads: int = 1) -> np.ndarray:
        """The values as float32 [..., K]."""
        planes = {name: np.ascontiguousarray(p).reshape(-1, p.shape[-1]) for name, p in tensor.planes.items()}
        rows = np.empty((len(next(iter(planes.values()))), tensor.columns), np.float32)
        self.dequantize_rows(planes, rows, threads)
        return rows.reshape(tensor.shape)

    def quantize_rows(
        self,
        rows: np.ndarray,
        weights: np.ndarray,
        planes: dict[str, np.ndarray],
        rule: str,
        amax: float,
        threads: int,
    ) -> np.ndarray | None:
        """Fills the planes [R, …] from rows, float32 [R, K]; weights: float32 [R or 1, K]. All are C-contiguous.

        Returns what rounding cost each row, float64 [R, SUMS] of `numba_kernels.codec.error`, where the kernel finds it on its
        way, else None.
        """
        raise NotImplementedError(f"{self.name} has rules but no quantize_rows")

    @abstractmethod
    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        """Fills out, float32 [R, K], from the planes [R, …]. All are C-contiguous."""

    def representable_range(self, tensor: QTensor) -> tuple[np.ndarray, np.ndarray] | None:
        """The lowest and highest value that each block's scale rounds without clipping, half a step beyond the outermost
        codes, as two float32 [rows, parts], a row's parts being of one length; None if unbounded."""
        return None

    def lattice(self, tensor: QTensor) -> Lattice:
        """The values that the tensor's scales let its codes have; rows are those of all its matrices."""
        raise NotImplementedError(f"{self.name} has no lattice")

    def with_codes(self, tensor: QTensor, codes: np.ndarray) -> QTensor:
        """A tensor [R, K] with the same scales and other codes, uint8 [R, K], indices into `lattice(tensor).levels`."""
        raise NotImplementedError(f"{self.name} has no lattice")

    def other_scales(self, tensor: QTensor) -> list[QTensor]:
        """Tensors [R, K] with scales near those of a tensor, which a search may try in their stead. Their codes mean nothing."""
        return []

    def pack_ggml(self, tensor: QTensor) -> np.ndarray:
        """The rows as GGUF stores them: uint8 [rows, bytes per row]. Needs a `ggml_type`."""
        (plane,) = tensor.planes.values()
        return np.ascontiguousarray(plane).reshape(-1, plane.shape[-1]).view(np.uint8)

    def unpack_ggml(self, data: np.ndarray, columns: int) -> QTensor:
        """The inverse of `pack_ggml`: from uint8 [rows, bytes per row] to a QTensor of shape [rows, columns]."""
        ((name, plane),) = self.planes(columns).items()
        return QTensor(self, (data.shape[0], columns), {name: data.view(plane.dtype)})

    def bytes_per_row(self, columns: int) -> int:
        """Bytes that a row adds to a file, without what it shares with others."""
        return sum(plane.nbytes for plane in self.planes(columns).values() if not plane.shared and plane.rows == 1)

    def stored_bytes(self, rows: int, columns: int, matrices: int = 1) -> int:
        """Bytes of a tensor in a file: matrices of so many rows and columns."""
        return sum(plane.stored_bytes(rows, matrices) for plane in self.planes(columns).values())

    def bits_per_weight(self, columns: int) -> float:
        """Of a large matrix."""
        return sum(8 * plane.nbytes / plane.rows for plane in self.planes(columns).values() if not plane.shared) / columns

    def fits(self, columns: int) -> bool:
        """Whether rows of this many values divide into whole blocks."""
        return self.block <= 1 or columns % self.block == 0

    def check(self, shape: tuple[int, ...], tensor: str) -> None:
        """Raises BadTensor if the shape's last axis is not a multiple of the block."""
        if not self.fits(shape[-1]):
            raise BadTensor(
                f"{tensor}: axis {len(shape) - 1} has {shape[-1]} values, not a multiple of the {self.block} "
                f"of a {self.name} block; keep this tensor in another format by a recipe rule"
            )


_REGISTRY: dict[str, Format] = {}


def all_formats() -> dict[str, Format]:
    """Every format by name."""
    modules_of("oss_tools.formats")
    return dict(_REGISTRY)


def get_format(name: str) -> Format:
    """The format of this name. Raises BadRecipe with the names there are."""
    if name not in _REGISTRY:
        modules_of("oss_tools.formats")
    try:
        return _REGISTRY[name]
    except KeyError:
        raise BadRecipe(none_named("number format", name, sorted(_REGISTRY))) from None


def format_of_ggml(ggml_type: int) -> Format | None:
    """The format with this GGUF type number, or None."""
    modules_of("oss_tools.formats")
    return next((f for f in _REGISTRY.values() if f.ggml_type == ggml_type), None)
