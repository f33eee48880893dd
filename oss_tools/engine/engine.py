"""The engine: an architecture with weights on a device, ready to take tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Lock

from oss_tools.checkpoints import Metadata
from oss_tools.engine.backend import LOADS, Backend, OnCompile, Options, Progress, backend_class, check_cache
from oss_tools.engine.constraints import Grammars
from oss_tools.engine.decoding import Decoding
from oss_tools.engine.requests import Scores
from oss_tools.engine.scoring import scores
from oss_tools.engine.text import Text
from oss_tools.errors import BadCheckpoint, BadRequest
from oss_tools.machine.memory import available_memory, give_back
from oss_tools.models import Architecture, Checkpoint, open_checkpoint

DEFAULT_CONTEXT = 4096
PREFIX_SHARE = 8  # the prefix cache may take one part in so many of the memory that is free after loading


class Engine(Decoding):
    """A loaded model.

    Attributes:
        architecture: of the checkpoint.
    """

    def __init__(
        self,
        architecture: Architecture,
        backend: Backend,
        context: int,
        prefix_budget: int,
        metadata: Metadata,
        text: Text | None = None,
        speculate: bool = True,
    ) -> None:
        super().__init__(backend, context, prefix_budget, metadata, text, speculate)
        self.architecture = architecture
        self._grammars: Grammars | None = None
        self._lock = Lock()

    @classmethod
    def load(
        cls,
        path: str | Path | Checkpoint,
        *,
        backend: str = "numba",
        threads: int = 0,
        context: int | None = None,
        activations: str = "int8",
        cache: str | None = None,
        load: str = "mapped",
        memory: int | None = None,
        trace_experts: str | Path | None = None,
        prefix_budget: int | None = None,
        speculate: bool = True,
        check: Callable[[Metadata], None] = lambda metadata: None,
        progress: Progress = lambda nbytes: None,
        say: Callable[[str], None] = lambda line: None,
        on_compile: OnCompile = lambda done, total, name: None,
    ) -> Engine:
        """Loads a checkpoint's weights.

        Args:
            path: a checkpoint, or where one lies.
            backend: "numba", "torch" or "cuda"; `backend_for` names the one of a device.
            threads: 0 for every core that this process may use.
            context: the most positions of a sequence; None for 4096, or fewer if the model was made for fewer.
            activations: "int8", "bf16" or "f32", see `Options`.
            cache: the KV cache's format, see `Options`; only "numba" has a choice.
            load: "mapped" or "resident", see `Options`.
            memory: bytes that the process may take in all; of a model that does not fit in, experts stream from the disk. None
                takes what is free.
            trace_experts: a file for the numbers of the experts that are chosen.
            prefix_budget: bytes for the prefix cache; None for a share of the free memory, 0 turns it off.
            speculate: guesses tokens from the text so far where that is faster; they are the same tokens (`lookup`). Not while
                experts are traced.
            check: is given the tokenizer, templates and configuration before weights are read, and may refuse them.
            progress: called with the stored bytes that were read.
            say: is told what the user should know.
            on_compile: called as each kernel begins to be compiled and after the last, see `Options`.

        Raises BadCheckpoint, MissingPackage, BadRequest, NoRoom.
        """
        if not isinstance(path, Checkpoint):
            with open_checkpoint(path) as checkpoint:
                return cls.load(
                    checkpoint,
                    backend=backend,
                    threads=threads,
                    context=context,
                    activations=activations,
                    cache=cache,
                    load=load,
                    memory=memory,
                    trace_experts=trace_experts,
                    prefix_budget=prefix_budget,
                    speculate=speculate,
                    check=check,
                    progress=progress,
                    say=say,
                    on_compile=on_compile,
                )
        made_for = path.architecture.context
        if context is not None and not 1 <= context <= made_for:
            raise BadRequest(f"a context of {context} positions: this model was made for 1..{made_for}")
        if load not in LOADS:
            raise BadRequest(f"weights cannot be loaded {load!r}; there are {', '.join(LOADS)}")
        context = context or min(DEFAULT_CONTEXT, made_for)
        options = Options(
            threads,
            activations,
            context,
            load,
            memory,
            Path(trace_experts) if trace_experts else None,
            prefix_budget,
            say=say,
            on_compile=on_compile,
            cache=cache,
        )
        check_cache(cache, backend)
        chosen = backend_class(backend)
        options = chosen.require(path, options)
        metadata, text = _tokenizer(path.metadata(), check)  # first: what this takes is free again for the weights
        give_back()
        loaded = chosen(path, options, progress)
        give_back()
        prefix_bytes = available_memory() // PREFIX_SHARE if options.prefix_bytes is None else options.prefix_bytes
        speculate = speculate and not options.trace_experts
        return cls(path.architecture, loaded, options.context, prefix_bytes, metadata, text, speculate)

    @property
    def grammars(self) -> Grammars:
        """Compiles what texts are held to. Made when it is first asked for, from any thread. Raises what `Grammars` and `text`
        raise."""
        with self._lock:
            if self._grammars is None:
                self._grammars = Grammars(self.text, self.backend.vocabulary)
            return self._grammars

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(self, requests: list[tuple[list[int], int]], progress: Callable[[int], None] = lambda n: None) -> list[Scores]:
        """How likely tokens[start:] are after tokens[:start], for each request (tokens, start) with start >= 1.

        Requests that begin alike share the computation of their beginning; `progress` is told of each that is done.
        """
        return scores(self, requests, progress)


def _tokenizer(metadata: Metadata, check: Callable[[Metadata], None]) -> tuple[Metadata, Text | None]:
    """The tokenizer, and the metadata without its content, which takes half a gigabyte for 200,000 tokens. A damaged one stays,
    to be complained of when it is asked for."""
    check(metadata)
    if metadata.tokenizer is None:
        return metadata, None
    try:
        text = Text(metadata)
    except BadCheckpoint:
        return metadata, None
    return replace(metadata, tokenizer=None), text
