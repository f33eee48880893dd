"""The CUDA kernels' backend. A decode step is recorded once into a graph, which is replayed without Python in between.

What changes between steps (the token, its position, the pages of its sequence) lies in arrays on the device that the
recorded launches read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from oss_tools.engine.backend import Backend, Options, Progress, Run
from oss_tools.errors import BadRequest, MissingPackage, NoRoom, Unsupported
from oss_tools.models import Architecture, Checkpoint
from oss_tools.models.operations import Heads, Operations, Rope

try:
    from numba_kernels.cuda.attention import attend_kernel, partial_size
    from numba_kernels.cuda.blocks import Shape
    from numba_kernels.cuda.device import Device, Graph
    from numba_kernels.cuda.experts import down_kernel, gate_up_kernel, route_kernel
    from numba_kernels.cuda.matvec import ADD, SILU, STORE, matvec_kernel
    from numba_kernels.cuda.rows import choose_kernel, embed_kernel
    from numba_kernels.cuda.seam import SIMULATED, CudaMissing, Kernel
except ImportError as error:
    raise MissingPackage(f"the GPU needs the package numba-cuda: pip install 'oss-tools[cuda]' ({error})") from None

from oss_tools.engine.cuda_cache import Cache, Pool, ring_pages
from oss_tools.engine.cuda_weights import Stack, Weights, device_bytes

CHUNK = 512  # tokens in one pass
OUTPUTS = 64  # rows of logits in one call
SEQUENCES = 64  # in one pass
SPLITS = 2 if SIMULATED else 16  # blocks among which a head's positions are divided
WARPS = 2 if SIMULATED else 8  # of a block
CHOOSERS = 2 if SIMULATED else 64  # blocks that look for the largest logit
SWIGLU_ALPHA = np.float32(1.702)  # gpt-oss
WORK_BYTES = 900_000_000  # the CUDA context, activations of a chunk, logits
POSITION, SEED, TOKEN, TABLES = 0, 1, 4, 8  # places in `Step.numbers`


def open_device() -> Device:
    """The GPU. Raises Unsupported, in one line, if there is none that the kernels run on."""
    try:
        return Device()
    except CudaMissing as error:
        raise Unsupported(str(error)) from None


# ---- values ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floats:
    """float32 of one token on the device: elements [start, start + columns) of an array."""

    array: Any
    start: int
    columns: int

    @property
    def view(self) -> Any:
        return self.array[self.start : self.start + self.columns]


@dataclass(frozen=True)
class Normed:
    """x normalized by its root mean square, to be computed by whoever takes it."""

    x: Floats
    weight: Any
    epsilon: float


@dataclass(frozen=True)
class Pending:
    """The output of a layer that is not written yet: `emit` adds it to an array, or stores it there."""

    columns: int
    emit: Callable[[Floats, bool], None]


@dataclass(frozen=True)
class Rotated:
    """A query or key that the attention still has to rotate."""

    x: Floats
    rope: Rope


@dataclass(frozen=True)
class Routing:
    """The experts that the device chose, and what they are to meet."""

    chosen: int
    ids: Any
    shares: Any
    normed: Floats


Value = Any  # one of these


class Step:
    """What a decode step is about, in one array of the device: position, seed, token, and the tables of pages."""

    def __init__(self, device: Device, pools: dict[int | None, Pool]) -> None:
        self.device = device
        self.places: dict[int | None, tuple[int, int]] = {}
        size = TABLES
        for window, pool in pools.items():
            self.places[window] = (size, size + pool.shape.ring)
            size += pool.shape.ring
        self.host = device.pinned(size, np.int32)
        self.host[:] = 0
        self.numbers = device.zeros(size, np.int32)
        self.state = self.numbers[POSITION : SEED + 1]
        self.token = self.numbers[TOKEN : TOKEN + 1]
        self._under_way: Any = None

    def table(self, window: int | None) -> Any:
        start, stop = self.places[window]
        return self.numbers[start:stop]

    def fill(self, cache: Cache, token: int, position: int, seed: int = 0) -> None:
        """Sends the numbers of the next step."""
        if self._under_way is not None:
            self._under_way.synchronize()
        self.host[POSITION], self.host[SEED], self.host[TOKEN] = position, seed, token
        for (start, _), numbers in zip(self.places.values(), cache.numbers, strict=True):
            self.host[start : start + len(numbers)] = numbers
        self.device.upload_soon(self.numbers, self.host)
        self._under_way = self.device.event()


class Recorder(Operations[Value]):
    """Writes operations on one token down as launches, fused where that saves a pass; loads the weights that they name."""

    def __init__(self, model: CudaBackend) -> None:
        self.model = model
        self.launches: list[tuple[Kernel, int | tuple[int, ...], tuple[Any, ...]]] = []

    def play(self) -> None:
        """Puts the launches on the device's stream."""
        for kernel, grid, arguments in self.launches:
            self.model.device.launch(kernel, grid, *arguments)

    def _add(self, kernel: Kernel, grid: int | tuple[int, ...], *arguments: Any) -> None:
        self.launches.append((kernel, grid, arguments))

    def _floats(self, role: str, columns: int) -> Floats:
        return Floats(self.model.buffer(role, columns, np.float32), 0, columns)

    def floats(self, value: Value) -> Floats:
        """A value that lies in memory."""
        if isinstance(value, Floats):
            return value
        if isinstance(value, Pending):
            out = self._floats("output", value.columns)
            value.emit(out, False)
            return out
        raise TypeError(f"a {type(value).__name__} lies nowhere")

    def _source(self, value: Value) -> tuple[Floats, Any, np.float32, bool]:
        """(where x is, norm's weight, epsilon, whether it is to be normalized)."""
        if isinstance(value, Normed):
            return value.x, value.weight, np.float32(value.epsilon), True
        x = self.floats(value)
        return x, x.array, np.float32(0), False

    def _multiply(self, stack: Stack, value: Value, out: Floats, finish: int) -> None:
        x, weight, epsilon, norm = self._source(value)
        kernel = matvec_kernel(
            self.model.shape(stack), norm=norm, bias=stack.bias is not None, finish=finish, warps=WARPS
        )  # fmt: skip
        bias = x.array if stack.bias is None else stack.bias
        grid = self.model.device.blocks(-(-stack.rows // 2), kernel)
        self._add(kernel, grid, stack.codes, stack.scales, bias, x.view, weight, epsilon, stack.rows, out.view)

    # ---- operations -------------------------------------------------------------------------------------------------

    def embed(self, name: str) -> Floats:
        (stack,) = self.model.weights.stacks((name,))
        out = self._floats("x", stack.columns)
        kernel = embed_kernel(stack.format, stack.columns, WARPS)
        grid = (-(-stack.columns // kernel.threads), 1)
        self._add(kernel, grid, stack.codes, stack.scales, self.model.step.token, stack.rows, stack.columns, out.view)
        return out

    def rms_norm(self, x: Value, name: str, epsilon: float) -> Normed:
        return Normed(self.floats(x), self.model.weights.vector(name), epsilon)

    def linear(self, x: Value, name: str) -> Pending:
        (stack,) = self.model.weights.stacks((name,))
        return Pending(stack.rows, lambda out, add: self._multiply(stack, x, out, ADD if add else STORE))

    def linears(self, x: Value, names: tuple[str, ...]) -> tuple[Floats, ...]:
        heights = self.model.weights.heights(names)
        whole, at = self._floats("projections", sum(heights)), 0
        for stack in self.model.weights.stacks(names):
            self._multiply(stack, x, Floats(whole.array, at, stack.rows), STORE)
            at += stack.rows
        edges = np.cumsum([0, *heights]).tolist()
        return tuple(Floats(whole.array, a, height) for a, height in zip(edges, heights, strict=False))

    def gated(self, x: Value, gate: str, up: str) -> Floats:
        (stack,) = self.model.weights.stacks((gate, up), interleave=True)
        out = self._floats("inner", stack.rows // 2)
        self._multiply(stack, x, out, SILU)
        return out

    def rope(self, x: Floats, heads: int, rope: Rope) -> Rotated:
        return Rotated(x, rope)

    def attention(self, query: Rotated, key: Rotated, value: Floats, heads: Heads) -> Floats:
        if query.rope is not key.rope or query.x.array is not value.array or query.x.start:
            raise TypeError("the kernels take queries, keys and values from one projection, rotated alike")
        model, pool = self.model, self.model.pools[heads.window]
        kernel = attend_kernel(pool.shape, SPLITS)
        out = self._floats("attended", heads.queries * heads.size)
        partial = model.buffer("parts", partial_size(pool.shape, SPLITS), np.float32)
        counters = model.buffer("counters", heads.keys, np.int32)
        cos, sin = model.rope_tables(query.rope)
        sinks = model.weights.vector(heads.sinks) if heads.sinks else cos
        self._add(
            kernel, (heads.keys, SPLITS), query.x.array, cos, sin, np.float32(1 / math.sqrt(heads.size)), sinks,
            pool.memory[heads.layer], model.step.table(heads.window), model.step.state, partial, counters, out.view,
        )  # fmt: skip
        return out

    def route(self, x: Value, name: str, chosen: int) -> Routing:
        (stack,) = self.model.weights.stacks((name,))
        source, weight, epsilon, norm = self._source(x)
        kernel = route_kernel(
            self.model.shape(stack), experts=stack.rows, top=chosen, norm=norm, bias=stack.bias is not None, warps=WARPS
        )  # fmt: skip
        logits, normed = self._floats("router", stack.rows), self._floats("normed", stack.columns)
        ids, shares = self.model.buffer("ids", chosen, np.int32), self.model.buffer("shares", chosen, np.float32)
        counter = self.model.buffer("counters", 1, np.int32)
        bias = source.array if stack.bias is None else stack.bias
        grid = self.model.device.blocks(-(-stack.rows // 2), kernel)
        self._add(
            kernel, (grid, 1), stack.codes, stack.scales, bias, source.view, source.columns, weight, epsilon, logits.view, counter, normed.view, ids,
            shares,
        )  # fmt: skip
        return Routing(chosen, ids, shares, normed)

    def experts(self, x: Value, routing: Routing, name: str, limit: float) -> Pending:
        (first,) = self.model.weights.stacks((f"{name}.gate_up_proj",))
        (second,) = self.model.weights.stacks((f"{name}.down_proj",))
        inner, top = first.rows // 2, routing.chosen
        between = self._floats("inner", top * inner)
        kernel = gate_up_kernel(self.model.shape(first), top=top, bias=first.bias is not None, warps=WARPS)
        bias = between.array if first.bias is None else first.bias
        grid = self.model.device.blocks(top * inner, kernel)
        self._add(
            kernel, grid, first.codes, first.scales, bias, routing.normed.view, routing.ids, inner, inner, np.float32(limit),
            SWIGLU_ALPHA, between.view,
        )  # fmt: skip
        return Pending(second.rows, lambda out, add: self._down(second, between, routing, out, add))

    def _down(self, stack: Stack, between: Floats, routing: Routing, out: Floats, add: bool) -> None:
        if not add:
            raise TypeError("the experts' outputs are only added to something")
        kernel = down_kernel(self.model.shape(stack), top=routing.chosen, bias=stack.bias is not None, warps=WARPS)
        bias = between.array if stack.bias is None else stack.bias
        grid = self.model.device.blocks(stack.rows, kernel)
        self._add(
            kernel, grid, stack.codes, stack.scales, bias, between.view, stack.columns, routing.ids, routing.shares, stack.rows,
            out.view,
        )  # fmt: skip

    def add(self, x: Floats, y: Value) -> Floats:
        if not isinstance(y, Pending):
            raise TypeError("only outputs of layers are added")
        y.emit(x, True)
        return x


# ---- the backend ----------------------------------------------------------------------------------------------------


class CudaBackend(Backend):
    """The CUDA kernels on the first GPU."""

    name = "cuda"
    chunk = CHUNK
    rows = OUTPUTS
    sequences = SEQUENCES
    recent = CHUNK

    def __init__(self, checkpoint: Checkpoint, options: Options, progress: Progress) -> None:
        self.options = options
        self.architecture = checkpoint.architecture
        self.layers = self.architecture.attention_layers()
        if options.activations not in ("int8", "f32"):
            raise BadRequest(f"activations {options.activations!r}: there are int8 and f32")
        self.element = "f32" if options.activations == "f32" else "bf16"  # of the KV cache
        self.device = open_device()
        self.weights = Weights(self.device, checkpoint, progress, options.say)
        self._buffers: dict[tuple[str, int], Any] = {}
        self._ropes: dict[int, tuple[Rope, tuple[Any, Any]]] = {}
        self._graphs: dict[str, Graph] = {}
        self.pools = self._pools()
        self.step = Step(self.device, self.pools)
        self._record()
        self.weights.finish()

    def _pools(self) -> dict[int | None, Pool]:
        windows = dict.fromkeys(h.window for h in self.layers)
        layers = {w: [h for h in self.layers if h.window == w] for w in windows}
        try:
            return {
                w: Pool(self.device, hs, self.options.context, CHUNK, self.element, self._moved) for w, hs in layers.items()
            }
        except ValueError as error:
            raise BadRequest(f"{error}: use --device cpu for this model") from None

    def _moved(self) -> None:
        """Pages are elsewhere: what was recorded points to memory that is gone."""
        if self._graphs:
            self._graphs.clear()
            self._record()

    def _record(self) -> None:
        """Writes down the passes of one token: to the hidden states, and from them to the logits."""
        self._one = Recorder(self)
        hidden = self.architecture.forward(self._one)
        self._x = hidden.x
        self._head = Recorder(self)
        self._logits = self._head.floats(self.architecture.logits(self._head, hidden))
        self.vocabulary = self._logits.columns

    # ---- for the recorder -------------------------------------------------------------------------------------------

    def buffer(self, role: str, count: int, dtype: Any) -> Any:
        """Memory for one kind of value, shared by all layers, zero at first."""
        if (role, count) not in self._buffers:
            self._buffers[role, count] = self.device.zeros(count, dtype)
        return self._buffers[role, count]

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
        return device_bytes(checkpoint)

    @classmethod
    def position_bytes(cls, architecture: Architecture, options: Options) -> int:
        width = 4 if options.activations == "f32" else 2
        return sum(2 * width * h.keys * h.size for h in architecture.attention_layers() if h.window is None)

    @classmethod
    def require(cls, checkpoint: Checkpoint, options: Options) -> None:
        """Raises NoRoom with the numbers if weights and cache do not fit into the GPU's free memory, Unsupported without a GPU."""
        device = open_device()
        free, total = device.memory()
        weights = cls.weight_bytes(checkpoint, options)
        width = 4 if options.activations == "f32" else 2
        cache = sum(
            2 * width * h.keys * h.size * 64 * ring_pages(h.window, options.context, CHUNK)
            for h in checkpoint.architecture.attention_layers()
        )
        if weights + cache + WORK_BYTES > free:
            raise NoRoom(
                f"{device.name}: the model needs {(weights + cache + WORK_BYTES) / 1e9:.1f} GB of its memory (weights "
                f"{weights / 1e9:.2f} GB, KV cache of {options.context} tokens {cache / 1e9:.2f} GB, the rest "
                f"{WORK_BYTES / 1e9:.1f} GB), {free / 1e9:.1f} of {total / 1e9:.1f} GB are free; take a smaller --context, "
                f"requantize to fewer bits, or use --device cpu"
            )

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
        self._rows = rows
        at = 0
        for run in runs:
            for i, token in enumerate(run.tokens.tolist()):
                self.step.fill(run.cache, token, run.start + i)
                self._graph("step", self._one.play).replay()
                if rows > 1:
                    self.device.copy(self._hidden, self._x.view, at * self._x.columns)
                at += 1

    def _graph(self, name: str, work: Callable[[], None]) -> Graph:
        if name not in self._graphs:
            self._graphs[name] = self.device.graph(work)
        return self._graphs[name]

    @property
    def _hidden(self) -> Any:
        """The hidden states of a pass, [CHUNK, columns]."""
        return self.buffer("hidden", CHUNK * self._x.columns, np.float32)

    def logits(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.vocabulary), np.float32)
        for i, row in enumerate(rows.tolist()):
            if self._rows > 1:
                columns = self._x.columns
                self.device.copy(self._x.view, self._hidden[row * columns : (row + 1) * columns])
            self._graph("head", self._head.play).replay()
            out[i] = self.device.download(self._logits.array, 0, self.vocabulary)
        return out

    def read_cache(self, cache: Cache, start: int, stop: int) -> np.ndarray:
        parts = [pool.read(n, start, stop) for pool, n in zip(cache.pools, cache.numbers, strict=True)]
        return np.concatenate(parts, 1)

    def write_cache(self, cache: Cache, start: int, block: np.ndarray) -> None:
        at = 0
        for pool, numbers in zip(cache.pools, cache.numbers, strict=True):
            pool.write(numbers, start, block[:, at : at + pool.width])
            at += pool.width

    def facts(self) -> dict[str, Any]:
        free, total = self.device.memory()
        return {
            "kernels": f"numba-cuda sm_{''.join(map(str, self.device.architecture))}",
            "device": self.device.name,
            "driver": self.device.driver,
            "threads": 0,
            "activations": self.options.activations,
            "weight_bytes": self.weights.bytes_by_format(),
            "bytes_per_token": self.weights.bytes_per_token(self.architecture),
            "device_allocated_peak": self.device.peak,
            "device_memory_used": total - free,
        }

    def close(self) -> None:
        self._graphs.clear()
