"""How to run a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Progress = Callable[[str, str, int], None]  # (stage: "write" or "verify", tensor, bytes of that stage's total just done)


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
    """

    jobs: int = 0
    shard_size: int | None = None
    resume: bool = False
    overwrite: bool = False
    verify: bool = True
    on_nonfinite: str = "refuse"
    importance: dict[str, np.ndarray] | None = None
