"""The groups of options that `compare` alone has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oss_tools.cli._engine import Load, LoadOptions
from oss_tools.cli._groups import options
from oss_tools.cli._options import Published, names_in, size_option
from oss_tools.cli._questions import QuestionOptions

if TYPE_CHECKING:
    from oss_tools.compare.latency import Settings as Timing
    from oss_tools.compare.settings import Settings
    from oss_tools.report.comparison import Comparison
    from oss_tools.report.gates import Verdict

EMBEDDED_TOKENS = 320  # more than the embedded model's longest right answer
EMBEDDED_LIMIT = 100  # questions of each task, so that all of it is done in minutes


@options
class ComparedQuestions(QuestionOptions):
    """Which questions and texts all models are given."""

    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help=f"Ask only this many questions of each task. [default: all; {EMBEDDED_LIMIT} if tiny takes part]",
            show_default=False,
        ),
    ] = None
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            min=0,
            help="The seed of resampling, and of the choice of questions and chunks under --limit and --chunks "
            "(0 takes the first).",
        ),
    ] = 0
    reasoning: Annotated[str, typer.Option("--reasoning", metavar="low|medium|high", help="How much to reason.")] = "medium"
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            min=1,
            help="The most tokens of one answer, reasoning included. [default: the task's]",
            show_default=False,
        ),
    ] = None
    chunks: Annotated[
        int | None,
        typer.Option(
            "--chunks", min=1, help="Read only this many chunks of each text; a chunk has 512 tokens.", show_default=False
        ),
    ] = None

    def settings(self, suites: tuple[str, ...], timing: Timing, drift: DriftOptions, *, embedded: bool) -> Settings:
        """`embedded`: whether the embedded model takes part. Raises BadParameter for a kind of drift that there is not."""
        from oss_tools.compare.settings import Settings

        limit, max_tokens = self.limit, self.max_tokens
        if embedded:
            limit, max_tokens = limit or EMBEDDED_LIMIT, max_tokens or EMBEDDED_TOKENS
        return Settings(
            suites, self.tier, limit, self.chunks, self.reasoning, max_tokens, self.data and self.data.absolute(),  # type: ignore[arg-type]
            self.seed, timing, self.repeats, drift.kinds(), drift.places(),
        )  # fmt: skip


@options
class TimingOptions(LoadOptions):
    """How models are loaded, and what is timed."""

    load: Load = "resident"
    repeat: Annotated[
        int,
        typer.Option(
            "--repeat", "-r", min=0, help="How many timed rounds to run; 6 or more give intervals, 0 times nothing."
        ),
    ] = 12
    prompt: Annotated[int, typer.Option("--prompt", "-p", min=1, help="How many tokens the timed prompt has.")] = 128
    generate: Annotated[int, typer.Option("--gen", "-n", min=1, help="How many tokens to generate after it.")] = 64

    def timing(self, say: Callable[[str], None]) -> Timing:
        """Raises what `backend_for` raises."""
        from oss_tools.compare.latency import Settings as Timing
        from oss_tools.engine.backend import backend_for, check_cache

        backend = backend_for(self.device, self.backend, say)
        check_cache(self.cache, backend)
        return Timing(
            self.prompt,
            self.generate,
            self.repeat,
            self.threads,
            backend,
            self.activations,
            self.load,
            self.memory,
            self.cache,
        )


@options
class DriftOptions:
    """How the divergence moves with the context."""

    drift: Annotated[
        str,
        typer.Option(
            "--drift",
            metavar="KINDS",
            help="Measure how the divergence changes with the length of the context: depth, cache, cache-q8, backends, "
            "separated by commas.",
            show_default=False,
        ),
    ] = ""
    depths: Annotated[
        str, typer.Option("--depths", metavar="LIST", help="For --drift: numbers of tokens of context, separated by commas.")
    ] = "0,1024,2048,4096,8192,16384,32768"

    def __post_init__(self) -> None:
        self.places()

    def kinds(self) -> tuple[str, ...]:
        """Raises BadParameter for a kind that there is not."""
        from oss_tools.compare.drift import KINDS

        kinds = names_in(self.drift)
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(KINDS)}", param_hint="--drift")
        return kinds

    def places(self) -> tuple[int, ...]:
        """Numbers of tokens; 4k is 4,096."""
        found = []
        for name in names_in(self.depths):
            number, thousands = (name[:-1], 1024) if name.lower().endswith("k") else (name, 1)
            if not number.isdecimal() or int(number) * thousands > 1 << 24:
                raise typer.BadParameter(f"{name!r}: write numbers of tokens, as in 0,1024,32k", param_hint="--depths")
            found.append(int(number) * thousands)
        if not found:
            raise typer.BadParameter("write numbers of tokens, as in 0,1024,32k", param_hint="--depths")
        return tuple(found)


@options
class PackOptions:
    """What a base model said, in a file."""

    pack: Annotated[
        Path | None,
        typer.Option(
            "--pack",
            metavar="FILE",
            help="Compare with this pack of a base, made by --write-pack; the base itself need not be here.",
            show_default=False,
        ),
    ] = None
    write_pack: Annotated[
        Path | None,
        typer.Option(
            "--write-pack",
            metavar="FILE",
            help="Keep what MODEL predicts in this file of a few MB; compare nothing.",
            show_default=False,
        ),
    ] = None

    def __bool__(self) -> bool:
        return bool(self.pack or self.write_pack)


@options
class BudgetOptions:
    """What the best that fits is to fit in."""

    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            parser=size_option,
            metavar="SIZE",
            help="Say at the end which of them is the best that fits in this memory, e.g. 16GiB.",
            show_default=False,
        ),
    ] = None
    context: Annotated[
        int, typer.Option("--context", "-c", min=1, help="For --budget: the most tokens that a sequence may have.")
    ] = 4096


@options
class GateOptions:
    """What the figures are held against."""

    gate: Annotated[
        str | None,
        typer.Option(
            "--gate",
            metavar="GATE",
            help="The limits that the figures must hold: a gate's name, or a .yaml file.",
            show_default=False,
        ),
    ] = None
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline", metavar="FILE", help="An earlier record that the gate compares with.", show_default=False
        ),
    ] = None
    published: Published = None

    def __post_init__(self) -> None:
        if self.baseline and not self.gate:
            raise typer.BadParameter("it needs --gate, whose rules compare with it", param_hint="--baseline")

    def judge(self) -> Callable[[Comparison], Verdict | None]:
        """What the gate will say of the record; its file and the baseline are read before anything is measured."""
        if self.gate is None:
            return lambda record: None
        from oss_tools.report.gates import judge
        from oss_tools.report.reading import load_sheets
        from oss_tools.report.rules import load_gate
        from oss_tools.report.sheet import sheet_of

        rules = load_gate(self.gate)
        known = load_sheets([self.baseline])[0] if self.baseline else None
        if rules.wants_baseline and known is None:
            raise typer.BadParameter(f"the gate {rules.name} compares with a record; give --baseline", param_hint="--gate")
        return lambda record: judge(rules, sheet_of(record), known)

    def names(self) -> tuple[str, ...]:
        """The published figures to show. Raises BadRecipe for figures that there are not."""
        from oss_tools.report.published import load_published

        names = names_in(self.published)
        for name in names if "none" not in names else ():
            load_published(name)
        return names
