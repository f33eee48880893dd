"""How fast this machine reads memory: the ceiling of token generation."""

from __future__ import annotations

from numba_kernels.cpu.huge_pages import empty_bytes
from numba_kernels.cpu.probe import rate, reading
from numba_kernels.cpu.team import Team

BYTES = 256 << 20  # larger than any cache that a core reaches


def read_bandwidth(threads: int, seconds: float = 0.5) -> float:
    """Bytes per second that `threads` threads read together: the median over repeated reads of 256 MiB."""
    memory = empty_bytes(BYTES)
    memory[::4096] = 1  # pages that were never written are all one page
    team = Team(threads)
    try:
        return rate(team, *reading([memory]), seconds)
    finally:
        team.close()
