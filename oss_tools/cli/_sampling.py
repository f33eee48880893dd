"""How `generate` and `chat` choose tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from oss_tools.cli._groups import options

if TYPE_CHECKING:
    from oss_tools.engine.sampling import Sampling


@options
class SamplingOptions:
    """The options of a sampling rule."""

    temperature: Annotated[float, typer.Option("--temperature", "--temp", help="0 takes the likeliest token.")] = 0.0
    top_k: Annotated[int, typer.Option("--top-k", help="Only the K likeliest tokens; 0 is off.")] = 0
    top_p: Annotated[float, typer.Option("--top-p", help="Only the likeliest that reach this probability.")] = 1.0
    min_p: Annotated[float, typer.Option("--min-p", help="Only tokens this probable beside the likeliest.")] = 0.0
    repetition_penalty: Annotated[
        float,
        typer.Option("--repetition-penalty", "--repeat-penalty", help="Above 1, tokens already there become less likely."),
    ] = 1.0
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The same seed draws the same text.")] = None

    def rule(self) -> Sampling:
        """Raises BadRecipe for values that no rule can have."""
        from oss_tools.engine.sampling import Sampling

        return Sampling(self.repetition_penalty, self.temperature, self.top_k, self.top_p, self.min_p, self.seed)
