"""What this machine has: memory, graphics memory, disk, the speed of memory. Or a machine as the user describes it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from oss_tools.machine.memory import available_memory

TIGHT = 0.9  # of what is there: beyond this the rest of the system begins to suffer


@dataclass(frozen=True)
class Machine:
    """Bytes, and bytes per second.

    Attributes:
        ram: memory that a model may take: what is free now, or as given.
        vram: the largest graphics card's memory, or None without one.
        disk: free where checkpoints would lie; None for a machine that was described without it.
        bandwidth: what all threads together read from memory, or None if unknown.
        disk_speed: what the disk gives, or None if unknown.
        threads: that run the model.
        detected: which of these were found out and not given.
    """

    ram: int
    vram: int | None
    disk: int | None
    bandwidth: float | None
    threads: int
    detected: frozenset[str] = frozenset()
    disk_speed: float | None = None

    def memory_verdict(self, needed: int) -> str:
        """`fits`, `tight` or `no`."""
        return verdict(needed, self.ram)

    def device_verdict(self, needed: int) -> str:
        """The same for the graphics card; "" without one."""
        return verdict(needed, self.vram) if self.vram else ""

    def disk_holds(self, needed: int) -> bool:
        """Whether the disk has so much room, as far as is known."""
        return self.disk is None or needed <= self.disk


def verdict(needed: int, there: int) -> str:
    return "no" if needed > there else "tight" if needed > TIGHT * there else "fits"


def detect(
    folder: Path,
    *,
    ram: int | None = None,
    vram: int | None = None,
    disk: int | None = None,
    bandwidth: float | None = None,
    disk_speed: float | None = None,
    threads: int = 0,
    measure: bool = True,
) -> Machine:
    """What is not given is found out (of another machine, whose memory is given, not the disk). The memory's speed is
    measured, for half a second, if `measure`.

    `folder`: where checkpoints would lie; it need not exist yet.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    threads = threads or (len(affinity(0)) if affinity else os.cpu_count() or 1)
    given = {"ram": ram, "vram": vram, "disk": disk, "bandwidth": bandwidth, "disk_speed": disk_speed}
    if bandwidth is None and measure:
        from oss_tools.machine.bandwidth import read_bandwidth

        bandwidth = read_bandwidth(threads)
    if disk is None and ram is None and vram is None:
        disk = shutil.disk_usage(next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())).free
    return Machine(
        ram=available_memory() if ram is None else ram,
        vram=graphics_memory() if vram is None else vram,
        disk=disk,
        bandwidth=bandwidth,
        threads=threads,
        detected=frozenset(name for name, value in given.items() if value is None),
        disk_speed=disk_speed,
    )


def graphics_memory() -> int | None:
    """The largest NVIDIA card's memory, as its driver says; None without one."""
    env = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}  # no tokens
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=env).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    sizes = [int(line) << 20 for line in answer.split() if line.isdigit()]
    return max(sizes, default=None)
