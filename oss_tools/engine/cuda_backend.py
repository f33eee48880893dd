"""The CUDA kernels' backend. A decode step is recorded once into a graph, which is replayed without Python in between.

What changes between passes (tokens, positions, the pages of sequences) lies in arrays on the device that the launches read.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from oss_tools.engine.backend import Backend, Draw, Options, Progress, Run
from oss_tools.errors import BadRequest, MissingPackage, NoRoom, Unsupported, how_to_install
from oss_tools.models import Architecture, Checkpoint
from oss_tools.models.operations import Rope
from oss_tools.sizes import format_size

try:
    from numba_kernels.cuda.attend import attend_kernel
    from numba_kernels.cuda.attention import PAGE
    from numba_kernels.cuda.attention_many import attend_many_kernel, tile_tokens
    from numba_kernels.cuda.blocks import Shape
    from numba_kernels.cuda.device import Device, find_gpu
    from numba_kernels.cuda.rows import choose_kernel
    from numba_kernels.cuda.seam import SIMULATED, CudaMissing, Kernel, NoKernel
    from numba_kernels.cuda.simulated import SimulatedDevice
except ImportError as error:
    raise MissingPackage(f"the GPU needs the package numba-cuda: {how_to_install('cuda')} ({error})") from None

from oss_tools.engine.compiling import compile_all
from oss_tools.engine.cuda_cache import Cache, Pool, cached_values, ring_pages
from oss_tools.engine.cuda_many_tokens import ManyTokens
from oss_tools.engine.cuda_one_token import OneToken
from oss_tools.engine.cuda_values import Floats, Normed
from oss_tools.engine.cuda_weights import CudaWeights, Stack, device_bytes

CHUNK = 2048  # tokens in one pass
OUTPUTS = 64  # rows of logits in one call
SEQUENCES = 64  # in one pass
GRAPHED, PASSES = 64, 64  # tokens of a pass that is worth a graph, and graphs of passes that are kept
CHOOSERS = 2 if SIMULATED else 64  # blocks that look for the largest logit
READERS = ("matvec", "route", "gate_up", "down", "products")  # kernels that read weights
CEILING_ROUNDS = 5
WORK_BYTES = 900_000_000  # the CUDA context, activations of a chunk, logits
POSITION, SEED, TOKEN, TABLES = 0, 1, 4, 8  # places in `Step.numbers`


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


@contextmanager
def _refused() -> Iterator[None]:
    """Makes one line of a shape that the kernels cannot be made for."""
    try:
        yield
    except NoKernel as error:
        raise BadRequest(f"{error}: use --device cpu for this model") from None


def _lying(hidden: Normed | Floats) -> Floats:
    """Where the hidden states lie, which are normalized already or will be."""
    return hidden.x if isinstance(hidden, Normed) else hidden


class Numbers:
    """int32 that change from pass to pass: pinned memory of the host, and the device's copy."""

    def __init__(self, device: Device, size: int) -> None:
        self.device = device
        self.host = device.pinned(size, np.int32)
        self.host[:] = 0
        self.numbers = device.zeros(size, np.int32)
        self._under_way = device.event()

    def wait(self) -> None:
        """Until the host's memory may be changed again."""
        self._under_way.synchronize()

    def send(self) -> None:
        self.device.upload_soon(self.numbers, self.host)
        self.device.mark(self._under_way)


class Step(Numbers):
    """What a decode step is about: position, seed, token, and the tables of pages."""

    def __init__(self, device: Device, pools: dict[int | None, Pool]) -> None:
        self._places: dict[int | None, int] = {}
        size = TABLES
        for window, pool in pools.items():
            self._places[window] = size
            size += pool.shape.ring
        super().__init__(device, size)
        self._rings = {window: pool.shape.ring for window, pool in pools.items()}

    @property
    def state(self) -> Any:
        """Position and seed."""
        return self.numbers[POSITION : SEED + 1]

    @property
    def token(self) -> Any:
        return self.numbers[TOKEN : TOKEN + 1]

    def table(self, window: int | None) -> Any:
        return self.numbers[self._places[window] : self._places[window] + self._rings[window]]

    def fill(self, cache: Cache, token: int, position: int, seed: int = 0) -> None:
        """Sends the numbers of the next step."""
        self.wait()
        self.host[POSITION], self.host[SEED], self.host[TOKEN] = position, seed, token
        for start, numbers in zip(self._places.values(), cache.numbers, strict=True):
            self.host[start : start + len(numbers)] = numbers
        self.send()


class Batch(Numbers):
    """What a pass over many tokens is about: tokens, positions, sequences, tables of pages, tiles of attention.

    Attributes:
        rows: tokens of the last pass.
    """

    def __init__(self, device: Device, pools: dict[int | None, Pool]) -> None:
        self._tables: dict[int | None, int] = {}
        self._tiles: dict[int | None, int] = {}
        self._pools, self.rows = pools, 0
        self._counts: dict[int | None, int] = {}
        size = 3 * CHUNK + OUTPUTS
        for window, pool in pools.items():
            self._tables[window] = size
            size += SEQUENCES * pool.shape.ring
            self._tiles[window] = size
            size += 4 * (CHUNK // tile_tokens(pool.shape) + SEQUENCES)
        super().__init__(device, size)

    @property
    def tokens(self) -> Any:
        return self.numbers[:CHUNK]

    @property
    def positions(self) -> Any:
        return self.numbers[CHUNK : 2 * CHUNK]

    @property
    def sequences(self) -> Any:
        return self.numbers[2 * CHUNK : 3 * CHUNK]

    @property
    def selected(self) -> Any:
        """Rows whose logits are asked for."""
        return self.numbers[3 * CHUNK : 3 * CHUNK + OUTPUTS]

    def tables(self, window: int | None) -> Any:
        return self.numbers[self._tables[window] : self._tiles[window]]

    def tiles(self, window: int | None) -> Any:
        return self.numbers[self._tiles[window] :]

    def tile_count(self, window: int | None) -> int:
        return self._counts[window]

    def fill(self, runs: list[Run]) -> None:
        """Sends the numbers of the next pass."""
        self.wait()
        at = 0
        tiles: dict[int | None, list[int]] = {window: [] for window in self._pools}
        for s, run in enumerate(runs):
            n = len(run.tokens)
            self.host[at : at + n] = run.tokens
            self.host[CHUNK + at : CHUNK + at + n] = np.arange(run.start, run.start + n)
            self.host[2 * CHUNK + at : 2 * CHUNK + at + n] = s
            for (window, pool), numbers in zip(self._pools.items(), run.cache.numbers, strict=True):
                start, step = self._tables[window] + s * pool.shape.ring, tile_tokens(pool.shape)
                self.host[start : start + len(numbers)] = numbers
                for i in range(0, n, step):
                    tiles[window] += [at + i, min(step, n - i), run.start + i, s]
            at += n
        for window, numbers in tiles.items():
            self.host[self._tiles[window] : self._tiles[window] + len(numbers)] = numbers
            self._counts[window] = len(numbers) // 4
        self.rows = at
        self.send()

    def select(self, rows: np.ndarray) -> None:
        """Sends which rows' logits are asked for."""
        self.wait()
        self.host[3 * CHUNK : 3 * CHUNK + len(rows)] = rows
        self.send()


class CudaBackend(Backend):
    """The CUDA kernels on the first GPU."""

    name = "cuda"
    draws = True
    chunk = CHUNK
    rows = OUTPUTS
    sequences = SEQUENCES
    recent = CHUNK
    weights_class = CudaWeights

    def __init__(self, checkpoint: Checkpoint, options: Options, progress: Progress) -> None:
        self.options, self.context = options, options.context
        self.architecture = checkpoint.architecture
        self.layers = self.architecture.attention_layers()
        if options.activations not in ("int8", "f32"):
            raise BadRequest(f"activations {options.activations!r}: there are int8 and f32")
        self.element = "f32" if options.activations == "f32" else "bf16"  # of the KV cache
        self.device = open_device()
        self.weights = self.weights_class(self.device, checkpoint, progress, options.say)
        self._buffers: dict[tuple[str, int, str], Any] = {}
        self._ropes: dict[int, tuple[Rope, tuple[Any, Any]]] = {}
        self._graphs: dict[str, Any] = {}
        self._passes: dict[tuple[Any, ...], Any] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._kernels: dict[str, Kernel] = {}
        self._recorded = False
        self.pools = self._pools()
        self.step = Step(self.device, self.pools)
        self.batch = Batch(self.device, self.pools)
        with _refused():
            self._record()
        self.weights.finish()
        self._compile()
        self._last = 0  # rows of the last pass that was made token by token

    def _pools(self) -> dict[int | None, Pool]:
        windows = dict.fromkeys(h.window for h in self.layers)
        layers = {w: [h for h in self.layers if h.window == w] for w in windows}
        with _refused():
            pools = {
                w: Pool(self.device, hs, self.options.context, CHUNK, self.element, self._moved) for w, hs in layers.items()
            }
            for pool in pools.values():  # before the weights are read
                attend_kernel(pool.shape, 1)
                if self.options.activations != "f32" and not pool.shape.latent:
                    attend_many_kernel(pool.shape)
        return pools

    def _moved(self) -> None:
        """Pages are elsewhere: what was recorded points to memory that is gone."""
        if self._recorded:
            self._forget()
            self._record()

    def _forget(self) -> None:
        """Drops what was recorded in graphs."""
        self._graphs.clear()
        self._passes.clear()
        self._seen.clear()

    def _record(self) -> None:
        """Writes down the passes of one token and of many: to the hidden states, and from them to the logits."""
        self._recorded = True
        self._one = OneToken(self)
        hidden = self.architecture.forward(self._one)
        self._x = _lying(hidden)
        self._head = OneToken(self)
        self._logits = self._head.floats(self.architecture.logits(self._head, hidden))
        self.vocabulary = self._logits.columns
        self._chooser = self.kernel(choose_kernel(2 if SIMULATED else 8))
        if self.options.activations == "f32":
            return  # the tensor cores would round them
        self._many = ManyTokens(self)
        states = self.architecture.forward(self._many)
        self._states = _lying(states)
        self._heads = ManyTokens(self, self.batch.selected, OUTPUTS)
        self._rows_logits = self._heads.floats(self.architecture.logits(self._heads, states))

    def _compile(self) -> None:
        """Compiles all kernels, or takes them from the cache."""
        jobs = [(kernel.name, partial(self.device.prepare, kernel)) for kernel in self._kernels.values()]
        compile_all(jobs, self.options.on_compile)

    # ---- for the recorder -------------------------------------------------------------------------------------------

    def kernel(self, kernel: Kernel) -> Kernel:
        """The kernel, or the one of its name that there already is."""
        return self._kernels.setdefault(kernel.name, kernel)

    def buffer(self, role: str, count: int, dtype: Any) -> Any:
        """Memory for one kind of value, shared by all layers, zero at first."""
        key = (role, count, np.dtype(dtype).name)
        if key not in self._buffers:
            self._buffers[key] = self.device.zeros(count, dtype)
        return self._buffers[key]

    def shape(self, stack: Stack) -> Shape:
        return Shape(stack.format, stack.columns, self.options.activations)

    def rope_tables(self, rope: Rope) -> tuple[Any, Any]:
        """cos and sin for all positions of the context."""
        if id(rope) not in self._ropes:
            cos, sin = rope.tables(self.options.context)
            self._ropes[id(rope)] = (rope, (self.device.array(cos), self.device.array(sin)))
        return self._ropes[id(rope)][1]

    # ---- the backend ------------------------------------------------------------------------------------------------

    @classmethod
    def weight_bytes(cls, checkpoint: Checkpoint, options: Options) -> int:
        return device_bytes(checkpoint, options.activations)

    @classmethod
    def position_bytes(cls, architecture: Architecture, options: Options) -> int:
        width = 4 if options.activations == "f32" else 2
        return sum(width * cached_values(h) for h in architecture.attention_layers() if h.window is None)

    @classmethod
    def require(cls, checkpoint: Checkpoint, options: Options) -> Options:
        """Raises NoRoom with the numbers if weights and cache do not fit into the GPU's free memory; Unsupported without one."""
        cls.refuse_streaming(options)
        device = open_device()
        free, total = device.memory()
        weights = cls.weight_bytes(checkpoint, options)
        width = 4 if options.activations == "f32" else 2
        cache = sum(
            width * cached_values(h) * PAGE * ring_pages(h.window, options.context, CHUNK)
            for h in checkpoint.architecture.attention_layers()
        )
        if weights + cache + WORK_BYTES > free:
            raise NoRoom(
                f"{device.name}: the model needs {format_size(weights + cache + WORK_BYTES)} of its memory (weights "
                f"{format_size(weights)}, KV cache of {options.context} tokens {format_size(cache)}, the rest "
                f"{format_size(WORK_BYTES)}), {format_size(free)} of {format_size(total)} are free; take a smaller --context, "
                f"requantize to fewer bits, or use --device cpu"
            )
        return options

    @classmethod
    def free_bytes(cls) -> int:
        return open_device().memory()[0]

    def open(self, capacity: int) -> Cache:
        cache = Cache(list(self.pools.values()), [[] for _ in self.pools])
        self.grow(cache, capacity)
        return cache

    def grow(self, cache: Cache, capacity: int) -> None:
        for pool, numbers in zip(cache.pools, cache.numbers, strict=True):
            numbers += pool.take(pool.needed(capacity) - len(numbers))

    def fork(self, cache: Cache, length: int, capacity: int) -> Cache:
        other = self.open(max(capacity, length))
        for pool, source, target in zip(cache.pools, cache.numbers, other.numbers, strict=True):
            pool.copy_pages(source[: pool.needed(length)], target)
        return other

    def run(self, runs: list[Run]) -> None:
        rows = sum(len(run.tokens) for run in runs)
        if rows == 1 or self.options.activations == "f32":
            self._run_singly(runs, rows)
        else:
            self.batch.fill(runs)
            counts = tuple(self.batch.tile_count(window) for window in self.pools)
            self._play(("pass", rows, *counts), rows, partial(self._many.play, rows))
            self._last = 0

    def _play(self, launches: tuple[Any, ...], tokens: int, work: Callable[[], None]) -> None:
        """A pass over so many tokens, whose launches are the same whenever `launches` is: few tokens leave the device waiting for
        launches, so the second time they are recorded, and from then on they are one."""
        if tokens > GRAPHED:
            work()
        elif graph := self._passes.get(launches):
            graph.replay()
        elif launches in self._seen:
            self._passes[launches] = self.device.graph(work)  # which carries it out
            if len(self._passes) > PASSES:
                del self._passes[next(iter(self._passes))]
        else:
            self._seen.add(launches)
            work()

    def _run_singly(self, runs: list[Run], rows: int) -> None:
        """Token by token; what becomes of each is kept if there are several."""
        at, columns = 0, self._x.columns
        for run in runs:
            for i, token in enumerate(run.tokens.tolist()):
                self.step.fill(run.cache, token, run.start + i)  # first: recording takes a step, in the pages named there
                self._graph("step", self._one.play).replay()
                if rows > 1:
                    self.device.copy(self._kept, self._x.array, at * columns)
                at += 1
        self._last = rows

    def _graph(self, name: str, work: Callable[[], None]) -> Any:
        if name not in self._graphs:
            self._graphs[name] = self.device.graph(work)
        return self._graphs[name]

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
        graph = self._graph("likeliest", self._choose_likeliest)
        self._bring(int(rows[0]))
        graph.replay()
        return self.device.download(self._choices, 0, 1)

    def drawn(self, rows: np.ndarray, draws: list[Draw]) -> np.ndarray:
        logits = self._logits_of(rows)
        states, settings = self.buffer("draw states", 2 * OUTPUTS, np.int32), self.buffer("draws", OUTPUTS, np.float32)
        self.device.upload(states, np.array([(d.position, d.seed) for d in draws], np.int64).astype(np.int32).reshape(-1))
        inverse = [1 / d.temperature if d.temperature > 0 else 0 for d in draws]
        self.device.upload(settings, np.array(inverse, np.float32))

        def choose() -> None:
            for i in range(len(rows)):
                row = logits[i * self.vocabulary : (i + 1) * self.vocabulary]
                state, place = states[2 * i : 2 * i + 2], self._choices[i : i + 1]
                self._launch_choice(row, state, settings[i : i + 1], place, self._unused)

        self._play(("choices", len(rows), id(logits)), len(rows), choose)
        return self.device.download(self._choices, 0, len(rows))

    def _choose_likeliest(self) -> None:
        """The logits after the one token in hand, and the largest."""
        self._head.play()
        state, greedy = self.buffer("likeliest state", 2, np.int32), self.buffer("likeliest settings", 1, np.float32)
        self._launch_choice(self._logits.array, state, greedy, self._choices, self._unused)

    @property
    def _choices(self) -> Any:
        """Chosen tokens, [OUTPUTS]."""
        return self.buffer("choices", OUTPUTS, np.int32)

    @property
    def _unused(self) -> Any:
        """Where tokens are written that nobody looks for."""
        return self.buffer("unused", 1, np.int32)

    def _bring(self, row: int) -> None:
        """Has the hidden states of a row of the last pass where the head of one token takes them."""
        if self._last != 1:
            source, columns = self._kept if self._last else self._states.array, self._x.columns
            self.device.copy(self._x.array, source[row * columns : (row + 1) * columns])

    def _logits_of(self, rows: np.ndarray) -> Any:
        """Logits of these rows of the last pass, on the device, one row behind another."""
        if len(rows) > 1 and not self._last:
            self.batch.select(rows)
            self._play(("heads", len(rows), self.batch.rows), self.batch.rows, partial(self._heads.play, len(rows)))
            return self._rows_logits.array
        for i, row in enumerate(rows.tolist()):
            graph = self._graph("head", self._head.play)
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
        settings = self.buffer("settings", 1, np.float32)
        self.device.upload(settings, np.array([1 / temperature if temperature > 0 else 0], np.float32))
        self.step.fill(cache, token, start, seed)
        graph = self._graph("generate", lambda: self._generate_one(settings, chosen))
        self.step.fill(cache, token, start, seed)  # again: recording takes a step
        for _ in range(count):
            graph.replay()
        self._last = 1
        return chosen

    def _generate_one(self, settings: Any, chosen: Any) -> None:
        """One step, the logits, and the choice, which becomes the next step's token."""
        self._one.play()
        self._head.play()
        self._launch_choice(self._logits.array, self.step.state, settings, self.step.token, chosen)

    def _launch_choice(self, logits: Any, state: Any, settings: Any, token: Any, history: Any) -> None:
        best, numbers = self.buffer("best", CHOOSERS, np.float32), self.buffer("best numbers", CHOOSERS, np.int32)
        counter = self.buffer("choice counter", 1, np.int32)
        self.device.launch(
            self._chooser, CHOOSERS, logits, self.vocabulary, state, settings, best, numbers, counter, token, history
        )  # fmt: skip

    def read_cache(self, cache: Cache, start: int, stop: int) -> np.ndarray:
        parts = [pool.read(n, start, stop) for pool, n in zip(cache.pools, cache.numbers, strict=True)]
        return np.concatenate(parts, 1)

    def write_cache(self, cache: Cache, start: int, block: np.ndarray) -> None:
        at = 0
        for pool, numbers in zip(cache.pools, cache.numbers, strict=True):
            pool.write(numbers, start, block[:, at : at + pool.width])
            at += pool.width

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
        began = self.device.event()
        return lambda: self.device.seconds(began, self.device.event())

    def device_memory(self) -> dict[str, int]:
        free, total = self.device.memory()
        return {"allocated": self.device.peak, "used": total - free}

    def ceilings(self) -> dict[str, float]:
        """`read` is a copy from the device to the device, bytes read and written; `multiply` the launches of a step that read
        weights, and no others."""
        graph = self._graph("weights", self._read_weights)
        seconds = statistics.median(self._seconds(graph.replay) for _ in range(CEILING_ROUNDS))
        return {"read": self.device.copy_bandwidth(), "multiply": self.weights.bytes_per_token(self.architecture) / seconds}

    def _read_weights(self) -> None:
        self._one.play(only=READERS)
        self._head.play(only=READERS)

    def profile(self, tokens: int) -> list[dict[str, Any]]:
        """Where the time of a step, or of the last pass of so many tokens, goes: for each kernel its launches, by themselves, and
        their seconds together; the longest first."""
        recorders = [("", self._one), ("head ", self._head)] if tokens == 1 else [("", self._many), ("head ", self._heads)]
        found = []
        for prefix, recorder in recorders:
            many = tokens if recorder is not getattr(self, "_heads", None) else 1
            kernels: dict[str, tuple[Kernel, int]] = {}
            for launch in recorder.launches:
                kernel = launch(many)[0]
                kernels[kernel.name] = kernel, kernels.get(kernel.name, (kernel, 0))[1] + 1
            for name, (_, count) in kernels.items():
                graph = self.device.graph(partial(recorder.play, many, named=name))
                seconds = statistics.median(self._seconds(graph.replay) for _ in range(CEILING_ROUNDS))
                found.append({"kernel": prefix + name, "launches": count, "seconds": seconds})
        return sorted(found, key=lambda f: -f["seconds"])

    def _seconds(self, work: Callable[[], Any]) -> float:
        watch = self.stopwatch()
        work()
        return watch()

    def close(self) -> None:
        self._forget()
