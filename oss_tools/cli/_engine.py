"""What the verbs that run a model share: its options, and loading it with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oss_tools.cli._options import model_path
from oss_tools.cli._output import Compiling, progress, remark, remark_reading

if TYPE_CHECKING:
    from oss_tools.checkpoints import Metadata
    from oss_tools.engine.engine import Engine

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        parser=model_path,
        help="A checkpoint's path, a downloaded owner/name, or tiny.",
    ),
]
Threads = Annotated[int, typer.Option("--threads", "-t", min=0, help="Threads; 0 uses every core.", show_default=False)]
BackendName = Annotated[str, typer.Option("--backend", help="numba (the kernels) or torch (the plain path, float32).")]
Device = Annotated[
    str, typer.Option("--device", help="cpu, cuda (an NVIDIA GPU), or auto: the GPU if there is one that can be used.")
]
Activations = Annotated[
    str, typer.Option("--activations", help="int8 quantizes what linear layers are given, per 32 values; f32 does not.")
]
Context = Annotated[
    int | None,
    typer.Option("--context", min=1, help="The most positions of a sequence. [default: 4096]", show_default=False),
]


@contextmanager
def loaded(
    path: Path,
    *,
    device: str = "cpu",
    backend: str = "numba",
    threads: int = 0,
    context: int | None = None,
    activations: str = "int8",
    quiet: bool = False,
    check: Callable[[Metadata], None] | None = None,
) -> Iterator[Engine]:
    """The model, loaded with a progress bar; closed at the end. `check` may refuse it before its weights are read."""
    from oss_tools.engine.backend import backend_for
    from oss_tools.engine.engine import Engine
    from oss_tools.models import open_checkpoint

    def examine(metadata: Metadata) -> None:
        if not quiet:
            remark_reading(checkpoint, metadata)
        if check:
            check(metadata)

    say = (lambda line: None) if quiet else remark
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
            context=context,
            activations=activations,
            check=examine,
            progress=lambda nbytes: advance("load", nbytes),
            say=say,
            on_compile=on_compile,
        )
    with engine:
        yield engine
