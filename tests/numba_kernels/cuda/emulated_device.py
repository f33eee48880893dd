"""A device that is none: arrays of NumPy, kernels as the interpreter of PTX runs them, all at once done."""

from __future__ import annotations

from typing import Any

import ptx_machine
from carry_out import ptx

from numba_kernels.cuda.device import Grid
from numba_kernels.cuda.seam import Kernel
from numba_kernels.cuda.simulated import SimulatedDevice


class EmulatedDevice(SimulatedDevice):
    """Without a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.name, self.architecture, self.multiprocessors = "emulated", (9, 0), 64

    def memory(self) -> tuple[int, int]:
        return (1 << 33) - self.allocated, 1 << 33

    def resident(self, kernel: Kernel) -> int:
        return 3

    def launch(self, kernel: Kernel, grid: Grid, *arguments: Any) -> None:
        assert len(arguments) == len(kernel.parameters)
        self.launches += 1
        ptx_machine.launch(ptx(kernel), grid, kernel.threads, arguments)
