"""Where the time of a pass goes on a GPU, by the device's own clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from numba_kernels.cuda.device import Device
from numba_kernels.cuda.seam import Kernel
from oss_tools.engine.cuda_recorder import Recorder

READERS = ("matvec", "route", "gate_up", "down", "products")  # kernels that read weights
ROUNDS = 5


def stopwatch(device: Device) -> Callable[[], float]:
    """What says how many seconds the device has worked since."""
    began = device.event()
    return lambda: device.seconds(began, device.event())


def median_seconds(device: Device, work: Callable[[], Any]) -> float:
    """Of some rounds."""
    return statistics.median(_seconds(device, work) for _ in range(ROUNDS))


def _seconds(device: Device, work: Callable[[], Any]) -> float:
    watch = stopwatch(device)
    work()
    return watch()


def kernel_seconds(device: Device, recorder: Recorder, tokens: int, prefix: str = "") -> list[dict[str, Any]]:
    """For each kernel of a recorded pass over so many tokens its launches, by themselves, and their seconds together."""
    kernels: dict[str, tuple[Kernel, int]] = {}
    for launch in recorder.launches:
        kernel = launch(tokens)[0]
        kernels[kernel.name] = kernel, kernels.get(kernel.name, (kernel, 0))[1] + 1
    found = []
    for name, (_, count) in kernels.items():
        graph = device.graph(partial(recorder.play, tokens, named=name))
        found.append({"kernel": prefix + name, "launches": count, "seconds": median_seconds(device, graph.replay)})
    return found
