"""The kernels that the parts of a run on a GPU need, compiled beforehand: `python -m oss_tools.measure.cuda --compile`.

It needs no GPU and no driver. What it makes lies in the folder that NUMBA_CACHE_DIR names, which can be taken to the machine with
the GPU, so that no second is spent there on compiling.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from numba_kernels.cuda.machine_code import machine_code
from numba_kernels.cuda.planned import PlannedDevice
from numba_kernels.cuda.seam import Kernel
from oss_tools.convert.synth import load_shape, shape_names
from oss_tools.engine import cuda_backend
from oss_tools.errors import BadRequest
from oss_tools.measure import cuda_kernels, cuda_models
from oss_tools.measure.cuda_drawn import drawn_engine
from oss_tools.measure.synthetic import SyntheticCheckpoint
from oss_tools.models import open_checkpoint
from oss_tools.resources import resource

HOPPER = (9, 0)


@contextmanager
def planned(architecture: tuple[int, int]) -> Iterator[PlannedDevice]:
    """A device that notes kernels stands in for the GPU."""
    device, opened = PlannedDevice(architecture), cuda_backend.open_device
    cuda_backend.open_device = lambda: device  # type: ignore[assignment]
    try:
        yield device
    finally:
        cuda_backend.open_device = opened


def kernels_of_parts(architecture: tuple[int, int] = HOPPER) -> list[Kernel]:
    """All kernels that the parts launch."""
    with planned(architecture) as device:
        for shape, recipe in cuda_models.TIMED:
            work = cuda_models.WORK
            engine = drawn_engine(SyntheticCheckpoint(load_shape(shape), recipe), work.context)
            cuda_models.timed_prompt(engine, 2)
        for _ in cuda_kernels.kernel_speeds():
            pass
        for activations in ("f32", "int8"):
            with open_checkpoint(resource("tiny/checkpoint")) as checkpoint:
                drawn_engine(checkpoint, cuda_models.CONTEXT, activations)
            for changes, recipe in cuda_models.SHAPES.values():
                _compared(SyntheticCheckpoint(cuda_models.shape_like(changes), recipe), cuda_models.LENGTHS, activations)
            for name in shape_names():
                if name.endswith("-tiny"):
                    _compared(SyntheticCheckpoint(load_shape(name)), cuda_models.SHORT, activations)
        return list(device.kernels.values())


def _compared(checkpoint: SyntheticCheckpoint, lengths: cuda_models.Lengths, activations: str) -> None:
    try:
        drawn_engine(checkpoint, cuda_models.context_of(checkpoint, lengths), activations)
    except BadRequest:
        return  # the part says so


def compile_parts(say: Callable[[str], None], architecture: tuple[int, int] = HOPPER, processes: int = 0) -> None:
    """Compiles them, in so many processes, or one for each core."""
    kernels, count = kernels_of_parts(architecture), processes or len(os.sched_getaffinity(0))
    began = time.monotonic()
    context = multiprocessing.get_context("fork")  # the kernels' closures cannot be sent
    workers = [context.Process(target=_compile, args=(kernels[i::count], architecture)) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    failed = sum(worker.exitcode != 0 for worker in workers)
    if failed:
        raise RuntimeError(f"{failed} of {count} processes failed")
    say(f"{len(kernels)} kernels in {time.monotonic() - began:.0f} s, {count} processes: {os.environ['NUMBA_CACHE_DIR']}")


def _compile(kernels: list[Kernel], architecture: tuple[int, int]) -> None:
    for kernel in kernels:
        machine_code(kernel, architecture)
