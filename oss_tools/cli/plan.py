"""Find the best mixture of number formats for a size or a quality.

Every matrix is rounded alone, and a text shows how far that moves the model's predictions (KL divergence from the unrounded
model, in nats). Then formats are chosen so that the sum of these figures is least within the budget. Embedding, output,
attention and router get more bits only where the measurement says so. -o writes the mixture as a recipe for `requantize
--recipe`.

The measurements are kept beside the recipe (--measured): an interrupted run goes on, and a plan for another budget takes no
time. --check measures the mixture, and every single format that is no larger, on text that the plan did not use.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._groups import options
from oss_tools.cli._options import JsonFlag, QuietFlag, format_size, model_path, size_option
from oss_tools.cli._output import counted, print_facts, print_json, print_table, remark_reading
from oss_tools.cli._texts import TextOptions

if TYPE_CHECKING:
    from oss_tools.models import Checkpoint
    from oss_tools.planning.mixture import Budget, Mixture

EXAMPLES = """
oss-tools plan gpt-oss-20b-bf16/ --size 9GB -o recipe.yaml
oss-tools plan model-bf16/ --bits 4.5 --check
oss-tools plan model.gguf --kld 0.02 --formats q4_k,q5_k,q6_k,q8_0 -o recipe.yaml
"""
SCORED_FROM = 8  # of a sequence, the first of so many parts is context alone
SHOWN = 12  # tensors that are named


@options
class BudgetOptions:
    """What the mixture may cost: one of them is given."""

    size: Annotated[
        int | None,
        typer.Option("--size", parser=size_option, metavar="SIZE", help="The most bytes that all tensors may take."),
    ] = None
    bits: Annotated[
        float | None, typer.Option("--bits", metavar="B", help="The most bits per weight, on average over the file.")
    ] = None
    kld: Annotated[
        float | None,
        typer.Option(
            "--kld", metavar="NATS", help="The largest predicted divergence; the file becomes as small as that allows."
        ),
    ] = None

    def budget(self) -> Budget:
        """Raises BadParameter unless one is given, above 0."""
        from oss_tools.planning.mixture import Budget

        named: dict[Any, float | None] = {"size": self.size, "bits": self.bits, "kld": self.kld}
        given = [Budget(kind, value) for kind, value in named.items() if value is not None]
        if len(given) != 1:
            raise typer.BadParameter("name one limit: --size, --bits or --kld")
        if not 0 < given[0].value < float("inf"):
            raise typer.BadParameter(f"{given[0].value} is not a number above 0", param_hint=f"--{given[0].kind}")
        return given[0]


@options
class MeasuredText(TextOptions):
    """The text that is measured on."""

    text: Annotated[
        list[Path] | None, typer.Option("--text", metavar="FILE", help="Measure on this text; may be repeated.")
    ] = None
    chats: Annotated[
        list[Path] | None,
        typer.Option("--chats", metavar="FILE", help="Measure on these conversations (JSON Lines); may be repeated."),
    ] = None
    tokens: Annotated[int, typer.Option("--tokens", min=256, metavar="N", help="How many tokens to measure on.")] = 2048
    sequence: Annotated[int, typer.Option("--sequence", min=32, metavar="N", help="How many tokens a sequence has.")] = 256


def run(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            parser=model_path,
            help="A checkpoint: its path, the owner/name of a download, or tiny (the embedded model).",
        ),
    ],
    *,
    budget: BudgetOptions,
    formats: Annotated[
        str,
        typer.Option("--formats", metavar="LIST", help="The formats to choose from. [default: all that the container has]"),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the mixture to this file, as a recipe (.yaml)."),
    ] = None,
    container: Annotated[
        str, typer.Option("--container", "-c", metavar="hf|gguf", help="The container to plan for.")
    ] = "gguf",
    importance: Annotated[
        Path | None,
        typer.Option(
            "--importance", metavar="FILE", help="Round with this importance matrix, as `requantize --importance FILE` will."
        ),
    ] = None,
    texts: MeasuredText,
    every: Annotated[
        int,
        typer.Option(
            "--every",
            min=1,
            metavar="N",
            help="Measure only every N-th layer, and take the other layers' figures from their neighbours.",
        ),
    ] = 1,
    measured: Annotated[
        Path | None,
        typer.Option("--measured", metavar="FILE", help="Keep the measurements in this file. [default: beside the recipe]"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Measure the mixture too, on text that the plan did not use.")
    ] = False,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    from oss_tools.checkpoints.files import check_place, replace_file
    from oss_tools.convert.importance import load_importance
    from oss_tools.download.layout import name_of
    from oss_tools.models import open_checkpoint
    from oss_tools.planning.mixture import choose, recipe_of, recipe_text, to_record
    from oss_tools.planning.sensitivity import Sensitivities
    from oss_tools.planning.units import units_of

    wanted = budget.budget()
    if output:
        if output.suffix not in (".yaml", ".yml"):
            raise typer.BadParameter(f"{output}: a recipe's name ends in .yaml", param_hint="--output")
        check_place(output)
    kept = measured or (output.with_suffix(".measured.json") if output else None)
    if kept:
        check_place(kept)
    with open_checkpoint(model) as checkpoint:
        if not quiet:
            remark_reading(checkpoint)
        units = units_of(checkpoint, container, _formats(formats, container))
        for_plan, for_check = _passages(checkpoint, texts)
        weights = load_importance(importance, checkpoint) if importance else None
        sensitivities = Sensitivities(checkpoint, units, for_plan, weights, kept, every)
        with counted(quiet=quiet) as report:
            sensitivities.run(report)
        mixture = choose(sensitivities, wanted, container)
        record = {"model": str(model), "container": container, "budget": vars(wanted), "scored_tokens": len(for_plan)}
        record |= to_record(mixture)
        if check:
            with counted(quiet=quiet) as report:
                record["check"] = checked(sensitivities, mixture, for_check, container, report)
        if output:
            description = f"{mixture.bits:.2f} bits a weight, chosen by measurement (oss-tools plan)"
            comment = [
                f"Found by `oss-tools plan` for {name_of(model)}: {mixture.bits:.2f} bits a weight,",
                f"{format_size(mixture.nbytes)}, predicted divergence {mixture.predicted:.3g} nats.",
                f"Measured: each matrix rounded alone, over {len(for_plan):,} tokens.",
            ]
            replace_file(output, recipe_text(recipe_of([*mixture.choices], output.stem, description), comment))
            record["recipe"] = str(output)
    if as_json:
        print_json(record)
        return
    print_mixture(mixture, record)


def _formats(names: str, container: str) -> list[str]:
    """The formats to choose from. Raises BadRecipe for one that cannot be written in the container."""
    from oss_tools.checkpoints import container_names
    from oss_tools.convert.recipe import writable, writable_formats
    from oss_tools.errors import BadRecipe
    from oss_tools.formats import get_format

    if container not in container_names() or container == "ready":
        raise typer.BadParameter(f"{container!r} is not one of hf, gguf", param_hint="--container")
    possible = writable_formats(container)
    if not names:
        return [name for name in possible if not get_format(name).is_float]
    chosen = [writable(name.strip()).name for name in names.split(",") if name.strip()]
    if strange := [name for name in chosen if name not in possible]:
        raise BadRecipe(f"container {container} cannot hold {strange[0]}; it holds {', '.join(possible)}")
    return chosen


def _passages(checkpoint: Checkpoint, texts: TextOptions) -> tuple[Any, Any]:
    """What is planned by, and what is checked on: every other sequence of the text."""
    from oss_tools.errors import BadRequest
    from oss_tools.measure.divergence import Passages

    length = min(texts.sequence, checkpoint.architecture.context)
    chosen = texts.sample(checkpoint, checkpoint.metadata(), 2 * texts.tokens, length).sequences
    whole = [one for one in chosen if len(one) == length]
    if len(whole) < 2:
        raise BadRequest(f"the text is too short for two sequences of {length} tokens; give more, or a smaller --sequence")
    context = max(length // SCORED_FROM, 1)
    return Passages(tuple(whole[::2]), context), Passages(tuple(whole[1::2]), context)


def checked(sensitivities: Any, mixture: Mixture, passages: Any, container: str, report: Any) -> dict[str, Any]:
    """The divergence of the mixture, and of every format alone that is no larger, measured on other text."""
    from oss_tools.convert.plan import make_plan
    from oss_tools.convert.recipe import recipe_of_format
    from oss_tools.planning.mixture import uniform
    from oss_tools.planning.sensitivity import measure_whole

    checkpoint, importance = sensitivities.checkpoint, sensitivities.importance
    names = sorted({name for unit in sensitivities.units for name in unit.formats})
    sizes = {
        name: make_plan(checkpoint, container, recipe_of_format(name).falling_back(("q8_0", "bf16"))).target_bytes
        for name in names
    }
    smaller = [name for name in names if sizes[name] <= mixture.nbytes]
    wanted = {"": mixture.formats} | {name: uniform(sensitivities, name) for name in smaller}
    found: dict[str, float] = {}
    for done, (name, formats) in enumerate(wanted.items()):
        rounded = {tensor: format for tensor, format in formats.items() if format != "keep"}
        found[name] = measure_whole(checkpoint, rounded, importance, passages)
        report("check", done + 1, len(wanted))
    return {
        "scored_tokens": len(passages),
        "measured_kld": found.pop(""),
        "formats": {name: {"kld": value, "bytes": sizes[name]} for name, value in found.items()},
    }


def print_mixture(mixture: Mixture, record: dict[str, Any]) -> None:
    """By role what was chosen and what it costs; the tensors that matter most; predicted and measured divergence."""
    from collections import Counter

    by_role: dict[str, list[Any]] = {}
    for choice in mixture.choices:
        by_role.setdefault(choice.unit.role, []).append(choice)
    rows = []
    for role, own in by_role.items():
        counts = Counter(choice.option.format for choice in own)
        said = ", ".join(f"{count} × {name}" for name, count in counts.most_common())
        nbytes, loss = sum(c.option.nbytes for c in own), sum(c.option.loss for c in own)
        rows.append((role, said, format_size(nbytes), f"{loss:.2g}", f"{loss / mixture.total:.0%}" if mixture.total else ""))
    print_table(rows, ("role", "formats", "bytes", "loss, nats", "of all"), title="Chosen", right=(2, 3, 4))
    dearest = sorted(mixture.choices, key=lambda choice: -choice.option.loss)[:SHOWN]
    print_table(
        [(c.unit.name, c.option.format, f"{c.option.loss:.2g}", c.why) for c in dearest],
        ("tensor", "format", "loss", "otherwise"),
        title="What costs most",
        right=(2,),
    )
    check = record.get("check")
    print()
    print_facts(
        {
            "size": f"{format_size(mixture.nbytes)}, {mixture.bits:.2f} bits a weight",
            "predicted": f"{mixture.predicted:.3g} nats of divergence",
            "measured": f"{check['measured_kld']:.3g} nats, on {check['scored_tokens']:,} other tokens" if check else None,
            "recipe": record.get("recipe"),
        }
    )
    for name, found in (check or {"formats": {}})["formats"].items():
        print(f"        {found['kld']:.3g} with {name} alone, {format_size(found['bytes'])}")
