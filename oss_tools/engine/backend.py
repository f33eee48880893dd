"""What carries out a forward pass: one backend per device and library, found by being in this package (`*_backend.py`)."""

from __future__ import annotations

import importlib
import pkgutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from oss_tools.errors import BadRecipe, BadRequest, MissingPackage, Unsupported
from oss_tools.guesses import none_named
from oss_tools.machine import memory
from oss_tools.models import Architecture, Checkpoint

if TYPE_CHECKING:
    from oss_tools.engine.stream.plan import Plan

Progress = Callable[[int], None]
OnCompile = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Options:
    """How a model is to be run.

    Attributes:
        threads: threads that share the work; 0 is every core this process may use.
        activations: "int8" quantizes what quantized linear layers are given, per 32 values; "bf16" does so and rounds what layers
            in bf16 are given, f16 ones being converted to it; "f32" keeps all whole.
        context: the most positions that a sequence may have.
        cache: the number format of the KV cache, of `CACHES`; None for f32 with f32 activations and bf16 else.
        load: "mapped" uses the weights of a run-ready file where they lie, in pages that the system can take back; "resident"
            copies them into memory of this process. Other files' weights are always copied.
        memory: bytes that the process may take in all; experts that do not fit in stream from the disk. None for what is free.
        trace_experts: the file that says which experts were chosen, see `stream.trace`.
        prefix_bytes: for the prefix cache; None for a share of what is left.
        streaming: what stays and what streams, where something does: `require` decides.
        say: is told, in a line, what the user should know (a conversion on load).
        on_compile: is called as each kernel begins to be compiled, and once after the last, with how many are ready, how many
            there are, and the kernel's name; never where all come from the cache.
    """

    threads: int = 0
    activations: str = "int8"
    context: int = 4096
    load: str = "mapped"
    memory: int | None = None
    trace_experts: Path | None = None
    prefix_bytes: int | None = None
    streaming: Plan | None = None
    say: Callable[[str], None] = field(default=lambda line: None)
    on_compile: OnCompile = field(default=lambda done, total, name: None)
    cache: str | None = None

    @property
    def element(self) -> str:
        """Of the KV cache."""
        return self.cache or ("f32" if self.activations == "f32" else "bf16")


@dataclass
class Run:
    """Tokens that continue one sequence: positions start, start + 1, … of `cache`."""

    cache: Any
    tokens: np.ndarray  # int32 [n], n >= 1
    start: int


@dataclass(frozen=True)
class Draw:
    """How a token is drawn from its logits' softmax: the seed and the position decide which, whatever else is in the pass.

    Attributes:
        temperature: divides the logits; 0 takes the largest.
        seed, position: uint32 and int32.
    """

    temperature: float
    seed: int
    position: int


class Backend(ABC):
    """A model on a device.

    Attributes:
        name: on the command line.
        extra: the extra of oss-tools that brings its packages, or "".
        chunk: the most tokens in one `run`.
        rows: the most rows in one `logits`.
        sequences: the most runs in one `run`.
        recent: so many of the last positions can be read from a cache whatever else was run.
        vocabulary: tokens that have a logit.
        draws: whether it draws tokens itself, by `drawn`.
        streams: whether experts can stream, and their choice be traced.
        rewinds: whether a token's logits are the same bits in any pass, and the last tokens of a pass can be given up.
        keeps_prompts: whether what `read_cache` gives is good in another process too (`prompt_file`).
    """

    name: ClassVar[str] = ""
    draws: ClassVar[bool] = False
    streams: ClassVar[bool] = False
    rewinds: ClassVar[bool] = False
    keeps_prompts: ClassVar[bool] = False
    chunk: int
    rows: int
    sequences: int
    recent: int
    vocabulary: int

    @abstractmethod
    def __init__(self, checkpoint: Checkpoint, options: Options, progress: Progress) -> None:
        """Loads the weights; calls progress(stored bytes done). Does not keep the checkpoint."""

    @classmethod
    @abstractmethod
    def weight_bytes(cls, checkpoint: Checkpoint, options: Options) -> int:
        """Bytes of memory that the weights of this checkpoint will take."""

    @classmethod
    @abstractmethod
    def position_bytes(cls, architecture: Architecture, options: Options) -> int:
        """Bytes of memory that the keys and values of one position take, in layers that keep all positions."""

    @classmethod
    def require(cls, checkpoint: Checkpoint, options: Options) -> Options:
        """Raises NoRoom with the numbers if weights and cache do not fit into the memory that they are meant for. Returns the
        options, with what was left to be decided."""
        cls.refuse_streaming(options)
        each = cls.position_bytes(checkpoint.architecture, options)
        memory.require(cls.weight_bytes(checkpoint, options), each * options.context, options.context, each)
        return options

    @classmethod
    def refuse_streaming(cls, options: Options) -> None:
        """Raises BadRequest for what the kernels on the CPU alone can do."""
        for value, option in ((options.memory, "--memory"), (options.trace_experts, "--trace-experts")):
            if value is not None and not cls.streams:
                raise BadRequest(f"{option} is for the kernels on the CPU (--backend numba), not for {cls.name}")

    @classmethod
    def free_bytes(cls) -> int:
        """Bytes that are free now in the memory that weights and caches are meant for."""
        return memory.available_memory()

    @abstractmethod
    def open(self, capacity: int) -> Any:
        """A cache for one sequence of at most `capacity` positions."""

    @abstractmethod
    def grow(self, cache: Any, capacity: int) -> None:
        """Makes room for more positions; what is cached stays."""

    @abstractmethod
    def fork(self, cache: Any, length: int, capacity: int) -> Any:
        """A cache for `capacity` positions that begins with the first `length` of another one, which must be all it has."""

    @abstractmethod
    def run(self, runs: list[Run]) -> None:
        """One forward pass over the tokens of all runs (together at most `chunk`, each of another cache)."""

    def rewind(self, ends: list[tuple[Any, int]]) -> None:
        """Gives up the last positions that the last `run` has computed: of each of its runs' caches, in their order, those from
        this one on, which is at least the run's first. Only where `rewinds` is true."""
        raise NotImplementedError

    @abstractmethod
    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Logits float32 [n, vocabulary] after the tokens of the last `run` at these rows, counted over all its runs.
        The array is overwritten by the next call."""

    def likeliest(self, rows: np.ndarray) -> np.ndarray:
        """The tokens with the largest of those logits, int [n]."""
        return self.logits(rows).argmax(-1)

    def drawn(self, rows: np.ndarray, draws: list[Draw]) -> np.ndarray:
        """A token for each of those rows, int [n], chosen where the logits are. Only where `draws` is true."""
        raise NotImplementedError

    @abstractmethod
    def read_cache(self, cache: Any, start: int, stop: int) -> np.ndarray:
        """A copy of the keys and values of positions [start, stop), [stop − start, …], up to the last one. Those before the
        last `run`, if it was this cache's, or else all, must be among the `recent` last."""

    @abstractmethod
    def write_cache(self, cache: Any, start: int, block: np.ndarray) -> None:
        """Puts back what `read_cache` gave, at the same positions, which follow those that the cache has."""

    def cache_row(self) -> tuple[int, np.dtype[Any]]:
        """How many values of which dtype a position has in what `read_cache` gives; of a backend that `keeps_prompts`."""
        raise NotImplementedError(f"the backend {self.name} keeps no prompts")

    def is_finite(self, block: np.ndarray) -> bool:
        """Whether all keys and values of a block as `read_cache` gives it are finite; of a backend that `keeps_prompts`."""
        raise NotImplementedError(f"the backend {self.name} keeps no prompts")

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a record of a measurement should say: kernel path, threads, bytes of weights by format."""

    def ceilings(self) -> dict[str, float]:
        """What generation is held against, measured now, in bytes of weights per second: `read`, all weights read as plain
        memory, and `multiply`, all of them multiplied with one vector, with nothing in between. Empty where that is not known."""
        return {}

    def stopwatch(self) -> Callable[[], float]:
        """Starts to measure; the call gives the seconds that all work since then took, when it is done."""
        began = time.perf_counter()
        return lambda: time.perf_counter() - began

    def device_memory(self) -> dict[str, int]:
        """Bytes of a GPU's memory: `allocated` at most by this program, `used` now as the driver says. Empty on a CPU."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Ends threads."""


LOADS = ("mapped", "resident")
CACHES = ("bf16", "f32", "q8")  # number formats of the KV cache; q8: 8 bits, and a scale for each position and head
DEVICES = ("cpu", "cuda", "auto")


def check_cache(name: str | None, backend: str = "numba") -> None:
    """Raises BadRequest for a number format that no KV cache has, and for a backend that has no choice."""
    if name not in (None, *CACHES):
        raise BadRequest(f"--kv-cache: {none_named('format', str(name), CACHES)}")
    if name is not None and backend != "numba":
        raise BadRequest(f"--kv-cache is for the kernels on the CPU (--backend numba), not for {backend}")


def backend_for(device: str, backend: str, say: Callable[[str], None] = lambda line: None) -> str:
    """The backend that runs on a device: `backend` on the cpu, cuda on the GPU; auto takes the GPU if there is one that the
    kernels run on, and says so if not. Raises BadRequest, and Unsupported or MissingPackage where cuda cannot be had."""
    if device not in DEVICES:
        raise BadRequest(none_named("device", device, DEVICES))
    if device == "cpu":
        return backend
    if backend not in ("numba", "cuda"):
        if device == "cuda":
            raise BadRequest(f"the backend {backend} runs on the CPU only: leave --backend out")
        return backend
    try:
        importlib.import_module("oss_tools.engine.cuda_backend").check_device()
    except (Unsupported, MissingPackage) as error:
        if device == "cuda":
            raise
        say(f"the CPU is used: {error}")
        return backend
    return "cuda"


def backends() -> dict[str, str]:
    """Module of each backend by name."""
    package = importlib.import_module("oss_tools.engine")
    modules = [m.name for m in pkgutil.iter_modules(package.__path__) if m.name.endswith("_backend")]
    return {name.removesuffix("_backend"): f"oss_tools.engine.{name}" for name in modules}


def backend_class(name: str) -> type[Backend]:
    """The backend of this name. Raises BadRecipe with the names there are, MissingPackage if its package is missing."""
    known = backends()
    if name not in known:
        raise BadRecipe(none_named("backend", name, sorted(known)))
    module = importlib.import_module(known[name])
    return next(c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Backend) and c.name == name)
