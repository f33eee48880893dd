"""What `requantize --method gptq` takes: its options, the text as tokens, and what it says of time and memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._groups import options
from oss_tools.cli._options import format_size
from oss_tools.cli._output import print_facts, remark
from oss_tools.errors import BadRecipe, BadRequest

if TYPE_CHECKING:
    from oss_tools.convert.options import Rounding
    from oss_tools.convert.plan import Plan

Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="round|gptq",
        help="round treats each value by itself. gptq goes column by column, and later columns make up for each error.",
    ),
]
Texts = Annotated[
    list[Path] | None, typer.Option("--text", metavar="FILE", help="For gptq: calibrate on this text; may be repeated.")
]
Chats = Annotated[
    list[Path] | None,
    typer.Option(
        "--chats", metavar="FILE", help="For gptq: calibrate on these conversations (JSON Lines); may be repeated."
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option("--tokens", min=1, metavar="N", help="For gptq: how many tokens to calibrate on. [default: 65536]"),
]
SequenceLength = Annotated[
    int | None,
    typer.Option("--sequence", min=16, metavar="N", help="For gptq: how many tokens a sequence has. [default: 512]"),
]
Damping = Annotated[
    float | None,
    typer.Option(
        "--damping",
        min=1e-6,
        max=1.0,
        metavar="X",
        help="For gptq: what is added to each input's mean square, in units of their mean. [default: 0.01]",
    ),
]


@options
class MethodOptions:
    """How matrices are rounded: each value by itself, or by GPTQ, over a text."""

    method: Method = "round"
    text: Texts = None
    chats: Chats = None
    tokens: Tokens = None
    sequence: SequenceLength = None
    damping: Damping = None

    def __post_init__(self) -> None:
        if self.method not in ("round", "gptq"):
            raise typer.BadParameter(f"{self.method!r} is not one of round, gptq", param_hint="--method")
        of_gptq = [field.name for field in fields(self) if field.name != "method" and getattr(self, field.name) is not None]
        if self.method == "round" and of_gptq:
            raise typer.BadParameter(f"--{of_gptq[0]} goes with --method gptq")

    def rounding(self) -> Callable[[Plan], Rounding] | None:
        """What makes the rounding of a plan; None where each value is rounded by itself. That raises BadRequest for a text
        that cannot be used, BadRecipe for a plan that GPTQ cannot serve."""
        return self._compensation if self.method == "gptq" else None

    def _compensation(self, plan: Plan) -> Rounding:
        from oss_tools.calibration import texts as of_texts
        from oss_tools.calibration.compensation import Compensation, rounded_steps
        from oss_tools.calibration.gptq import DAMPING

        if not rounded_steps(plan):
            raise BadRecipe(
                "--method gptq: this plan rounds no matrix to a format that it knows (mxfp4, nvfp4, int8, q4_0, …); "
                "leave --method out"
            )
        length, wanted = self.sequence or of_texts.SEQUENCE, self.tokens or of_texts.TOKENS
        context = plan.source.architecture.context
        if self.sequence and self.sequence > context:
            raise BadRequest(f"--sequence {self.sequence}: the model was made for sequences of {context} tokens at most")
        sources = of_texts.sources_of(self.text or [], self.chats or [])
        vocabulary = next(e.spec.shape[0] for e in plan.source.entries.values() if e.spec.role == "embedding")
        sample = of_texts.sample(plan.metadata, sources, wanted, min(length, context), vocabulary)
        if sample.tokens < wanted - length:
            remark(f"the text has {sample.tokens:,} tokens, fewer than the {wanted:,} that were asked for")
        return Compensation(sample, DAMPING if self.damping is None else self.damping)


def print_cost(record: dict[str, Any]) -> None:
    """What `Rounding.takes` says."""
    seconds = record["seconds"]
    print_facts(
        {
            "method": f"GPTQ on {record['tokens']:,} tokens, {record['matrices']:,} matrices",
            "time": f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} min",
            "memory": f"{format_size(record['memory_bytes'])} at most",
            "disk": f"{format_size(record['scratch_bytes'])} beside the output until it is written",
        }
    )
