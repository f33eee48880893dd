"""`python -m oss_tools.tiny`: how the embedded model was made, to do it again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def main() -> None:
    """How the embedded model was made, to do it again."""


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")],
    steps: Annotated[int, typer.Option(help="Updates of the weights.")] = 9600,
    tokens: Annotated[int, typer.Option(help="Tokens in each update, padding included.")] = 3072,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 0.006,
    seed: Annotated[int, typer.Option(help="Of the weights and of the questions.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    begin: Annotated[Path | None, typer.Option(help="Train the weights of this checkpoint further.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run.")] = False,
    stop_after: Annotated[int | None, typer.Option(help="Stop at this step; --resume goes on.")] = None,
) -> None:
    """Train tokenizer and weights from nothing, or weights further. Needs the extra `train`.

    The defaults take about an hour on two cores with AVX-512 BF16.

    Examples:
        python -m oss_tools.tiny train build/first
        python -m oss_tools.tiny train build/tiny --begin build/first --seed 3 --steps 4400 --lr 0.004
    """
    import torch

    from oss_tools.tiny import train as training

    torch.set_num_threads(threads)
    run = training.Run(seed=seed, steps=steps, tokens_per_step=tokens, learning_rate=lr)
    training.train(out, run, begin=begin, resume=resume, stop_after=stop_after, report=typer.echo)


if __name__ == "__main__":
    app()
