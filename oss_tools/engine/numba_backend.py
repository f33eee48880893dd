"""The kernels' backend: a forward pass is recorded once into a program that a team of threads replays without Python.

Two programs are recorded: one for a single token, where every matrix meets one vector, and one for any number of tokens
up to `CHUNK`. What changes between replays (how many rows, their tokens, positions and pages) lies in arrays that
the program points to, or in arguments that `Replay` patches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import numba_kernels  # noqa: F401  (sets where compiled code is kept, before anything is compiled)
from numba_kernels.cpu.attention import attention_scratch
from numba_kernels.cpu.probe import multiplying, rate, reading
from numba_kernels.cpu.team import Program, Team
from numba_kernels.parallel import cores
from numba_kernels.simd import ACTIVE
from numba_kernels.simd import path as simd_path
from oss_tools.engine.backend import Backend, Options, Progress, Run
from oss_tools.engine.numba_cache import SEQUENCES, Cache, Passing, Pool, parts
from oss_tools.engine.numba_compiling import compile_kernels
from oss_tools.engine.numba_pages import POSITIONS, pages_for, pages_of
from oss_tools.engine.numba_recorder import Recorder
from oss_tools.engine.numba_replay import Replay
from oss_tools.engine.numba_values import CHUNK, OUTPUTS, Buffers, State, Value
from oss_tools.engine.numba_weights import TRANSPOSED, NumbaWeights, bytes_by_format, kernel_bytes
from oss_tools.engine.stream.choice import choose
from oss_tools.engine.stream.replaying import Streaming
from oss_tools.engine.stream.streamed import StreamedExperts
from oss_tools.engine.stream.trace import trace_writer
from oss_tools.errors import BadRequest
from oss_tools.machine import memory
from oss_tools.models import Architecture, Checkpoint
from oss_tools.models.operations import Rope
from oss_tools.sizes import format_size

PIECES = 1024  # of attention whose keys are divided among threads, at most
MANY, PART = 64, 16  # with so many tokens, a program is replayed in parts of so many operations


class NumbaBackend(Backend):
    """The Numba kernels on the CPU."""

    name = "numba"
    streams = True
    rewinds = True
    keeps_prompts = True
    chunk = CHUNK
    rows = OUTPUTS
    sequences = SEQUENCES

    def __init__(self, checkpoint: Checkpoint, options: Options, progress: Progress) -> None:
        self.options = options
        self.architecture = checkpoint.architecture
        self._trace = trace_writer(options.trace_experts, self.architecture) if options.trace_experts else None
        self.layers = self.architecture.attention_layers()
        if options.activations not in ("int8", "bf16", "f32"):
            raise BadRequest(f"activations {options.activations!r}: there are int8, bf16 and f32")
        self.element = options.element
        # Dense layers take a scale for each 16 values, which halves the divergence that quantizing costs; experts, where most of
        # the arithmetic is, one for 32. Matrices in floats take float32, or bf16 where that is wanted.
        self.dense_kind = "f32" if options.activations == "f32" else "int8_g16"
        self.threads = options.threads or cores()
        self.buffers = Buffers()
        if options.activations == "bf16" and not ACTIVE.multiplies_bf16:
            options.say(f"{simd_path()} has no products of bf16: activations are rounded to it, which saves no time here")
        transposed = {"f32": "f32", "bf16": "bf16"}.get(options.activations, TRANSPOSED)
        plan, mapped = options.streaming, options.load == "mapped" and not options.streaming
        self.weights = NumbaWeights(checkpoint, self.threads, options.say, transposed, mapped, options.activations)
        self.streamed = StreamedExperts(plan, checkpoint, self.weights) if plan else None
        self.pools = self._pools()
        self.recent = min((max(w - 1, 1) for w in self.pools if w), default=self.chunk)
        self.state = State()
        self._ropes: dict[int, tuple[Rope, tuple[np.ndarray, np.ndarray]]] = {}
        self._areas: dict[int, dict[str, Any]] = {}
        self._kept: list[Value] = []
        self._one, self._one_head = self._record(1)
        self._many, self._many_head = self._record(CHUNK)
        programs = (self._one.program, self._one_head, self._many.program, self._many_head)
        formats = {*self.weights.formats, *(self.streamed.formats if self.streamed else ())}
        compile_kernels(programs, list(self.pools.values()), sorted(formats), self.threads, options)
        self.weights.load(progress)
        if self.weights.mapped_bytes > (free := memory.available_memory()):
            options.say(
                f"the weights ({format_size(self.weights.mapped_bytes)}) are larger than the free memory ({format_size(free)}): "
                "parts of them are read from the disk again for every token"
            )
        self.team = Team(self.threads)
        self._last = self._many_head
        self._passing: list[Passing] = []  # where the last pass worked, of sliding layers
        self._streaming = Streaming(self.team, self.streamed.cache if self.streamed else None, self._trace)
        self._has_stops = self._trace is not None or self.streamed is not None

    def _pools(self) -> dict[int | None, Pool]:
        windows = dict.fromkeys(h.window for h in self.layers)
        options = self.options.context, CHUNK, self.element
        try:
            return {w: Pool([h for h in self.layers if h.window == w], *options) for w in windows}
        except ValueError as error:
            raise BadRequest(f"{error}: use --backend torch for this model") from None

    def _record(self, rows: int) -> tuple[Replay, Program]:
        """The programs for passes of one token or of many: to the hidden states, and from them to the logits."""
        recorder = Recorder(self, rows)
        hidden = self.architecture.forward(recorder)
        head = Recorder(self, rows, OUTPUTS)
        head.dense = self.state.output_rows
        logits = self.architecture.logits(head, hidden)
        self._kept += [hidden, logits]
        self.vocabulary = logits.columns
        return Replay(recorder, self.streamed.bases if self.streamed else {}), head.program

    # ---- for the recorder -------------------------------------------------------------------------------------------

    def rope_tables(self, rope: Rope) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin for all positions of the context."""
        if id(rope) not in self._ropes:
            self._ropes[id(rope)] = (rope, rope.tables(self.options.context))
        return self._ropes[id(rope)][1]

    def scratch(self, size: int) -> dict[str, Any]:
        """Memory for attention whose keys are divided."""
        if size not in self._areas:
            self._areas[size] = attention_scratch(PIECES, size)
        return self._areas[size]

    # ---- the backend ------------------------------------------------------------------------------------------------

    @classmethod
    def weight_bytes(cls, checkpoint: Checkpoint, options: Options) -> int:
        return kernel_bytes(checkpoint, options.load == "mapped", options.activations)

    @classmethod
    def position_bytes(cls, architecture: Architecture, options: Options) -> int:
        layers = [h for h in architecture.attention_layers() if h.window is None]
        return sum(pages_for(h, options.element).nbytes // POSITIONS for h in layers)

    @classmethod
    def context_bytes(cls, architecture: Architecture, options: Options) -> int:
        """Bytes of memory that the keys and values of one sequence of the whole context take in all layers."""
        element = options.element
        return sum(
            pages_for(h, element).nbytes * pages_of(min(h.window or options.context, options.context))
            for h in architecture.attention_layers()
        )

    @classmethod
    def require(cls, checkpoint: Checkpoint, options: Options) -> Options:
        """Raises NoRoom if the model does not fit, not even with experts that stream; which of both, the options say then.
        BadRequest for a KV cache that its layers cannot have."""
        return choose(checkpoint, options, cls.context_bytes(checkpoint.architecture, options), super().require)

    def open(self, capacity: int) -> Cache:
        return Cache(self.pools, {w: pool.take(pool.needed(capacity)) for w, pool in self.pools.items()})

    def grow(self, cache: Cache, capacity: int) -> None:
        for window, pool in self.pools.items():
            numbers = cache.numbers[window]
            numbers += pool.take(pool.needed(capacity) - len(numbers))

    def fork(self, cache: Cache, length: int, capacity: int) -> Cache:
        return Cache(self.pools, {w: p.fork(cache.numbers[w], length, capacity) for w, p in self.pools.items()})

    def run(self, runs: list[Run]) -> None:
        if self.streamed:
            self.streamed.make_room(sum(pool.nbytes for pool in self.pools.values()))
        rows = self.state.fill(runs)
        replay, self._last = (self._one, self._one_head) if rows == 1 else (self._many, self._many_head)
        places = {window: pool.lay_out(runs) for window, pool in self.pools.items()}
        replay.set_rows(rows)
        replay.set_attention("sequences", dict.fromkeys(self.pools, len(runs)))
        divided = self._is_divided(runs, replay.tile_rows)
        replay.set_attention("divided", {window: not window and divided for window in self.pools})
        replay.set_pages(places)
        self._passing = [place for place in places.values() if isinstance(place, Passing)]
        for place in self._passing:
            self.team.run(place.copying(back=False))
        if self._has_stops:
            self._streaming.run(replay.stops, rows, self._check)
        else:
            self._replay(replay.program, rows)
        self._copy_back()
        self._check()

    def _copy_back(self) -> None:
        for place in self._passing:
            self.team.run(place.copying(back=True))

    def rewind(self, ends: list[tuple[Cache, int]]) -> None:
        for place in self._passing:  # elsewhere what is behind the end is neither read nor in the way of what will be
            place.rewind(ends)
        self._copy_back()

    def _check(self) -> None:
        """Raises BadCheckpoint if a file that weights come from is not what it was."""
        self.weights.check()
        if self.streamed:
            self.streamed.check()

    def _replay(self, program: Program, rows: int) -> None:
        """Replays a program, a long one in parts: between them an interrupt (Ctrl-C) is heard."""
        count = len(program.ops)
        part = count if rows < MANY else PART
        for first in range(0, count, part):
            self.team.run(program, first, first + part)

    def _is_divided(self, runs: list[Run], tile_rows: int) -> bool:
        """Whether the keys of a tile are divided, so that all threads have work."""
        h = self.layers[0]
        tiles = sum(-(-len(r.tokens) * (h.queries // h.keys) // tile_rows) for r in runs) * h.keys
        return tiles % self.threads != 0 and tiles < 8 * self.threads

    def logits(self, rows: np.ndarray) -> np.ndarray:
        n = len(rows)
        self.state.outputs[:n] = rows
        self.state.output_rows["group_start"][1] = n
        self.team.run(self._last)
        self._check()
        logits = self._kept[1 if self._last is self._one_head else 3]
        return logits.floats[:n, : self.vocabulary]

    def cache_row(self) -> tuple[int, np.dtype[Any]]:
        return sum(pool.width for pool in self.pools.values()), next(iter(self.pools.values())).dtype

    def is_finite(self, block: np.ndarray) -> bool:
        return all(pool.is_finite(rows) for pool, rows in parts(self.pools, block))

    def read_cache(self, cache: Cache, start: int, stop: int) -> np.ndarray:
        width, dtype = self.cache_row()
        block = np.empty((stop - start, width), dtype)
        program = Program()
        for pool, rows in parts(self.pools, block):
            pool.reading(program, cache, start, rows)
        self.team.run(program)
        return block

    def write_cache(self, cache: Cache, start: int, block: np.ndarray) -> None:
        program = Program()
        for pool, rows in parts(self.pools, block):
            pool.writing(program, cache, start, rows)
        self.team.run(program)

    def facts(self) -> dict[str, Any]:
        return {
            "kernels": f"numba {simd_path()}",
            "threads": self.threads,
            "activations": self.options.activations,
            "kv_cache": self.element,
            "weight_bytes": bytes_by_format(self.weights.packed, self.streamed.formats if self.streamed else {}),
            **({"mapped_bytes": self.weights.mapped_bytes} if self.weights.mapped_bytes else {}),
            "bytes_per_token": self.weights.bytes_per_token(self.architecture)
            + (self.streamed.plan.bytes_per_token if self.streamed else 0),
            **({"streaming": self.streamed.facts()} if self.streamed else {}),
        }

    def ceilings(self) -> dict[str, float]:
        if self.streamed:  # the disk is the ceiling
            return {}
        stacks = self.weights.packed
        read, multiply = reading([p.data for p in stacks]), multiplying(stacks, self.threads)
        return {"read": rate(self.team, *read), "multiply": rate(self.team, *multiply)}

    def close(self) -> None:
        self.team.close()
        self._streaming.close()
        if self.streamed:
            self.streamed.close()
