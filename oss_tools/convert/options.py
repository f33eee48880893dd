"""How to run a plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from oss_tools.formats import QTensor

if TYPE_CHECKING:
    from oss_tools.convert.manifest import OutputError
    from oss_tools.convert.plan import Plan

Progress = Callable[[str, str, int], None]  # (stage: "round", "write" or "verify", tensor, bytes of that stage's total done)


class Rounding(Protocol):
    """Rounds tensors of a plan before it is carried out, where that takes more than the tensor itself (GPTQ's pass over a text).

    Attributes:
        facts: what decides how tensors are rounded: in words, what it is -> its value, or its hash.
    """

    @property
    def facts(self) -> Mapping[str, str]: ...

    def scratch_bytes(self, plan: Plan) -> int:
        """Bytes that `prepare` writes."""

    def takes(self, plan: Plan) -> dict[str, Any]:
        """What `prepare` takes, as JSON: method, tokens, matrices, seconds, memory_bytes, scratch_bytes."""

    def prepare(self, plan: Plan, folder: Path, done: Collection[str], options: Options, progress: Progress) -> None:
        """Rounds what it rounds of the plan's tensors, but those that are `done`, into a folder; goes on where it was killed."""

    def rows(self, name: str, matrix: int, start: int, stop: int) -> QTensor | None:
        """Rows of a tensor that was rounded; None for one that was not."""

    def output_error(self, name: str) -> OutputError | None:
        """What rounding does to the outputs of a tensor that was rounded."""


@dataclass(frozen=True)
class Options:
    """How to run a plan.

    Attributes:
        jobs: worker threads; each holds one chunk in memory.
        shard_size: bytes per output file at most; None for the container's default.
        resume: go on behind an interrupted run; where the run is finished, only see that it is this one.
        overwrite: replace an existing output, and start anew where an interrupted run lies.
        verify: read the finished files back and compare every tensor's hash with what was meant.
        on_nonfinite: `refuse` or `clamp` NaN and infinity where values are rounded.
        importance: canonical tensor name -> float32 weights [K] or [matrices, K] of the squared error.
        rounding: what rounds tensors beforehand; None: each is rounded by itself as it is written.
    """

    jobs: int = 0
    shard_size: int | None = None
    resume: bool = False
    overwrite: bool = False
    verify: bool = True
    on_nonfinite: str = "refuse"
    importance: dict[str, np.ndarray] | None = None
    rounding: Rounding | None = None
