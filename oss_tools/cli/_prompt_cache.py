"""The option --prompt-cache of `generate` and `chat`: a file from which a prompt is gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oss_tools.cli._output import remark_unless

if TYPE_CHECKING:
    from oss_tools.checkpoints import Metadata
    from oss_tools.engine.backend import Options
    from oss_tools.engine.engine import Engine
    from oss_tools.engine.prompt_file import PromptFile
    from oss_tools.models import Checkpoint

PromptCache = Annotated[
    Path | None,
    typer.Option(
        "--prompt-cache",
        metavar="FILE",
        help="Keep what was computed of the prompt in this file, and go on from there at the next start.",
        show_default=False,
    ),
]


class KeptPrompt:
    """The file while a verb runs: looked at before the weights are read, read after that, written at the end."""

    _file: PromptFile

    def __init__(self, path: Path, quiet: bool) -> None:
        self._path, self._say = path, remark_unless(quiet)

    def check(self, checkpoint: Checkpoint, metadata: Metadata, backend: str, options: Options) -> None:
        """Raises BadRequest for a backend that keeps no prompts, and what `PromptFile` raises."""
        from oss_tools.engine.backend import backend_class
        from oss_tools.engine.prompt_file import PromptFile
        from oss_tools.errors import BadRequest
        from oss_tools.models.identity import sampled_digest

        if not backend_class(backend).keeps_prompts:
            device = "--device cpu" if backend == "cuda" else "--backend numba"
            raise BadRequest(f"--prompt-cache: the backend {backend} keeps no prompts; use {device}")
        model = sampled_digest(checkpoint, metadata.config)
        kept = {"q8": ", KV cache q8"}.get(options.element, "")  # other formats differ in the file's numbers
        self._file = PromptFile(self._path, model, f"{backend}, activations {options.activations}{kept}")

    def begin(self, engine: Engine) -> None:
        if count := self._file.read_into(engine):
            self._say(f"{self._path}: {count:,} tokens are known")

    @contextmanager
    def after(self, engine: Engine, tokens: list[int]) -> Iterator[None]:
        """Keeps a text when the block has ended, also with an exit status. Where it fails, the file stays as it is."""
        try:
            yield
        except typer.Exit:
            self.end(engine, tokens)
            raise
        self.end(engine, tokens)

    def end(self, engine: Engine, tokens: list[int]) -> None:
        """Keeps the first tokens of a text as far as they were computed."""
        if tokens:
            self._say(f"{self._path}: {self._file.write(engine, tokens):,} tokens are kept")
