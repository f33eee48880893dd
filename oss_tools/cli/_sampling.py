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

    temperature: Annotated[
        float,
        typer.Option("--temperature", "--temp", help="How freely to choose the next token; 0 always takes the likeliest."),
    ] = 0.0
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", help="Choose among the K likeliest tokens only; 0 turns this off.")
    ] = 0
    top_p: Annotated[
        float,
        typer.Option("--top-p", metavar="P", help="Choose among the likeliest tokens that reach this probability together."),
    ] = 1.0
    min_p: Annotated[
        float,
        typer.Option(
            "--min-p", metavar="P", help="Leave out tokens whose probability is below this share of the likeliest token's."
        ),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        typer.Option(
            "--repetition-penalty",
            "--repeat-penalty",
            help="A value above 1 makes tokens less likely that are in the text already.",
        ),
    ] = 1.0
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="The seed of the choice; the same seed gives the same text.")
    ] = None

    def rule(self) -> Sampling:
        """Raises BadRecipe for values that no rule can have."""
        from oss_tools.engine.sampling import Sampling

        return Sampling(self.repetition_penalty, self.temperature, self.top_k, self.top_p, self.min_p, self.seed)
