"""The text that `calibrate` and `plan` run a model over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oss_tools.cli._groups import options

if TYPE_CHECKING:
    from oss_tools.calibration.texts import Sample
    from oss_tools.checkpoints import Metadata
    from oss_tools.models import Checkpoint


@options
class TextOptions:
    """Texts and conversations, and how much of them."""

    text: Annotated[
        list[Path] | None, typer.Option("--text", metavar="FILE", help="Calibrate on this text; may be repeated.")
    ] = None
    chats: Annotated[
        list[Path] | None,
        typer.Option("--chats", metavar="FILE", help="Calibrate on these conversations (JSON Lines); may be repeated."),
    ] = None
    tokens: Annotated[int, typer.Option("--tokens", min=1, metavar="N", help="How many tokens to read.")] = 65536
    sequence: Annotated[int, typer.Option("--sequence", min=16, metavar="N", help="How many tokens a sequence has.")] = 512

    def sample(self, checkpoint: Checkpoint, metadata: Metadata, tokens: int, length: int) -> Sample:
        """So many tokens of the texts, in sequences of that length. Raises what `sources_of` and `sample` raise."""
        from oss_tools.calibration.texts import sample, sources_of

        vocabulary = next(e.spec.shape[0] for e in checkpoint.entries.values() if e.spec.role == "embedding")
        return sample(metadata, sources_of(self.text or [], self.chats or []), tokens, length, vocabulary)
