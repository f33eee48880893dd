"""The CUDA kernels' backend. A decode step is recorded once into a graph, which is replayed without Python in between."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from oss_tools.engine.backend import Backend, Draw, Options, Progress, Run
from oss_tools.errors import MissingPackage, Unsupported, how_to_install
from oss_tools.models import Architecture, Checkpoint

try:
    from numba_kernels.cuda.device import Device
    from numba_kernels.cuda.driver import find_gpu
    from numba_kernels.cuda.seam import SIMULATED, CudaMissing
    from numba_kernels.cuda.simulated import SimulatedDevice
except ImportError as error:
    raise MissingPackage(f"the GPU needs the package numba-cuda: {how_to_install('cuda')} ({error})") from None

from oss_tools.engine.cuda_cache import Cache
from oss_tools.engine.cuda_inputs import CHUNK, OUTPUTS, SEQUENCES
from oss_tools.engine.cuda_model import RecordedModel
from oss_tools.engine.cuda_profiling import READERS, kernel_seconds, median_seconds, stopwatch
from oss_tools.engine.cuda_room import position_bytes, require_room
from oss_tools.engine.cuda_weights import device_bytes


def open_device() -> Device:
    """The GPU. Raises Unsupported, in one line, if there is none that the kernels run on."""
    try:
        return SimulatedDevice() if SIMULATED else Device()
    except CudaMissing as error:
        raise Unsupported(str(error)) from None


def check_device() -> None:
    """Raises Unsupported, in one line, if there is no GPU that the kernels run on. Takes none of its memory."""
    try:
        find_gpu()
    except CudaMissing as error:
        raise Unsupported(str(error)) from None


class CudaBackend(RecordedModel, Backend):
    """The CUDA kernels on the first GPU."""

    name = "cuda"
    draws = True
    chunk = CHUNK
    rows = OUTPUTS
    sequences = SEQUENCES
    recent = CHUNK

    def __init__(self, checkpoint: Checkpoint, options: Options, progress: Progress) -> None:
        super().__init__(open_device(), checkpoint, options, progress)
        self._last = 0  # rows of the last pass that was made token by token

    @classmethod
    def weight_bytes(cls, checkpoint: Checkpoint, options: Options) -> int:
        return device_bytes(checkpoint, options.activations)

    @classmethod
    def position_bytes(cls, architecture: Architecture, options: Options) -> int:
        return position_bytes(architecture, options)

    @classmethod
    def require(cls, checkpoint: Checkpoint, options: Options) -> Options:
        """Raises NoRoom with the numbers if weights and cache do not fit into the GPU's free memory; Unsupported without one."""
        cls.refuse_streaming(options)
        require_room(open_device(), checkpoint.architecture, options, cls.weight_bytes(checkpoint, options))
        return options

    @classmethod
    def free_bytes(cls) -> int:
        return open_device().memory()[0]

    def open(self, capacity: int) -> Cache:
        cache = Cache(list(self.pools.values()), [[] for _ in self.pools])
        cache.grow(capacity)
        return cache

    def grow(self, cache: Cache, capacity: int) -> None:
        cache.grow(capacity)

    def fork(self, cache: Cache, length: int, capacity: int) -> Cache:
        other = self.open(max(capacity, length))
        cache.copy_to(other, length)
        return other

    def run(self, runs: list[Run]) -> None:
        rows = sum(len(run.tokens) for run in runs)
        if rows == 1 or self.options.activations == "f32":
            self._run_singly(runs, rows)
        else:
            self.batch.fill(runs)
            counts = tuple(self.batch.tile_count(window) for window in self.pools)
            self._graphs.play(("pass", rows, *counts), rows, partial(self._many.play, rows))
            self._last = 0

    def _run_singly(self, runs: list[Run], rows: int) -> None:
        """Token by token; what becomes of each is kept if there are several."""
        at, columns = 0, self._x.columns
        for run in runs:
            for i, token in enumerate(run.tokens.tolist()):
                self.step.fill(run.cache, token, run.start + i)  # first: recording takes a step, in the pages named there
                self._graphs.named("step", self._one.play).replay()
                if rows > 1:
                    self.device.copy(self._kept, self._x.array, at * columns)
                at += 1
        self._last = rows

    @property
    def _kept(self) -> Any:
        """The hidden states of a pass that was made token by token, [CHUNK, columns]."""
        return self.buffer("kept", CHUNK * self._x.columns, np.float32)

    def logits(self, rows: np.ndarray) -> np.ndarray:
        found = self.device.download(self._logits_of(rows), 0, len(rows) * self.vocabulary)
        return found.reshape(len(rows), self.vocabulary)

    def likeliest(self, rows: np.ndarray) -> np.ndarray:
        """Chosen on the device: four bytes a row are sent."""
        if len(rows) > 1:
            return self.drawn(rows, [Draw(0, 0, 0)] * len(rows))
        graph = self._graphs.named("likeliest", self._choose_likeliest)
        self._bring(int(rows[0]))
        graph.replay()
        return self._sampler.chosen(1)

    def _choose_likeliest(self) -> None:
        """The logits after the one token in hand, and the largest."""
        self._head.play()
        self._sampler.choose_likeliest(self._logits.array)

    def drawn(self, rows: np.ndarray, draws: list[Draw]) -> np.ndarray:
        logits, count = self._logits_of(rows), len(rows)
        self._sampler.send(draws)
        self._graphs.play(("choices", count, id(logits)), count, partial(self._sampler.choose, logits, count))
        return self._sampler.chosen(count)

    def _bring(self, row: int) -> None:
        """Has the hidden states of a row of the last pass where the head of one token takes them."""
        if self._last != 1:
            source, columns = self._kept if self._last else self._states.array, self._x.columns
            self.device.copy(self._x.array, source[row * columns : (row + 1) * columns])

    def _logits_of(self, rows: np.ndarray) -> Any:
        """Logits of these rows of the last pass, on the device, one row behind another."""
        if len(rows) > 1 and not self._last:
            self.batch.select(rows)
            self._graphs.play(("heads", len(rows), self.batch.rows), self.batch.rows, partial(self._heads.play, len(rows)))
            return self._rows_logits.array
        for i, row in enumerate(rows.tolist()):
            graph = self._graphs.named("head", self._head.play)
            self._bring(row)
            graph.replay()
            if len(rows) > 1:
                together = self.buffer("rows of logits", OUTPUTS * self.vocabulary, np.float32)
                self.device.copy(together, self._logits.array, i * self.vocabulary)
        return together if len(rows) > 1 else self._logits.array

    # ---- generation without the host --------------------------------------------------------------------------------

    def generate(
        self, cache: Cache, token: int, start: int, count: int, temperature: float = 0.0, seed: int = 0
    ) -> np.ndarray:
        """`count` tokens that follow `token`, which stands at position `start`, int32 [count]: the likeliest ones, or drawn. The
        device chooses them itself, and nothing waits for the host in between."""
        chosen = self.enqueue(cache, token, start, count, temperature, seed)
        found = self.device.download(chosen)
        return found[np.arange(start, start + count) % len(found)]

    def enqueue(self, cache: Cache, token: int, start: int, count: int, temperature: float = 0.0, seed: int = 0) -> Any:
        """The same put on the stream; returns where the token after position p will be: at p modulo the array's length."""
        chosen = self.buffer("chosen", max(self.options.context, CHUNK), np.int32)
        settings = self._sampler.constant(temperature)
        self.step.fill(cache, token, start, seed)
        graph = self._graphs.named("generate", lambda: self._generate_one(settings, chosen))
        self.step.fill(cache, token, start, seed)  # again: recording takes a step
        for _ in range(count):
            graph.replay()
        self._last = 1
        return chosen

    def _generate_one(self, settings: Any, chosen: Any) -> None:
        """One step, the logits, and the choice, which becomes the next step's token."""
        self._one.play()
        self._head.play()
        self._sampler.launch(self._logits.array, self.step.state, settings, self.step.token, chosen)

    def read_cache(self, cache: Cache, start: int, stop: int) -> np.ndarray:
        return cache.read(start, stop)

    def write_cache(self, cache: Cache, start: int, block: np.ndarray) -> None:
        cache.write(start, block)

    def facts(self) -> dict[str, Any]:
        return {
            "kernels": f"numba-cuda sm_{''.join(map(str, self.device.architecture))}",
            "device": self.device.name,
            "driver": self.device.driver,
            "threads": 0,
            "activations": self.options.activations,
            "weight_bytes": self.weights.bytes_by_format(),
            "bytes_per_token": self.weights.bytes_per_token(self.architecture),
        }

    def stopwatch(self) -> Callable[[], float]:
        return stopwatch(self.device)

    def device_memory(self) -> dict[str, int]:
        free, total = self.device.memory()
        return {"allocated": self.device.peak, "used": total - free}

    def ceilings(self) -> dict[str, float]:
        """`read` is a copy from the device to the device, bytes read and written; `multiply` the launches of a step that read
        weights, and no others."""
        graph = self._graphs.named("weights", self._read_weights)
        seconds = median_seconds(self.device, graph.replay)
        return {"read": self.device.copy_bandwidth(), "multiply": self.weights.bytes_per_token(self.architecture) / seconds}

    def _read_weights(self) -> None:
        self._one.play(only=READERS)
        self._head.play(only=READERS)

    def profile(self, tokens: int) -> list[dict[str, Any]]:
        """Where the time of a step, or of the last pass of so many tokens, goes: for each kernel its launches, by themselves, and
        their seconds together; the longest first."""
        if tokens == 1:
            passes = [*kernel_seconds(self.device, self._one, 1), *kernel_seconds(self.device, self._head, 1, "head ")]
        else:
            passes = [
                *kernel_seconds(self.device, self._many, tokens),
                *kernel_seconds(self.device, self._heads, 1, "head "),
            ]
        return sorted(passes, key=lambda found: -found["seconds"])

    def close(self) -> None:
        self._graphs.clear()
