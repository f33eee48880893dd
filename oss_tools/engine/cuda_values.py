"""What a recorded forward pass on a GPU is made of: launches, and values, some of which lie in memory and some of which are still
to be computed by whoever takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.choice import Choice
from numba_kernels.cuda.device import Device
from numba_kernels.cuda.seam import SIMULATED, Kernel
from oss_tools.engine.cuda_cache import Pool
from oss_tools.engine.cuda_weights import CudaWeights, Stack
from oss_tools.models.operations import Rope

WARPS = 2 if SIMULATED else 8  # of a block

Launch = tuple[Kernel, "int | tuple[int, ...]", tuple[Any, ...]]


class Model(Protocol):
    """What recorders need of the backend."""

    device: Device
    weights: CudaWeights
    pools: dict[int | None, Pool]
    step: Any
    batch: Any
    chunk: int
    context: int

    def buffer(self, role: str, count: int, dtype: Any) -> Any: ...
    def shape(self, stack: Stack) -> Shape: ...
    def rope_tables(self, rope: Rope) -> tuple[Any, Any]: ...
    def kernel(self, kernel: Kernel) -> Kernel: ...


# ---- values ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floats:
    """float32 on the device: for each token `columns` values from `start` on, a token every `stride`."""

    array: Any
    columns: int
    stride: int
    start: int = 0

    @property
    def view(self) -> Any:
        """From the first value on."""
        return self.array[self.start :]


@dataclass(frozen=True)
class Words:
    """bfloat16 on the device, two in a word: for each token `stride` words, zeros beyond `columns` values."""

    array: Any
    columns: int
    stride: int


@dataclass(frozen=True, eq=False)
class Normed:
    """x normalized by its root mean square, to be computed by whoever takes it."""

    x: Floats
    weight: Any
    epsilon: float


@dataclass(frozen=True)
class Pending:
    """The output of a layer that is not written yet: `emit` adds it to values, or stores it there. `name` tells it from others
    that may be in memory at the same time."""

    name: str
    columns: int
    emit: Callable[[Floats, bool], None]


@dataclass(frozen=True)
class Turned:
    """Queries or keys that are still to be normed, by head, and rotated, from value `first` of each head on."""

    x: Floats
    norm: tuple[str, float] | None = None
    rope: Rope | None = None
    first: int = 0


@dataclass(frozen=True)
class Routing:
    """The experts that the device chooses for each token, their number, and what they are to meet.

    Attributes:
        given: what the router meets, where it normalizes that itself.
        emit: adds the router's launch, which chooses or leaves that to others; for whoever runs the experts.
    """

    chosen: int
    experts: int
    ids: Any
    shares: Any
    normed: Floats
    choice: Choice
    logits: Floats
    scale: Any
    given: Normed | None
    emit: Callable[[bool], None]


Value = Any  # one of these
