"""The kernels that the parts of a run on a GPU need, compiled beforehand: `python -m oss_tools.measure.cuda --compile`.

It needs no GPU and no driver. What it makes lies in the folder that NUMBA_CACHE_DIR names, which can be taken to the machine with
the GPU, so that no second is spent there on compiling.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from numba_kernels.cuda.machine_code import machine_code
from numba_kernels.cuda.planned import PlannedDevice
from numba_kernels.cuda.seam import Kernel
from oss_tools.convert.synth import load_shape, shape_names
from oss_tools.engine import cuda_backend
from oss_tools.errors import BadRequest
from oss_tools.measure import cuda_correctness, cuda_kernels, cuda_speed
from oss_tools.measure.cuda_drawn import drawn_engine
from oss_tools.measure.synthetic import SyntheticCheckpoint
from oss_tools.models import open_checkpoint
from oss_tools.resources import resource

HOPPER = (9, 0)


@contextmanager
def planned(architecture: tuple[int, int]) -> Iterator[PlannedDevice]:
    """A device that notes kernels stands in for the GPU."""
    device, opened = PlannedDevice(architecture), cuda_backend.open_device
    cuda_backend.open_device = lambda: device
    try:
        yield device
    finally:
        cuda_backend.open_device = opened


def kernels_of(parts: Collection[str], architecture: tuple[int, int] = HOPPER) -> list[Kernel]:
    """All kernels that these parts of the run launch."""
    with planned(architecture) as device:
        for part in parts:
            PLANS.get(part, lambda: None)()
        return list(device.kernels.values())


def _timed(shape: str, recipe: str = "") -> None:
    engine = drawn_engine(SyntheticCheckpoint(load_shape(shape), recipe), cuda_speed.WORK.context)
    cuda_speed.timed_prompt(engine, 2)


def _kernels() -> None:
    for _ in cuda_kernels.kernel_speeds():
        continue  # problems are made and launched one by one


def _embedded() -> None:
    with open_checkpoint(resource("tiny/checkpoint")) as checkpoint:
        for activations in ("f32", "int8"):
            drawn_engine(checkpoint, cuda_correctness.CONTEXT, activations)


def _shapes() -> None:
    for changes, recipe in cuda_correctness.SHAPES.values():
        _compared(SyntheticCheckpoint(cuda_correctness.shape_like(changes), recipe), cuda_correctness.LENGTHS)


def _families() -> None:
    for name in shape_names():
        if name.endswith("-tiny"):
            _compared(SyntheticCheckpoint(load_shape(name)), cuda_correctness.SHORT)


def _compared(checkpoint: SyntheticCheckpoint, lengths: cuda_correctness.Lengths) -> None:
    with suppress(BadRequest):  # the part says so
        for activations in ("f32", "int8"):
            drawn_engine(checkpoint, cuda_correctness.context_of(checkpoint, lengths), activations)


PLANS: dict[str, Callable[[], None]] = {
    "tiny": _embedded,
    "shapes": _shapes,
    "families": _families,
    "kernels": _kernels,
    "gpt-oss-20b": partial(_timed, "gpt-oss-20b"),
    "gpt-oss-20b-q8": partial(_timed, "gpt-oss-20b", "mxfp4-q8"),
    "gpt-oss-120b": partial(_timed, "gpt-oss-120b"),
}


def compile_parts(
    parts: Collection[str], say: Callable[[str], None], architecture: tuple[int, int] = HOPPER, processes: int = 0
) -> None:
    """Compiles them, in so many processes, or one for each core. Raises RuntimeError where one of these fails."""
    kernels, count = kernels_of(parts, architecture), processes or len(os.sched_getaffinity(0))
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
