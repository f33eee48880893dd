"""llama.cpp and programs that come from it as contenders of the benchmark: the same bytes, the same threads."""

from __future__ import annotations

import ctypes
import importlib.util
import time
from abc import abstractmethod
from importlib import metadata
from typing import Any, ClassVar

from oss_tools.errors import BadCheckpoint, MissingPackage, how_to_install
from oss_tools.measure.worker import Contender, tokens_of_step

CHUNK = 512  # tokens of a batch


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(level: int, text: bytes, user_data: Any) -> None:
    """The library's log lines are not wanted."""


class Llama(Contender):
    """A library with llama.cpp's C interface, with its default parameters, except for context, threads and sequences.

    Attributes:
        name: as --peer has it.
        package, module: on PyPI, and its bindings.
        extra: of oss-tools that brings the package.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    module: ClassVar[str]
    extra: ClassVar[str]

    def __init__(self, model: str, threads: int, context: int, batch: int, **options: Any) -> None:
        self.require()
        self._bindings: Any = importlib.import_module(self.module)
        self._library = self.library()
        self._library.llama_log_set(_silent, ctypes.c_void_p(0))
        self._model = self._bindings.llama_model_load_from_file(model.encode(), self.loading())
        if not self._model:
            raise BadCheckpoint(f"{self.name} cannot load {model}")
        params = self._bindings.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context * batch, CHUNK, CHUNK
        params.n_seq_max, params.n_threads, params.n_threads_batch = batch, threads, threads
        self._context = self._bindings.llama_init_from_model(self._model, params)
        if not self._context:
            raise BadCheckpoint(f"{self.name} makes no context of {context} positions for {batch} sequences")
        self._batch = self._bindings.llama_batch_init(max(CHUNK, batch), 0, 1)

    @classmethod
    def require(cls) -> None:
        """Raises MissingPackage if the package is not installed. Loads nothing."""
        try:
            found = importlib.util.find_spec(cls.module.partition(".")[0])
        except ImportError:
            found = None
        if found is None:
            raise MissingPackage(f"--peer {cls.name} needs {cls.package}: {how_to_install(cls.extra)}")

    @abstractmethod
    def library(self) -> Any:
        """The shared library itself."""

    def loading(self) -> Any:
        """How the model is loaded."""
        return self._bindings.llama_model_default_params()

    @abstractmethod
    def clear(self) -> None:
        """Forgets all sequences."""

    def facts(self) -> dict[str, Any]:
        information = self._library.llama_print_system_info
        information.restype = ctypes.c_char_p
        return {"program": f"{self.package} {metadata.version(self.package)}", "kernels": information().decode().strip()}

    def prompt(self, tokens: list[int], depth: int) -> float:
        self._fill(tokens[:depth], 1)
        tokens = tokens[depth:]
        self.mark()
        began = time.perf_counter()
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            self._decode([(token, depth + start + i, 0, False) for i, token in enumerate(part[:-1])]
                         + [(part[-1], depth + start + len(part) - 1, 0, True)])  # fmt: skip
        self._bindings.llama_get_logits_ith(self._context, self._batch.n_tokens - 1)
        return time.perf_counter() - began

    def generate(self, tokens: list[int], depth: int, batch: int) -> list[float]:
        self._fill(tokens[:depth], batch)
        tokens = tokens[depth:]
        self.mark()
        seconds = []
        for step in range(len(tokens)):
            began = time.perf_counter()
            each = enumerate(tokens_of_step(tokens, step, batch))
            self._decode([(token, depth + step, sequence, True) for sequence, token in each])
            for row in range(batch):
                self._bindings.llama_get_logits_ith(self._context, row)
            seconds.append(time.perf_counter() - began)
        return seconds

    def _fill(self, tokens: list[int], sequences: int) -> None:
        """Starts over with these tokens in each sequence."""
        self.clear()
        for sequence in range(sequences):
            for start in range(0, len(tokens), CHUNK):
                stop = min(start + CHUNK, len(tokens))
                self._decode([(tokens[i], i, sequence, i == stop - 1) for i in range(start, stop)])
        self._library.llama_synchronize(ctypes.c_void_p(self._context))

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if self._bindings.llama_decode(self._context, batch):
            raise BadCheckpoint(f"{self.name} could not process a batch")


class LlamaCpp(Llama):
    """llama.cpp through llama-cpp-python."""

    name, package, module, extra = "llama.cpp", "llama-cpp-python", "llama_cpp", "peers"

    def library(self) -> Any:
        return self._bindings.llama_cpp._lib

    def clear(self) -> None:
        self._bindings.llama_memory_clear(self._bindings.llama_get_memory(self._context), True)


class MappedLlamaCpp(LlamaCpp):
    """llama.cpp with all weights where they lie in the file. By default it copies those of many formats into anonymous memory, in
    another order, which is faster where they fit."""

    def loading(self) -> Any:
        params = super().loading()
        params.use_mmap, params.use_extra_bufts = True, False
        return params


class IkLlamaCpp(Llama):
    """Its fork ik_llama.cpp, which is faster on CPUs, with weights repacked on load. The wheels that are published know no
    instructions beyond AVX2."""

    name, package, module, extra = "ik_llama.cpp", "ik-llama-cpp-python", "ik_llama_cpp._ctypes_api", "ik"

    def library(self) -> Any:
        return self._bindings._lib

    def loading(self) -> Any:
        params = super().loading()
        params.repack_tensors, params.use_mmap = True, False
        return params

    def clear(self) -> None:
        self._bindings.llama_kv_cache_clear(self._context)


PEERS: dict[str, type[Llama]] = {peer.name: peer for peer in (LlamaCpp, IkLlamaCpp)}
