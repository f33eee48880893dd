"""What the verbs that run a model share: its options, and loading it with progress."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._groups import options
from oss_tools.cli._options import model_path, size_option
from oss_tools.cli._output import Compiling, progress, remark, remark_reading, remark_unless

if TYPE_CHECKING:
    from oss_tools.checkpoints import Metadata
    from oss_tools.cli._prompt_cache import KeptPrompt
    from oss_tools.engine.engine import Engine
    from oss_tools.models import Checkpoint

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        parser=model_path,
        help="A checkpoint: its path, the owner/name of a download, or tiny (the embedded model).",
    ),
]
Threads = Annotated[int, typer.Option("--threads", "-t", min=0, help="Threads to use; 0 means every core.")]
BackendName = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="numba|torch",
        help="numba uses this program's fast kernels; torch is plain PyTorch in float32, to check against.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="cpu|cuda|auto",
        help="Where to run; cuda is an NVIDIA GPU, auto takes the GPU if it can be used, else the CPU.",
    ),
]
Activations = Annotated[
    str,
    typer.Option(
        "--activations",
        metavar="int8|bf16|f32",
        help="How to round the inputs of layers: int8 rounds those of quantized layers, 32 values at a time; bf16 also "
        "rounds those of float layers; f32 rounds none.",
    ),
]
KvCache = Annotated[
    str | None,
    typer.Option(
        "--kv-cache",
        metavar="bf16|f32|q8",
        help="The number format of keys and values in memory; q8 takes about half of bf16, and costs a little accuracy. "
        "[default: bf16]",
        show_default=False,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context", "-c", min=1, help="The most tokens that a sequence may have. [default: 4096]", show_default=False
    ),
]


Load = Annotated[
    str,
    typer.Option(
        "--load",
        metavar="mapped|resident",
        help="How to load a run-ready file: mapped uses the weights where they lie in the file, resident "
        "copies them into memory.",
    ),
]


Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        parser=size_option,
        metavar="SIZE",
        help="The most memory to use, e.g. 8GB; experts that do not fit are read from the disk. [default: what is free]",
        show_default=False,
    ),
]
Speculate = Annotated[
    bool,
    typer.Option(
        "--speculate/--no-speculate",
        help="Guess the next tokens from the text so far where that is faster; the result is the same.",
    ),
]
TraceExperts = Annotated[
    Path | None,
    typer.Option(
        "--trace-experts", metavar="FILE", help="Write to this file which experts the model chooses.", show_default=False
    ),
]


WORTH_SAYING = 1.0  # seconds


@options
class LoadOptions:
    """How a model is loaded and computed."""

    threads: Threads = 0
    device: Device = "cpu"
    backend: BackendName = "numba"
    activations: Activations = "int8"
    cache: KvCache = None
    load: Load = "mapped"
    memory: Memory = None

    def settings(self) -> dict[str, Any]:
        """As `loaded` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@options
class ContextOptions(LoadOptions):
    """How a model is loaded, and for how many positions."""

    context: Context = None


@options
class EngineOptions(ContextOptions):
    """How a model is loaded and writes."""

    speculate: Speculate = True


@options
class ScoringOptions(ContextOptions):
    """How a model is loaded that will be asked a great deal."""

    load: Load = "resident"


@contextmanager
def loaded(
    path: Path,
    *,
    device: str = "cpu",
    backend: str = "numba",
    threads: int = 0,
    context: int | None = None,
    activations: str = "int8",
    cache: str | None = None,
    load: str = "mapped",
    memory: int | None = None,
    trace_experts: Path | None = None,
    speculate: bool = True,
    prefix_budget: int | None = None,
    quiet: bool = False,
    check: Callable[[Metadata], None] | None = None,
    hint: bool = False,
    context_for: Callable[[Checkpoint, str], int] | None = None,
    prompt: KeptPrompt | None = None,
) -> Iterator[Engine]:
    """The model, loaded with a progress bar; closed at the end. `check` may refuse it before its weights are read. `hint`: on a
    terminal, says what a run-ready file would save. `context_for`: chooses the context for a checkpoint and a backend. `prompt`:
    whose tokens the engine is to know."""
    from oss_tools.engine.backend import Options, backend_for
    from oss_tools.engine.engine import Engine
    from oss_tools.models import open_checkpoint

    def examine(metadata: Metadata) -> None:
        if not quiet:
            remark_reading(checkpoint, metadata)
        if check:
            check(metadata)
        if prompt:
            prompt.check(checkpoint, metadata, backend, Options(activations=activations, cache=cache))

    times: list[float] = []

    def loading(nbytes: int) -> None:
        times.append(time.perf_counter())
        advance("load", nbytes)

    say = remark_unless(quiet)
    backend = backend_for(device, backend, say)
    with (
        open_checkpoint(path) as checkpoint,
        Compiling(quiet) as on_compile,
        progress({"load": checkpoint.nbytes}, quiet=quiet) as advance,
    ):
        engine = Engine.load(
            checkpoint,
            backend=backend,
            threads=threads,
            context=context_for(checkpoint, backend) if context_for else context,
            activations=activations,
            cache=cache,
            load=load,
            memory=memory,
            trace_experts=trace_experts,
            speculate=speculate,
            prefix_budget=prefix_budget,
            check=examine,
            progress=loading,
            say=say,
            on_compile=on_compile,
        )
    seconds = max(times, default=0.0) - min(times, default=0.0)
    if hint and not quiet and backend == "numba" and sys.stderr.isatty():
        hint_at_ready(path, checkpoint.container, seconds)
    if hint and not quiet and (facts := engine.backend.facts().get("streaming")):
        for line in streaming_sentences(engine, facts, path):
            remark(line)
    with engine:
        if prompt:
            prompt.begin(engine)
        yield engine


def streaming_sentences(engine: Engine, facts: dict[str, Any], path: Path) -> list[str]:
    """What stays in memory, what a token reads, and the rate that the disk allows: said once, before the first token."""
    from oss_tools.fit.streaming import of_facts, sentences
    from oss_tools.machine.disk import known_speed, largest_file

    file = largest_file(path)
    return sentences(of_facts(engine.architecture, facts), known_speed(file) if file else None)


def hint_at_ready(path: Path, container: str, seconds: float) -> None:
    """Says that a run-ready file would save the time in which this model's weights were read, and how to make one."""
    if container != "ready" and seconds >= WORTH_SAYING:
        target = f"{path.resolve().name.removesuffix('.gguf')}.ready"
        command = shlex.join(["oss-tools", "convert", str(path), target])
        remark(f"reading the weights took {seconds:.0f} s, which a run-ready file saves at every start: {command}")
