"""llama.cpp as a contender of the benchmark, through `llama_cpp`: the same bytes, the same threads."""

from __future__ import annotations

import ctypes
import time
from importlib import metadata
from typing import Any

from oss_tools.errors import BadCheckpoint, MissingPackage
from oss_tools.measure.worker import Contender

try:
    import llama_cpp
except ImportError:
    raise MissingPackage("--peer llama.cpp needs llama-cpp-python: pip install 'oss-tools[peers]'") from None


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, user_data: Any) -> None:
    """llama.cpp's log lines are not wanted."""


class LlamaCpp(Contender):
    """llama.cpp with its default parameters, except for context, threads and sequences."""

    def __init__(self, model: str, threads: int, context: int, batch: int, **options: Any) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        self._chunk = 512
        loading = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(model.encode(), loading)
        if not self._model:
            raise BadCheckpoint(f"llama.cpp cannot load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context * batch, self._chunk, self._chunk
        params.n_seq_max, params.n_threads, params.n_threads_batch = batch, threads, threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise BadCheckpoint(f"llama.cpp makes no context of {context} positions for {batch} sequences")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(max(self._chunk, batch), 0, 1)

    def facts(self) -> dict[str, Any]:
        system = llama_cpp.llama_print_system_info().decode()
        return {"program": f"llama-cpp-python {metadata.version('llama-cpp-python')}", "kernels": system.strip()}

    def prompt(self, tokens: list[int], depth: int) -> float:
        self._fill(tokens, depth, 1)
        began = time.perf_counter()
        for start in range(0, len(tokens), self._chunk):
            part = tokens[start : start + self._chunk]
            self._decode([(token, depth + start + i, 0, False) for i, token in enumerate(part[:-1])]
                         + [(part[-1], depth + start + len(part) - 1, 0, True)])  # fmt: skip
        llama_cpp.llama_get_logits_ith(self._context, -1)
        return time.perf_counter() - began

    def generate(self, tokens: list[int], depth: int, batch: int) -> list[float]:
        self._fill(tokens, depth, batch)
        seconds = []
        for step, token in enumerate(tokens):
            began = time.perf_counter()
            self._decode([(token, depth + step, sequence, True) for sequence in range(batch)])
            for row in range(batch):
                llama_cpp.llama_get_logits_ith(self._context, row)
            seconds.append(time.perf_counter() - began)
        return seconds

    def _fill(self, tokens: list[int], depth: int, sequences: int) -> None:
        """Starts over with `depth` tokens in each sequence."""
        llama_cpp.llama_memory_clear(self._memory, True)
        for sequence in range(sequences):
            for start in range(0, depth, self._chunk):
                stop = min(start + self._chunk, depth)
                self._decode([(tokens[i % len(tokens)], i, sequence, i == stop - 1) for i in range(start, stop)])
        llama_cpp.llama_synchronize(self._context)

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if llama_cpp.llama_decode(self._context, batch):
            raise BadCheckpoint("llama.cpp could not process a batch")
